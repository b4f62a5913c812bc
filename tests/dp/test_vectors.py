"""The vectors beside the specification: made by other libraries, read by ours."""

import json
from pathlib import Path

import pytest

from fedtree_dp import LedgerTampered, epsilon_of
from fedtree_dp.account import events
from fedtree_dp.ledger.entries import read_lines, to_line

VECTORS = Path(__file__).parents[2] / "dp" / "vectors"
LEDGER = json.loads((VECTORS / "ledger.json").read_text())
PLANS = json.loads((VECTORS / "epsilon.json").read_text())


def test_the_good_chain_is_read_and_written_alike():
    entries = read_lines(LEDGER["lines"])
    assert [entry.kind for entry in entries] == ["opened", "charge", "charge", "budget"]
    assert [to_line(entry) for entry in entries] == LEDGER["lines"]


@pytest.mark.parametrize("why", LEDGER["rejected"])
def test_bad_chains_are_refused(why):
    with pytest.raises(LedgerTampered):
        read_lines(LEDGER["rejected"][why])


@pytest.mark.parametrize("accountant", ["pld", "rdp", "prv"])
@pytest.mark.parametrize("plan", PLANS)
def test_epsilons(plan, accountant):
    ours = epsilon_of(map(events.from_dict, plan["events"]), plan["delta"], accountant=accountant)
    assert ours == pytest.approx(plan["epsilon"][accountant], abs=1e-3)


def test_the_specification_names_what_the_code_does():
    from fedtree_dp.ledger import entries, head, schema, state

    spec = (VECTORS.parent / "SPEC.md").read_text()
    for mechanism, kind in events.MECHANISMS.items():
        assert f"`{mechanism}`" in spec
        assert all(f"`{name}`" in spec for name in kind.__dataclass_fields__)
    for number in (schema.APPLICATION_ID, schema.SNAPSHOT_ID):
        assert f"{number:#X}".replace("X", "x") in spec
    for tag in (entries._TAG, state._TAG, state._ROW_TAG, head._TAG):
        assert tag.decode().strip() in spec
    assert f"schema, {schema.SCHEMA_VERSION}." in spec


def test_the_readme_s_example_runs(tmp_path, monkeypatch):
    text = (VECTORS.parent / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert (tmp_path / "clinic-a.ledger").exists()
