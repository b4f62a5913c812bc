"""The guards of sparse graphs in the product; see `mutants.py`."""

from mutant import Mutant

M = Mutant
CHOICE, PLANS, REQUESTS = "agreed/graph.py", "agreed/round_plan.py", "client/graph_requests.py"
OF_CHOICE, RUNS = "test_sparse_graph.py", "test_sparse_run.py"

SPARSE_RUNS = (
    M(
        "chosen graph: any beacon will do",
        REQUESTS,
        "    if draft is None or known.get(draft.tree.hex()) != message.beacon.hex():\n",
        "    if draft is None:\n",
        "hostile_chosen_graph_a_sparse_one",
        RUNS,
    ),
    M(
        "chosen graph: a job that demands a sparse one gets none",
        REQUESTS,
        '        if draft is not None and party.job.masking.graph == "sparse":\n',
        "        if False:\n",
        "hostile_chosen_graph_a_sparse_one",
        RUNS,
    ),
    M(
        "chosen graph: draws are not journalled",
        REQUESTS,
        "        party.store.journal.ceremony(draft.tree, message.number)\n",
        "        pass\n",
        "hostile_chosen_graph_sparse_draws",
        RUNS,
    ),
    M(
        "chosen graph: a draw that the job has no use for",
        REQUESTS,
        "    if draft is None or party.id not in draft.place:\n",
        "    if False:\n",
        "hostile_chosen_graph_sparse_draws",
        RUNS,
    ),
    M(
        "sparse: whoever counts on one colluder gets one",
        CHOICE,
        "common = clients >= LEAST_OF_AUTO and masking.colluders * COMMON >= clients\n",
        "common = clients >= LEAST_OF_AUTO\n",
        "chosen_by_cohort",
        OF_CHOICE,
    ),
    M(
        "sparse: small cohorts begin",
        CHOICE,
        '    if masking.graph == "sparse" and numbers_for(masking, clients) is None:\n',
        "    if False:\n",
        "too_small",
        OF_CHOICE,
    ),
    M(
        "sparse: more dropouts than the complete graph leaves",
        CHOICE,
        "    if masking.dropouts > most:\n",
        "    if False:\n",
        "more_dropouts",
        OF_CHOICE,
    ),
    M(
        "sparse: the terms do not say so",
        CHOICE,
        '    return f"\\0graph\\n{found.neighbours} {found.threshold} {found.dropouts}".encode()\n',
        '    return b""\n',
        "settings_are_agreed",
        OF_CHOICE,
    ),
    M(
        "sparse: last experts with too few of the committee",
        PLANS,
        "    if len(inner) >= least:\n",
        "    if inner:\n",
        "last_experts",
        OF_CHOICE,
    ),
    M(
        "sparse: statements name any numbers",
        "report/masks.py",
        "        if said != expected:\n",
        "        if False:\n",
        "do_not_follow",
        OF_CHOICE,
    ),
    M(
        "sparse: a run goes on without the graph that it demands",
        "server/coordinator.py",
        '        if drawn is None and self.job.masking.graph == "sparse":\n',
        "        if False:\n",
        "stop_a_run",
        RUNS,
    ),
    M(
        "sparse: numbers of draws are offered twice",
        "server/graph.py",
        "        state.ceremonies[tree] = ceremony + 1\n",
        "",
        "stop_a_run",
        RUNS,
    ),
    M(
        "sparse: kept by some is kept by all",
        "server/graph.py",
        "    if missing:\n",
        "    if False:\n",
        "stop_a_run",
        RUNS,
    ),
)
