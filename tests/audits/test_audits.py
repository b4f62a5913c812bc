"""Every audit: passes what is right, fails every broken build for the right reason, says what it
lacks.
"""

import json
import shutil
import tomllib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from fedtree_audits import audit, command, self_test
from fedtree_audits.checks import disclosure, ledger
from fedtree_audits.command import NAMES, audit_named
from fedtree_audits.errors import UnknownAudit
from fedtree_audits.report import schema
from fedtree_audits.statistics.verdict import Verdict

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

# For each broken build the check that must notice it; another one noticing it as well is no harm.
REASONS = {
    "accounted": {
        "mixing weight trained outside": "c3: between steps",
        "head tuned at delivery": "c0: adapter",
        "head tuned after its steps": "c0: between steps",
        "one more tensor delivered": "c0: adapter",
        "a step not charged": "c0: charges",
        "upload changed after the engine": "opened sums",
    },
    "hostile_server": {
        "guards on private rows": "sum: values that break one record",
        "no reply after an error": "replies: a step that breaks down",
        "padded to the longest record": "sum: values that break padding",
        "reach unchecked": "replies: out of reach",
        "digests unchecked": "experts: other ones for one member",
        "digests outside of the plan": "experts: one member in another world",
        "last values from the server": "experts: a back door at the end",
        "tree without a quorum": "tree: two for two halves",
        "tree without an own sketch": "tree: distances without a sketch",
        "counter unchecked": "replies: a request twice",
    },
    "artefacts": {
        "edited adapter": "adapters/c2/adapter_model.safetensors",
        "exchanged adapter, list made to fit": "signature of c5",
        "adapter removed": "adapters/c1/adapter_model.safetensors",
        "adapter added": "nothing else",
        "edited transcript": "transcript.txt",
        "edited message": "messages",
        "edited configuration": "job.json",
        "edited summary": "summary.json",
        "another roster": "signature of c0",
    },
    "components": {
        "no noise": "noise variance",
        "half the noise": "noise variance",
        "noise reused over steps": "noise between steps",
        "noise reused over layers": "noise between layers",
        "noise shared by clients": "noise between clients",
        "clipping off": "sensitivity",
        "per-layer clipping called global": "sensitivity",
        "doubled sampling rate": "sampling rate",
        "shuffling called Poisson": "batch sizes",
        "a clip a record called a clip a unit": "sensitivity",
        "shared: h counted too high": "noise that nobody knows in the smallest sums",
        "shared: noise split over too many": "part of c000",
        "shared: a dropout that leaves too little": "smallest sum",
        "shared: a member that adds none": "part of c001",
        "shared: one part for all": "noise between members",
    },
    "adapter_release": {"trained without DP": "final weights: noncentral t"},
    "canary_client": {
        "a group of one": "external expert: sum of a group",
        "no noise": "trunk: own noise",
        "half the noise": "own cluster: sum of a group",
        "shared noise split over too many": "own cluster: sum of a group",
    },
    "canary_whitebox": {
        "no noise": "per step",
        "half the noise": "per step",
        "clipping off": "per step",
        "doubled sampling rate": "per step, measured rate",
        "a clip a record called a clip a unit": "per step",
    },
    "lattice": {
        "float32 noise": "on the grid",
        "rounded to nearest": "rounding at random",
        "rounded down": "rounding without bias",
        "coarse noise table": "integer Gaussian",
    },
    "reconstruct": {
        "the plain update": "sum with DP: A trained, rank 16",
        "a sum without noise": "sum with DP: A trained, rank 16",
    },
    "replay": {
        "divisor from the private size": "one record less",
        "sampling rate from the private size": "coins of the others",
        "NaN gradient poisons the release": "a record with nan",
        "tree from the rows, unaccounted": "tree: noise",
        "tree evidence over the private size": "tree: one record less",
        "class sums not clipped": "class sums: one record less",
        "class sums without noise": "class sums: noise",
        "class sums with half the noise": "class sums: noise",
        "class sums of records called units": "class sums: one unit less",
    },
    "secagg_transcript": {
        "mask reuse": "equal updates in two rounds",
        "short keystream": "blocks of one upload",
        "one unmasked client": "uploads of c0",
        "masks of the wrong range": "uploads of c1",
        "a missing mask": "exact sums",
    },
    "ledger": {
        "missing round": "c0: stages",
        "omitted warm-up": "c0: stages",
        "omitted head": "c0: stages",
        "half the steps charged": "c0: stages",
        "more noise charged than used": "c0: stages",
        "understated summary": "c3: epsilon",
        "truncation": "c0: signed checkpoint",
        "ledger replaced, all else to fit": "c0: signed checkpoint",
        "edited row": "c0: chain",
        "a unit claimed over charges for records": "c0: unit",
    },
}

