"""The guards of rounds whose keys are dealt with the round before; see `mutants.py`."""

from mutant import Mutant

M = Mutant
CHECKS, ROUND, AHEAD = (
    "client/round_checks.py",
    "client/round_requests.py",
    "client/ahead_requests.py",
)
PLAN, COORDINATOR = "agreed/round_plan.py", "server/coordinator.py"
HOSTILE, THREE, ROUNDS = (
    "test_hostile_ahead.py",
    "test_three_exchanges.py",
    "test_hostile_rounds.py",
)
UNFIT = "hostile_two_rounds_what_does_not_fit"

AHEAD_OF_TIME = (
    M(
        "two rounds: experts ahead, bound by nothing",
        AHEAD,
        ' or message.experts is not None:\n        raise OutOfOrder(f"{party.id}: only',
        ':\n        raise OutOfOrder(f"{party.id}: only',
        UNFIT,
        HOSTILE,
    ),
    M(
        "two rounds: what is dealt ahead is not checked",
        AHEAD,
        "    check_round(party, message)\n",
        "",
        "hostile_two_rounds_what",
        HOSTILE,
    ),
    M(
        "two rounds: keys that nobody can pay for",
        ROUND,
        "        if self.ahead is not None and not party.store.affords(party.round_event()):\n",
        "        if False:\n",
        "hostile_two_rounds_the_later_one",
        HOSTILE,
    ),
    M(
        "two rounds: what a round began with does not bind its masks",
        AHEAD,
        "late_context(party.terms, received.digests))",
        "late_context(party.terms, ()))",
        "a_steady_round",
        THREE,
    ),
    M(
        "two rounds: the late context leaves out what members hold",
        PLAN,
        'late/v1\\n" + terms.digest + _held(digests))',
        'late/v1\\n" + terms.digest)',
        "hostile_other_experts_with_digests_to_fit",
        ROUNDS,
    ),
    M(
        "two rounds: experts that came late are not taken over",
        ROUND,
        "        takes=due.take,\n",
        "",
        "a_steady_round",
        THREE,
    ),
    M(
        "two rounds: attempts repeat",
        "agreed/stages.py",
        "    return 2 * start - 1 if ahead else 2 * start\n",
        "    return 2 * start - 1\n",
        "missed_an_exchange",
        THREE,
    ),
    M(
        "two rounds: who is missing is not asked again",
        COORDINATOR,
        "if ahead is None or (ahead.number, ahead.dealt) != (number, asked):\n",
        "if ahead is None:\n",
        "missed_an_exchange",
        THREE,
    ),
    M(
        "two rounds: keys that were given up are counted on",
        COORDINATOR,
        "        if any(self._channel.asked[name] != request for name, request in last.items()):\n",
        "        if False:\n",
        "not_all_draw_leave_auto",
        "test_sparse_run.py",
    ),
)
