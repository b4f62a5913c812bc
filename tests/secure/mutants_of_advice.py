"""Mutants of what is said of adapters before anything is spent, and of the step it is about."""

from mutant import Mutant

EXPECTED, TREES = "test_expected.py", "test_trees.py"

ADVICE = (
    Mutant(
        "noise of one client is taken for that of a group",
        "report/advice.py",
        "    return ratio / math.sqrt(max(clients, 1)) > PAYS\n",
        "    return ratio > PAYS\n",
        "noise_is_weighed",
        EXPECTED,
    ),
    Mutant(
        "a member's part of shared noise is taken for all of it",
        "report/expected.py",
        '    own = part_of(job, plan.rounds) if job.noise == "shared" else plan.rounds\n',
        "    own = plan.rounds\n",
        "ratio_is_the_planners",
        EXPECTED,
    ),
    Mutant(
        "heads alone are advised where there is no head",
        "report/expected.py",
        "    return job.rounds > 0 and job.head_steps > 0\n",
        "    return job.rounds > 0\n",
        "without_a_choice",
        EXPECTED,
    ),
    Mutant(
        "a step inside a caller's autocast is on the public head",
        "client/training.py",
        "            torch.clear_autocast_cache()\n",
        "            pass\n",
        "callers_autocast",
        TREES,
    ),
)
