"""The guards of late contexts and of two attempts at once; see `mutants.py`."""

from mutant import Mutant

M = Mutant
KEYS, SESSION, JOURNAL = "primitives/keys.py", "rounds/session.py", "attempts.py"
LATE, OF_JOURNAL = "test_late_context.py", "test_journal.py"

LATE_CONTEXT = (
    M(
        "late lie: masks of pairs do not depend on it",
        KEYS,
        'b"pair-mask", node, *_given(late))',
        'b"pair-mask", node)',
        "late_lie_masks",
        LATE,
    ),
    M(
        "late lie: self masks do not depend on it",
        KEYS,
        'b"self-mask", owner, node, *_given(late))',
        'b"self-mask", owner, node)',
        "late_lie_masks",
        LATE,
    ),
    M(
        "late lie: nobody signs it",
        SESSION,
        'b"sharers", session, sharers.bits, *((late,) if late else ()))',
        'b"sharers", session, sharers.bits)',
        "late_lie_a_client_that_was_given",
        LATE,
    ),
    M(
        "late lie: a vote does not cover it",
        SESSION,
        "session, sharers_hash(session, sharers, late), survivors.bits",
        "session, sharers_hash(session, sharers), survivors.bits",
        "late_lie_a_client_that_was_given",
        LATE,
    ),
    M(
        "late lie: it may be left out",
        SESSION,
        "len(late) != (32 if plan.late else 0):",
        "len(late) not in (0, 32):",
        "late_lie_a_plan_that_says_late",
        LATE,
    ),
    M(
        "late lie: that there is one is not agreed on",
        "agreed/plan.py",
        "            *([True] if self.late else []),\n",
        "",
        "late_lie_a_plan_that_says_late",
        LATE,
    ),
    M(
        "late lie: a client checks it at its upload alone",
        "client.py",
        "    check_late(state.session.plan, late)\n"
        "    with state:\n"
        "        return _received(state, inbox, late)\n",
        "    with state:\n        return _received(state, inbox, late)\n",
        "late_lie_a_plan_that_says_late",
        LATE,
    ),
    M(
        "two sessions: a third one",
        JOURNAL,
        "        if len(self._open) != 1:\n            return False\n"
        "        (under_way,) = self._open\n",
        "        if not self._open:\n            return False\n        under_way = self._open[0]\n",
        "two_sessions_nothing_is_begun",
        OF_JOURNAL,
    ),
    M(
        "two sessions: any round ahead",
        JOURNAL,
        "return number == under_way[0] + 1 and ",
        "return ",
        "two_sessions_nothing_is_begun",
        OF_JOURNAL,
    ),
    M(
        "two sessions: ahead of any stage",
        JOURNAL,
        'under_way[0] + 1 and self._stages[under_way] == "masked"',
        "under_way[0] + 1",
        "two_sessions_nothing_is_begun",
        OF_JOURNAL,
    ),
    M(
        "two sessions: the earlier is answered after the later's upload",
        JOURNAL,
        "            self._open = (key,)\n            self._unused_ahead = False\n",
        "            self._unused_ahead = False\n",
        "two_sessions_go_on",
        OF_JOURNAL,
    ),
    M(
        "two sessions: a way back from an upload",
        JOURNAL,
        "            self._open = (key,)\n            self._unused_ahead = False\n",
        "            self._open = (key,)\n",
        "two_sessions_no_way_back",
        OF_JOURNAL,
    ),
    M(
        "two sessions: a way back to any round",
        JOURNAL,
        "        back = round == last_round - 1 and self._unused_ahead\n",
        "        back = self._unused_ahead\n",
        "two_sessions_one_that_uploaded_nothing",
        OF_JOURNAL,
    ),
    M(
        "two sessions: no way back",
        JOURNAL,
        "        back = round == last_round - 1 and self._unused_ahead\n",
        "        back = False\n",
        "two_sessions_one_that_uploaded_nothing",
        OF_JOURNAL,
    ),
)