# A run of two steps: even without DP an adapter keeps too little of them to be told, so the control
# is not caught.
AT_95 = {"canary_whitebox"}  # its interval is wrong once in twenty, by design, where it is tight
EXPECTED = {"adapter_release": Verdict.INCONCLUSIVE}


@pytest.mark.parametrize("name", NAMES)
def test_a_correct_build_passes(name):
    result = audit_named(name).correct(1)
    assert result.verdict is Verdict.PASS, [c for c in result.checks if not c.holds]
    schema.check(result.to_dict())


# Nine seconds; `make audit-self-test` runs it with all others.
SELF_TEST_ONLY = {("canary_client", "shared noise split over too many")}


@pytest.mark.parametrize(
    ("name", "mutant"),
    [(n, m) for n, found in REASONS.items() for m in found if (n, m) not in SELF_TEST_ONLY],
)
def test_a_broken_build_fails_for_the_right_reason(name, mutant):
    result = audit_named(name).mutants[mutant](1)
    assert result.verdict is Verdict.FAIL
    schema.check(result.to_dict())
    assert REASONS[name][mutant] in {check.name for check in result.checks if not check.holds}


def test_every_mutant_has_a_reason():
    for name, reasons in REASONS.items():
        assert set(reasons) == set(audit_named(name).mutants)


@pytest.mark.parametrize("mutant", sorted(disclosure.AUDIT.mutants))
def test_disclosure_names_who_is_isolated(mutant):
    result = disclosure.AUDIT.mutants[mutant](0)
    assert result.verdict is Verdict.FAIL
    assert any("give one about" in check.detail for check in result.checks if not check.holds)


def brute_force(rows, names, most):
    """Smallest support by numpy ranks over all subsets of clients."""
    import itertools

    matrix = np.array([[float(row.get(name, 0)) for name in names] for row in rows])
    rank = np.linalg.matrix_rank(matrix)
    for size in range(1, most + 1):
        for chosen in itertools.combinations(range(len(names)), size):
            rest = np.delete(matrix, chosen, axis=1)
            if (np.linalg.matrix_rank(rest) if rest.size else 0) < rank:
                return size
    return None


@pytest.mark.parametrize("seed", range(40))
def test_the_smallest_support_is_the_smallest(seed):
    rng = np.random.default_rng(seed)
    names = [f"c{i}" for i in range(6)]
    rows = []
    for _ in range(int(rng.integers(1, 5))):
        chosen = rng.choice(6, size=int(rng.integers(1, 7)), replace=False)
        rows.append({names[i]: Fraction(1, len(chosen)) for i in chosen})
    found = disclosure.smallest_support(rows, 4)
    assert (None if found is None else len(found)) == brute_force(rows, names, 4)


@pytest.mark.parametrize("name", NAMES)
def test_audits_of_a_real_run_pass_and_write_their_page(name, finished, tmp_path, capsys):
    chosen, expected = audit_named(name), EXPECTED.get(name, Verdict.PASS)
    arguments = ["--run", str(finished), "--out", str(tmp_path)]
    given = command.main(chosen, arguments)
    if given != expected.exit_code and name in AT_95:  # fresh canaries: wrong twice once in 400
        given = command.main(chosen, arguments)
    assert given == expected.exit_code, capsys.readouterr().out
    data = json.loads((tmp_path / f"{name}.json").read_text())
    schema.check(data)
    assert data["verdict"] == expected.value
    assert data["checks"]
    assert data["hashes"]["job.json"]
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / f"{name}.md").read_text()
    assert chosen.question in page
    assert "anonymous" not in page.lower()


