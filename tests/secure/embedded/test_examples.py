"""What the README and the examples show can be run as it stands."""

import re
from pathlib import Path

import pytest

from fedtree_secure import Client, Federation, demo
from fedtree_secure.model.sizes import trained_values
from fedtree_secure.storage import read_json

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"


def section() -> str:
    """The README's section "In Python"."""
    return (ROOT / "README.md").read_text("utf-8").split("\n## In Python\n")[1]


def snippet() -> str:
    """What it says to run."""
    return section().split("```python\n")[1].split("```")[0]


def printed() -> str:
    """What it says that this prints."""
    return section().split("-->\n```\n")[1].split("```")[0]


def forms(text: str) -> list[str]:
    """Lines without their numbers and spaces."""
    return [" ".join(re.sub(r"[\d.]+", "#", line).split()) for line in text.splitlines()]


@pytest.mark.slow
def test_the_readmes_example_runs_as_printed(tmp_path, monkeypatch, tiny_bert, capsys):
    """On a tiny model and a tenth of the rows; nothing else is another."""
    few = demo.clients(train=80, test=20)
    monkeypatch.setattr(demo, "minilm", lambda: tiny_bert)
    monkeypatch.setattr(demo, "clients", lambda: few)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(snippet(), "README.md", "exec"), names)
    result, shown = names["result"], capsys.readouterr().out
    assert "tweets-1" in shown
    ratios = [float(line.split()[1]) for line in shown.splitlines()[:3]]
    assert ratios == sorted(ratios, reverse=True)
    promised = [f for f in forms(printed()) if f and not f.startswith(("#", "Cl", "layer", "Ad"))]
    assert len(promised) >= 8
    assert set(promised) <= set(forms(shown))
    assert "Advice:" in shown
    assert "Clusters by layer, shallow to deep:" in shown
    assert result["tweets-1"].adapter == Path("runs/first/adapters/tweets-1")
    assert 0 < result["tweets-1"].epsilon <= 8
    assert 0 <= result["tweets-1"].metric <= 1
    assert names["Client"] is Client
    summary = read_json(tmp_path / "runs" / "first" / "summary.json")
    assert summary["job"]["lora"]["r"] == 4


def test_the_example_of_a_job_file_can_be_priced_and_its_clients_load(tiny_bert):
    federation, clients = Federation.from_toml(EXAMPLES / "job.toml")
    assert [client.id for client in clients] == ["heart", "bones", "skin"]
    for client in clients:
        assert 40 <= len(client.test["text"]) < len(client.train["text"]) <= 80
        assert set(client.train["label"]) == set(client.labels) == set(client.test["label"])
        assert not set(client.train["text"]) & set(client.test["text"])
    priced = federation.replace(backbone=str(tiny_bert)).plan()
    assert priced.epsilon <= 8
    assert priced.row.plan.parameters == trained_values(
        federation.replace(backbone=str(tiny_bert)).job
    )


def test_the_example_of_a_job_file_runs(tiny_bert, tmp_path):
    federation, clients = Federation.from_toml(EXAMPLES / "job.toml")
    result = federation.replace(backbone=str(tiny_bert)).run(clients, tmp_path / "run")
    (groups,) = {tuple(map(tuple, layer["released"])) for layer in result.data["layers"]}
    assert groups == (("bones", "heart", "skin"),)


def test_the_examples_rows_are_those_that_their_script_writes(tmp_path, monkeypatch):
    script: dict[str, object] = {"__name__": "make_clinics", "__file__": "make_clinics.py"}
    exec(compile((EXAMPLES / "make_clinics.py").read_text(), "make_clinics.py", "exec"), script)
    monkeypatch.setitem(script, "FOLDER", tmp_path)
    script["main"]()
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {p.name: p.read_bytes() for p in (EXAMPLES / "clinics").iterdir()}
    assert len(written) == 6


def test_the_quickstart_is_the_readmes_example():
    quickstart, shown = (EXAMPLES / "quickstart.py").read_text(), snippet()
    for call in (
        "Federation(minilm(), PrivacyBudget(epsilon=8, delta=1e-5), rounds=4, lora=Lora(r=4))",
        "plan(records=1000).noise_to_clip",
        'job.run(clients(), out="runs/first")',
        'audit("runs/first", "ledger").verdict',
    ):
        assert call in shown
        assert call in quickstart
