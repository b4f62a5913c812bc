"""Audit `hostile_server`: whether a server that lies learns or moves anything that it may not.

Real clients of the installed code, on a tiny model, talk to a server that has the right key and
breaks every rule of the protocol (`liar`). Four families of attacks that worked once:

- a record shown by a reply: weights under which one record's gradient breaks, or all but one
  record's; then whether a client answers must not depend on that record, nor what it is charged;
- a record's share of the sum: under weights at any scale one record moves the clipped sum by one
  clipping norm at most, and no other record's gradient by a bit;
- the tree: invented distances, two trees for two halves, a tree that the job does not need;
- model inconsistency (Pasquini et al., CCS 2022): other experts for one client of a group, and
  other values at the end, where a back door would be delivered.

Everything is compared exactly; there is no sampling error. The job's rates and sizes are the
audit's own, chosen to make the attacks as easy as can be.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.rigs import broken_client, needle
from fedtree_audits.rigs.attacks_on_groups import other_experts, trees
from fedtree_audits.rigs.attacks_on_rows import counters, out_of_reach, replies, shares
from fedtree_audits.rigs.hostile import RECORDS, Setup, Stage, base_job
from fedtree_audits.rigs.parties import scratch
from fedtree_audits.run_folder import RunFolder
from fedtree_audits.statistics.verdict import Check, Result
from fedtree_secure.testing import Backbone

QUESTION = "Does a server that lies learn or move anything that it may not?"
ROUNDS = 20
Attack = Callable[[Stage, Path, int], list[Check]]
_ATTACKS: tuple[Attack, ...] = (
    replies,
    out_of_reach,
    counters,
    shares,
    trees,
    other_experts,
)


def audit_setup(
    setup: Setup,
    key: bytes,
    *,
    rounds: int = ROUNDS,
    hashes: Mapping[str, str] | None = None,
    attacks: Sequence[Attack] = _ATTACKS,
) -> Result:
    """Audit one build.

    Args:
        setup: What is attacked.
        key: 32 bytes that all randomness comes from; its hash is reported.
        rounds: With the target, and as many without it, of the attacks on replies.
        hashes: Of files that were read.
        attacks: To be carried out.
    """
    with scratch() as place:
        model = needle.write_needle_model(place / "model")
        backbone = Backbone(base_job(model, "one_group", rounds), device="cpu")
        (place / "jobs").mkdir()
        stage = Stage(backbone, place / "jobs", setup, key)
        with setup.opening():
            checks = [check for attack in attacks for check in attack(stage, model, rounds)]
    return Result(
        audit="hostile_server",
        question=QUESTION,
        claim=(
            "whether, when and how often a client answers does not depend on its rows; one record "
            "moves a sum by at most one clipping norm; clients follow no tree and no values but "
            "those that follow from what a quorum signed and from opened sums"
        ),
        adversary="a server with the right key that sends whatever it likes to whomever it likes",
        assumptions=(
            "the code attacked here is the one installed where the run took place, on a tiny model",
            "how long an answer takes is not looked at",
            (
                "the last round's sums and the last external expert are the server's word, within "
                "what the public optimiser can reach: no later round compares what members were "
                "told"
            ),
            (
                "a server may invent the distances of a real sketch; groups are then its choice, "
                "within min_group and colluders"
            ),
        ),
        checks=checks,
        hashes={"key commitment": hashlib.sha256(key).hexdigest()} | dict(hashes or {}),
        figures={"rounds": rounds, "records": RECORDS},
    )


def audit_run(run: RunFolder) -> Result:
    """Attack the installed code; a run adds no evidence but its settings' hash."""
    run.require_own_noise()
    return audit_setup(Setup(), os.urandom(32), hashes=run.hashes("job.json"))


def _variant(setup: Setup, *attacks: Attack) -> Variant:
    """A build under some attacks, all of them where none is given."""

    def variant(seed: int) -> Result:
        key = hashlib.sha256(f"hostile_server/{seed}".encode()).digest()
        return audit_setup(setup, key, rounds=6, attacks=attacks or _ATTACKS)

    return variant


def _broken(attack: Attack, **how: Any) -> Variant:
    """A build that one attack is there to notice."""
    return _variant(Setup(**how), attack)


AUDIT = Audit(
    name="hostile_server",
    question=QUESTION,
    on_run=audit_run,
    correct=_variant(Setup()),
    mutants={
        "guards on private rows": _broken(shares, engine=broken_client.GuardsOnRows),
        "no reply after an error": _broken(replies, opening=broken_client.no_reply_after_an_error),
        "padded to the longest record": _broken(
            shares, opening=broken_client.padded_to_the_longest
        ),
        "reach unchecked": _broken(out_of_reach, opening=broken_client.any_reach),
        "digests unchecked": _broken(other_experts, opening=broken_client.digests_unread),
        "digests outside of the plan": _broken(
            other_experts, opening=broken_client.digests_outside_the_plan
        ),
        "last values from the server": _broken(
            other_experts, opening=broken_client.last_values_as_sent
        ),
        "tree without a quorum": _broken(trees, opening=broken_client.one_is_a_quorum),
        "tree without an own sketch": _broken(trees, opening=broken_client.trees_of_strangers),
        "counter unchecked": _broken(counters, participant=broken_client.Recounting),
    },
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
