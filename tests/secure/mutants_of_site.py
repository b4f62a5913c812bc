"""The guards of a site between a network and its participants; see `mutants.py`."""

from mutant import Mutant

M = Mutant
SITE, WHO, ROSTER = "site/site.py", "agreed/who.py", "roster_file.py"
IN_SITE, IN_WHO, IN_KEYS = "test_site.py", "test_who.py", "test_keys.py"
IN_HEADS = "test_heads_at_sites.py"

SITES = (
    M(
        "approval: one serves any number of runs",
        SITE,
        "free = [approval for approval in fits if approval.id not in taken]",
        "free = fits",
        "approval_is_for_one_run",
        IN_SITE,
    ),
    M(
        "approval: nobody's signature is asked for",
        "site/approval.py",
        "if given.format != FORMAT or not verifies(key, given.signature, given._signed()):",
        "if given.format != FORMAT:",
        "changed_approval_approves_nothing",
        IN_SITE,
    ),
    M(
        "approval: noise stays as planned whatever was spent since",
        SITE,
        "same = approval.charges == len(self.ledger.events())",
        "same = True",
        "planned_anew",
        IN_SITE,
    ),
    M(
        "policy: looked at when a run begins alone",
        SITE,
        "            self._check_policy(known.approval, known.roster, "
        "known.participant.party.backbone)\n",
        "",
        "policy_that_is_tightened",
        IN_SITE,
    ),
    M(
        "policy: whoever asks is told of it",
        SITE,
        "            open_request(request, self._policy.value().server_key, run, self.name)\n",
        "",
        "silence_for_whoever",
        IN_SITE,
    ),
    M(
        "policy: any model will do",
        SITE,
        "        broken += policy.against_model(backbone.frozen_digest)\n",
        "",
        "violates_the_policy",
        IN_SITE,
    ),
    M(
        "policy: any unit will do",
        "site/policy.py",
        "        if unit != self.unit:",
        "        if False:",
        "violates_the_policy",
        IN_SITE,
    ),
    M(
        "policy: any noise will do",
        "site/policy.py",
        "        if job.noise not in self.noise:",
        "        if False:",
        "other_noise_than_the_policy_allows",
        IN_HEADS,
    ),
    M(
        "policy: any own epsilon will do",
        "site/policy.py",
        'if job.noise == "shared" and own is not None and most is not None and own > most:',
        "if False:",
        "other_noise_than_the_policy_allows",
        IN_HEADS,
    ),
    M(
        "heads: a card's labels need not be the site's own",
        "site/settings.py",
        "        if card.labels and card.labels != own:",
        "        if False:",
        "declares_other_labels_than_its_card",
        IN_HEADS,
    ),
    M(
        "card: its labels are not signed",
        "key_file.py",
        "    return _claim(_CARD, name, key, *([list(labels)] if labels else []))",
        "    return _claim(_CARD, name, key)",
        "labels_are_changed",
        IN_KEYS,
    ),
    M(
        "heads: facts of any roster will do",
        "model/facts_file.py",
        "    if len(found) != len(outputs) or any(whole) or len(sizes) > 1:",
        "    if False:",
        "facts_of_another_roster",
        IN_HEADS,
    ),
    M(
        "who: a question to another node is answered",
        WHO,
        "if question.node != node or len(question.nonce) != NONCE:",
        "if len(question.nonce) != NONCE:",
        "about_its_own_node",
        IN_WHO,
    ),
    M(
        "who: a name is taken at its word",
        WHO,
        "return given.name if holds else None",
        "return given.name",
        "nobody_answers_in_anothers_name",
        IN_WHO,
    ),
    M(
        "roster: a key is replaced without its own word",
        ROSTER,
        "            if card.succeeds != before.key:",
        "            if False:",
        "another_key_needs_the_signature",
        IN_KEYS,
    ),
    M(
        "roster: a revoked key comes back",
        ROSTER,
        "            if card.key in self.revoked:",
        "            if False:",
        "revoked_key_never_comes_back",
        IN_KEYS,
    ),
)