def test_an_audit_is_one_call_and_leaves_its_report(copy):
    result = audit(str(copy), "ledger")
    assert result.verdict == "PASS"
    assert json.loads((copy / "audits" / "ledger.json").read_text())["verdict"] == "PASS"
    (copy / "ledgers" / "t0-c1.sqlite").unlink()
    assert audit(copy, "ledger").verdict == "INCONCLUSIVE"


def test_an_audit_that_there_is_not_is_named(tmp_path):
    with pytest.raises(UnknownAudit, match="no audit 'ledgers'; there are accounted, "):
        audit(tmp_path, "ledgers")


def test_every_audit_is_an_entry_point():
    """The editable install may lag behind; the project's own file may not."""
    pyproject = tomllib.loads(PYPROJECT.read_text())
    listed = pyproject["project"]["entry-points"]["fedtree_secure.audits"]
    assert listed == {name: f"fedtree_audits.checks.{name}:AUDIT" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_run_is_inconclusive_and_says_so(name, tmp_path):
    result = audit_named(name).audit(tmp_path)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "job.json" in result.missing[0]


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def test_a_real_run_without_a_ledger_is_inconclusive(copy):
    (copy / "ledgers" / "t0-c1.sqlite").unlink()
    result = ledger.AUDIT.audit(copy)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "t0-c1.sqlite" in result.missing[0]


def test_a_ledger_of_another_client_in_its_place_fails(copy):
    """Mostly of the same events: only name and signature are sure to tell them apart."""
    shutil.copy(copy / "ledgers" / "t1-c1.sqlite", copy / "ledgers" / "t0-c1.sqlite")
    result = ledger.AUDIT.audit(copy)
    failed = {check.name for check in result.checks if not check.holds}
    assert {"t0-c1: data set", "t0-c1: signed checkpoint"} <= failed
    assert all(name.startswith("t0-c1: ") for name in failed)


def test_an_edited_summary_fails(copy):
    summary = json.loads((copy / "summary.json").read_text())
    summary["clients"]["t0-c2"]["epsilon_spent"] = 1.0
    (copy / "summary.json").write_text(json.dumps(summary))
    result = ledger.AUDIT.audit(copy)
    assert [check.name for check in result.checks if not check.holds] == ["t0-c2: epsilon"]


def test_a_real_run_whose_round_was_opened_twice_fails(copy):
    summary = json.loads((copy / "summary.json").read_text())
    record = json.loads(json.dumps(summary["rounds"][0]))
    largest = max(record["opened"], key=lambda node: len(record["opened"][node]))
    record["opened"][largest].pop()
    summary["rounds"].append(record)
    (copy / "summary.json").write_text(json.dumps(summary))
    assert disclosure.AUDIT.audit(copy).verdict is Verdict.FAIL


def test_the_matrix_ends_with_one_json_line(capsys):
    assert self_test.main(["--only", "lattice", "secagg_transcript"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == {"required": 9, "caught": 9, "false_alarms": 0}
    assert sum("caught" in line and "NOT" not in line for line in lines[:-1]) == 9


def test_disclosure_counts_the_sums_of_shared_heads():
    def released(survivors):
        group = ["c0", "c1", "c2", "c3"]
        opened = {disclosure.node_name(group, "head"): survivors}
        return disclosure.rows_of(
            {"layers": [], "heads": [group], "rounds": [{"round": 0, "opened": opened}]}
        )

    assert [row.place for row in released(["c0", "c1", "c2"])] == [(0, "head of c0")]
    with pytest.raises(disclosure.MissingEvidence, match="no layer of the summary explains"):
        disclosure.rows_of({"layers": [], "rounds": [{"round": 0, "opened": {"head-x": []}}]})
