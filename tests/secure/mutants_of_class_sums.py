"""The guards of heads from class sums; see `mutants.py`."""

from mutant import Mutant as M

IN_DP, AT_HOME = "randomness/class_sums.py", "client/class_sums.py"
AGREED, PARTY, TERMS = "agreed/class_sums.py", "client/party.py", "agreed/terms.py"
SAME, RUNS, ROWS = "test_class_sums.py", "test_class_sum_heads.py", "test_released_sums.py"

CLASS_SUMS_IN_DP = (
    M(
        "class sums: a unit of any norm",
        IN_DP,
        "    factor = _ROOM / np.maximum(np.sqrt(squares), 1.0)\n",
        "    factor = np.full(len(who), _ROOM)\n",
        "one_unit_moves",
        SAME,
    ),
    M(
        "class sums: a record of any norm",
        IN_DP,
        "/ np.where(length > 0, length, 1.0))[:, None]",
        "/ np.ones_like(length))[:, None]",
        "sums_and_numbers",
        SAME,
    ),
    M(
        "class sums: rounded to the nearest step",
        IN_DP,
        "np.trunc(sums",
        "np.rint(sums",
        "one_record_moves_the_sums_by_at_most_one",
        SAME,
    ),
    M(
        "class sums: without noise",
        IN_DP,
        "    if sigma:\n",
        "    if False:\n",
        "noise_has_the_stated_scale",
        SAME,
    ),
    M(
        "class sums: a record that is not finite is counted",
        IN_DP,
        "np.where(known, count_share, 0.0)",
        "np.where(known, count_share, count_share)",
        "not_finite",
        SAME,
    ),
    M(
        "class sums: any label",
        IN_DP,
        " or ((labels < 0) | (labels >= number)).any():\n",
        ":\n",
        "bad_input",
        SAME,
    ),
)

CLASS_SUMS = (
    M(
        "class sums: another number of classes",
        PARTY,
        "            fits = group.labels == labels and group.outputs == self.outputs\n",
        "            fits = group.labels == labels\n",
        "another_number_of_classes",
        RUNS,
    ),
    M(
        "class sums: of features under the experts in place",
        PARTY,
        "            initial = initial_state(self.backbone, self.outputs)\n",
        "            initial = self.store.state\n",
        "of_the_frozen_model",
        RUNS,
    ),
    M(
        "class sums: what was chosen is not pinned",
        TERMS,
        "            + self._release_bytes()\n",
        "",
        "part_of_the_terms",
        SAME,
    ),
    M(
        "class sums: a head without a place for numbers",
        AT_HOME,
        "    if end.bias is None or end.in_features != hidden:\n",
        "    if False:\n",
        "without_a_place",
        RUNS,
    ),
    M(
        "class sums: rows in place of units",
        AT_HOME,
        "        units=table.units,\n",
        "",
        "whole_unit",
        ROWS,
    ),
    M(
        "class sums: a class that nobody has",
        AGREED,
        "        if raw[number] > least and count > 0.0:\n",
        "        if count > 0.0:\n",
        "nobody_has",
        SAME,
    ),
)
