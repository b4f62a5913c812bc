"""What keeps noise from shaping the tree the wrong way, and small groups from being shared; see
`mutants.py`.
"""

from mutant import Mutant

M = Mutant
COSTS, CUTS, PLANS = "agreed/cut_costs.py", "agreed/cuts.py", "agreed/cut_plans.py"
TESTS, OF_COSTS = "test_cuts.py", "test_cut_costs.py"

OF_CUTS = (
    M(
        "cuts: known noise stays in the distances",
        COSTS,
        "            squared -= noise[layer][:, None] + noise[layer][None, :]\n",
        "",
        "known_noise_is_taken_out",
        OF_COSTS,
    ),
    M(
        "cuts: a cluster has the noise of one client",
        COSTS,
        "home / size / relies",
        "home[:, [0]] / relies",
        "mean_noise_of_its_members",
        OF_COSTS,
    ),
    M(
        "cuts: shared noise counts as own",
        COSTS,
        "home / size / relies",
        "home / size",
        "noise_shared_in_the_masks",
        OF_COSTS,
    ),
    M(
        "cuts: the sketch has no error",
        COSTS,
        "2 * (saving + blur) ** 2 / sketch + ",
        "",
        "error_of_a_saving",
        OF_COSTS,
    ),
    M(
        "cuts: noise has no error",
        COSTS,
        " + (4 * saving * blur + 2 * blur**2) / values",
        "",
        "error_of_a_saving",
        OF_COSTS,
    ),
    M(
        "cuts: chance may split",
        PLANS,
        "np.where(saves > quantile * np.sqrt(null), self.cost + margin, np.inf)",
        "self.cost + margin",
        "clients_without_groups",
        TESTS,
    ),
    M(
        "cuts: a split for nothing but its own sake",
        PLANS,
        "        saves = self.saves + _tail(splits.saves[:, merge])\n",
        "        saves = _tail(splits.saves[:, merge])\n",
        "sake_of_its_children",
        TESTS,
    ),
    M(
        "cuts: each layer by itself",
        PLANS,
        "np.cumsum(values[::-1], axis=0)[::-1]",
        "values.copy()",
        "lucky_shallow_layer or no_nested_cut",
        TESTS,
    ),
    M(
        "cuts: a cluster too small is weighed as shared",
        PLANS,
        "        if nodes.size[at] < min_group:\n            continue\n",
        "",
        "no_nested_cut",
        TESTS,
    ),
    M(
        "cuts: a cluster too small is shared",
        CUTS,
        "        if home:\n            members = _members(nodes, at)\n",
        "        if home:\n            members = [at]\n",
        "small_clusters_are_never_shared",
        TESTS,
    ),
    M(
        "cuts: nobody goes home but one by one",
        PLANS,
        "        for way in ways:\n",
        "        for way in ways[:1]:\n",
        "only_all_together",
        TESTS,
    ),
    M(
        "cuts: energies are not scaled",
        COSTS,
        "exponent = int(np.frexp(largest)[1])",
        "exponent = 0",
        "only_ratios_count",
        TESTS,
    ),
    M(
        "cuts: any merge tree will do",
        COSTS,
        "    if late or not once:\n",
        "    if False:\n",
        "no_merge_tree_of_these_clients",
        OF_COSTS,
    ),
)
