"""Whole runs of the real thing on a tiny model: results, dropouts, attacks, refusals."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from small_jobs import Adversary, federation, make_clients, rows, scripted

from fedtree_dp import BudgetExceeded, Gaussian, Ledger, LedgerError, PoissonGaussian, epsilon_of
from fedtree_dp.account.events import from_dict
from fedtree_secure import (
    Client,
    ConfigurationError,
    RunFolderError,
    RunStopped,
    Topology,
    Training,
    load_adapter,
)
from fedtree_secure.client.data_sets import DataSets
from fedtree_secure.embedded.shared import Shared
from fedtree_secure.model.identity import tokenizer_digest


@pytest.fixture(scope="module")
def finished(tiny_bert, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    wrap, made = scripted()
    result = federation(tiny_bert).run(make_clients(), out, wrap_transport=wrap)
    return result, made[0]


def test_a_run_leaves_everything_behind(finished):
    result, _ = finished
    for name in ("summary.json", "job.json", "transcript.txt", "tree.png", "roster.json"):
        assert (result.folder / name).stat().st_size > 0
    assert json.loads((result.folder / "summary.json").read_text()) == result.data
    assert set(result.adapters) == {f"t{t}-c{i}" for t in range(2) for i in range(3)}
    for report in result.data["clients"].values():
        assert report["metric"]["name"] == "accuracy"
        assert 0 <= report["metric"]["value"] <= 1
        assert report["bytes_sent"] > 0
    assert len(result.data["layers"]) == 2
    assert [record["error"] for record in result.data["rounds"]] == ["", ""]


def test_an_adapter_says_what_it_is(finished):
    """All that whoever gets it needs to use it, and to know what it cost."""
    result, _ = finished
    facts = json.loads((result.adapters["t0-c0"] / "fedtree.json").read_text())
    report, settings = result.data["clients"]["t0-c0"], result.data["job"]
    assert facts["id2label"] == {"0": "class-0", "1": "class-1"}
    assert facts["max_length"] == settings["training"]["max_length"]
    assert facts["scale"] == settings["lora"]["alpha"] / settings["lora"]["r"]
    assert facts["privacy"] == {"epsilon": report["epsilon_spent"], "delta": report["delta"]}
    assert facts["metric"] | {"confusion": report["metric"]["confusion"]} == report["metric"]
    assert facts["pooling"] == "native"
    assert facts["tokenizer"]["class"] == "BertTokenizer"
    model, tokenizer = load_adapter(result.adapters["t0-c0"])
    assert tokenizer_digest(tokenizer).hex() == facts["tokenizer"]["sha256"]
    assert tokenizer.model_max_length == facts["max_length"]
    assert model.config.id2label == {0: "class-0", 1: "class-1"}
    readme = (result.adapters["t0-c0"] / "README.md").read_text()
    assert "Texts were cut to 16 tokens" in readme


def test_epsilon_can_be_recomputed_from_the_summary(finished):
    for report in finished[0].data["clients"].values():
        events = [from_dict(event) for event in report["events"]]
        assert epsilon_of(events, report["delta"]) == pytest.approx(
            report["epsilon_spent"], abs=1e-3
        )
        assert report["epsilon_spent"] <= report["epsilon_allowed"]
        assert report["epsilon_spent"] > 0.98 * report["epsilon_allowed"]


def test_ledger_copies_verify_and_name_every_stage(finished):
    result, _ = finished
    with Ledger.inspect(result.folder / "ledgers" / "t0-c0.sqlite") as ledger:
        purposes = [entry.purpose for entry in ledger.entries() if entry.event is not None]
    assert purposes == ["fingerprint", "head", "round 1", "round 2"]


def test_the_transcript_lists_every_message(finished):
    result, adversary = finished
    lines = (result.folder / "transcript.txt").read_text().splitlines()[1:]
    assert len(lines) == sum(
        len(requests) + len(replies) for _, requests, replies in adversary.seen
    )
    assert [int(line.split()[0]) for line in lines] == list(range(1, len(lines) + 1))


def test_the_key_file_is_private_to_its_owner(finished):
    path = finished[0].folder / "clients" / "t0-c0" / "identity.key"
    assert path.stat().st_mode & 0o077 == 0


def test_the_summary_prints_a_row_for_each_client(finished, capsys):
    finished[0].summary()
    shown = capsys.readouterr().out
    assert all(name in shown for name in finished[0].adapters)


def test_a_notebook_shows_a_printed_result_once(finished, monkeypatch):
    displayed = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *shown: displayed.append(shown))
    assert "t0-c0" in str(finished[0])
    assert displayed == []


def test_uploads_are_masked_and_of_one_size(tiny_bert, tmp_path):
    """Uploads of a group have the same length, and their bytes pass for uniform ones (chi-square,
    1e-6).
    """
    from scipy.stats import chisquare

    wrap, made = (
        scripted()
    )  # one group, because how much a private tree uploads differs from run to run
    federation(tiny_bert, topology=Topology(source="one_group")).run(
        make_clients(), tmp_path / "run", wrap_transport=wrap
    )
    masked = next(replies for stage, _, replies in made[0].seen if stage == "round-1/mask")
    assert len({len(reply) for reply in masked.values()}) == 1
    bodies = b"".join(
        reply[300:-400] for reply in masked.values()
    )  # without the envelope's names and tags, and the next round's advert
    assert len(bodies) > 3500
    assert (
        chisquare(np.bincount(np.frombuffer(bodies, dtype=np.uint8), minlength=256)).pvalue > 1e-6
    )


STAGES = ("advertise", "share", "mask", "confirm", "reveal")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_client_that_dies_at_any_stage_does_not_stop_the_round(tiny_bert, tmp_path, stage, when):
    lost = [(f"round-1/{later}", "t0-c1", "before") for later in STAGES[STAGES.index(stage) + 1 :]]
    wrap, _ = scripted(lose=[(f"round-1/{stage}", "t0-c1", when), *lost])
    job = federation(
        tiny_bert,
        topology=Topology(source="one_group"),
        training=Training(records=60, sample_rate=0.5, head_steps=0, max_length=16),
    )
    result = job.run(make_clients(), tmp_path / "run", wrap_transport=wrap)
    first, second = result.data["rounds"]
    assert not first["error"]
    assert len(next(iter(first["opened"].values()))) in (5, 6)
    assert not second["error"]
    assert len(next(iter(second["opened"].values()))) == 6


def test_too_few_survivors_open_nothing_and_the_next_round_goes_on(tiny_bert, tmp_path):
    """Six clients, one colluder: the threshold is 4, so three losses are one too many."""
    lost = [("round-1/mask", name, "after") for name in ("t0-c0", "t0-c1", "t1-c0")]
    wrap, _ = scripted(lose=lost)
    job = federation(tiny_bert, topology=Topology(source="one_group"))
    result = job.run(make_clients(), tmp_path / "run", wrap_transport=wrap)
    first, second = result.data["rounds"]
    assert first["error"]
    assert not first["opened"]
    assert not second["error"]
    for report in result.data["clients"].values():  # the charge of the failed round is kept
        assert sum(e["steps"] for e in report["events"] if e.get("sample_rate") == 0.5) == 8 + 2


def test_a_changed_message_is_dropped_with_its_sender(tiny_bert, tmp_path):
    def flip(stage, replies):
        if stage == "round-1/mask":
            data = bytearray(replies["t1-c2"])
            data[len(data) // 2] ^= 1
            replies = {**replies, "t1-c2": bytes(data)}
        return replies

    wrap, _ = scripted(change=flip)
    job = federation(tiny_bert, topology=Topology(source="one_group"))
    result = job.run(make_clients(), tmp_path / "run", wrap_transport=wrap)
    assert len(next(iter(result.data["rounds"][0]["opened"].values()))) == 5


@pytest.mark.parametrize("stage", ["sketch-hello", "sketch"])
def test_a_changed_sketch_is_dropped_with_its_sender(tiny_bert, tmp_path, stage):
    def flip(at, replies):
        changed = bytearray(replies.get("t1-c2", b""))
        if at == stage:
            changed[len(changed) // 2] ^= 1
        return replies | ({"t1-c2": bytes(changed)} if at == stage else {})

    result = federation(tiny_bert).run(
        make_clients(), tmp_path / "run", wrap_transport=scripted(change=flip)[0]
    )
    opened = {
        name
        for record in result.data["rounds"]
        for names in record["opened"].values()
        for name in names
    }
    assert len(opened) >= 3
    assert "t1-c2" not in opened  # it trains alone


@pytest.mark.parametrize(
    ("stage", "says"), [("sketch-hello", "2 participants are left"), ("sketch", "2 clients sent")]
)
def test_too_few_sketches_stop_the_run(tiny_bert, tmp_path, stage, says):
    lost = [(stage, name, "after") for name in ("t0-c0", "t0-c1", "t0-c2", "t1-c0")]
    with pytest.raises(RunStopped, match=says):
        federation(tiny_bert).run(
            make_clients(), tmp_path / "run", wrap_transport=scripted(lose=lost)[0]
        )


def test_every_source_and_head_mode_runs(tiny_bert, tmp_path):
    """lora_b with its warm-up and merge round, A trained, several local steps, and a head that all
    share: trained alone, merged with the warm-up, trained on.
    """
    from fedtree_secure import Lora

    job = federation(
        tiny_bert,
        lora=Lora(r=2, freeze_a=False),
        training=Training(records=60, sample_rate=0.5, local_steps=2, head="group"),
        topology=Topology(source="lora_b", warmup_steps=2, sketch_size=64, linkage="average"),
    )
    result = job.run(
        [dataclasses.replace(c, labels=("class-0", "class-1")) for c in make_clients()],
        tmp_path / "run",
    )
    events = result.data["clients"]["t0-c0"]["events"]
    assert sum(event.get("steps", 0) for event in events) == 2 + 2 * 2
    assert [record["round"] for record in result.data["rounds"]] == [0, 1, 2]


def test_references_are_trained_under_the_same_epsilon_and_only_in_simulation(
    tiny_bert, tmp_path, finished
):
    assert "references" not in finished[0].data
    result = federation(tiny_bert).simulate(make_clients(), tmp_path / "run")
    references = result.data["references"]
    assert set(references) == {"head", "head_group", "local", "fedit", "head_without_dp"}
    for name, reference in references.items():
        assert reference["private"] == (name != "head_without_dp")
        for report in reference["clients"].values():
            assert (
                (7.8 < report["epsilon_spent"] <= 8)
                if reference["private"]
                else report["epsilon_spent"] is None
            )
    assert not list(tmp_path.glob("state/*/store.sqlite"))  # nothing outside of the run folder


def store_of(stores, name):
    return stores / name / "store.sqlite"


def test_a_finished_budget_refuses_the_next_job_wherever_it_writes(tiny_bert, tmp_path, stores):
    """H4: the store belongs to the rows, not to --out."""
    job = federation(tiny_bert)
    job.run(make_clients(), tmp_path / "first")
    with pytest.raises(BudgetExceeded) as refused:
        job.run(make_clients(), tmp_path / "elsewhere" / "second")
    assert not (tmp_path / "elsewhere").exists()
    with Ledger.inspect(store_of(stores, "t0-c0")) as ledger:
        assert len(ledger.events()) == 4
        said = f"epsilon {ledger.spent():.4f} of 8 is spent"
    for told in ("client t0-c0: data set 't0-c0'", str(store_of(stores, "t0-c0")), said):
        assert told in str(refused.value)


def open_store(stores, heads, name, budget):
    return DataSets(stores, heads).opened(name, budget, ["of another job"])


def test_a_job_plans_with_what_earlier_jobs_left(tiny_bert, tmp_path, stores):
    job = federation(tiny_bert)
    with open_store(stores, tmp_path / "heads", "t0-c0", job.job.privacy) as ledger:
        ledger.charge(Gaussian(1.0), job="earlier", purpose="statistics")
    result = job.run(make_clients(), tmp_path / "run")
    first, second = (result.data["clients"][name] for name in ("t0-c0", "t0-c1"))
    assert first["epsilon_spent"] <= 8
    noise = [
        max(e["noise_multiplier"] for e in r["events"] if "steps" in e) for r in (first, second)
    ]
    assert noise[0] > noise[1]


def test_a_client_whose_budget_ends_stops_and_the_others_go_on(tiny_bert, tmp_path, stores):
    """A budget that is cut in the middle of the run: the client refuses before training."""
    clients = make_clients(tasks=1, each=4)
    job = federation(tiny_bert, topology=Topology(source="one_group"), rounds=3)

    class Spender(Adversary):
        def exchange(self, stage, requests):
            if stage == "round-2/mask":
                participant = self.inner._inner._participants["t0-c0"].__self__
                left = PoissonGaussian(0.95, 0.5, 1)
                participant.party.store.ledger.charge(left, job="another", purpose="in between")
            return super().exchange(stage, requests)

    result = job.run(clients, tmp_path / "run", wrap_transport=Spender)
    survivors = [next(iter(record["opened"].values())) for record in result.data["rounds"]]
    assert "t0-c0" in survivors[0]
    assert "t0-c0" not in survivors[2]
    assert len(survivors[2]) == 3
    assert result.data["clients"]["t0-c0"]["epsilon_spent"] <= 8


def test_foreign_and_damaged_stores_are_refused(tiny_bert, tmp_path, stores):
    path = store_of(stores, "t0-c0")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is no ledger" * 100)
    with pytest.raises(LedgerError):
        federation(tiny_bert).run(make_clients(), tmp_path / "run")
    path.unlink()
    budget = federation(tiny_bert).job.privacy
    Ledger.open(path, dataset="somebody else", budget=budget).close()
    with pytest.raises(LedgerError, match="somebody else"):
        federation(tiny_bert).run(make_clients(), tmp_path / "run2")


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda c: c[:2], ConfigurationError, "at least masking.min_group"),
        (lambda c: [*c, c[0]], ConfigurationError, "two clients have the id"),
        (
            lambda c: [*c[:5], dataclasses.replace(c[5], dataset="t0-c0")],
            ConfigurationError,
            "two clients have the dataset",
        ),
    ],
)
def test_bad_client_lists_start_nothing(tiny_bert, tmp_path, change, error, told):
    with pytest.raises(error, match=told):
        federation(tiny_bert).run(change(make_clients()), tmp_path / "run")
    assert not list(tmp_path.glob("state/*/store.sqlite"))


def test_bad_rows_charge_nothing(tiny_bert, tmp_path):
    from fedtree_secure import DataError

    bad = [*make_clients()[:5], Client("bad", train=rows(0, 60, 9), text="nothing")]
    with pytest.raises(DataError, match="nothing"):
        federation(tiny_bert).run(bad, tmp_path / "run")
    assert not list(tmp_path.glob("state/*/store.sqlite"))


def test_a_folder_of_another_job_or_with_other_files_is_refused(tiny_bert, tmp_path, finished):
    with pytest.raises(RunFolderError, match="another job"):
        federation(tiny_bert, rounds=7).run(make_clients(), finished[0].folder)
    with pytest.raises(RunFolderError, match="finished run"):
        federation(tiny_bert).run(make_clients(), finished[0].folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(RunFolderError, match=r"thesis\.txt"):
        federation(tiny_bert).run(make_clients(), tmp_path / "full")


def test_language_models_train_too(tiny_llama, tmp_path):
    clients = [Client(c.id, train=c.train, test=c.test) for c in make_clients()]
    result = federation(tiny_llama, task="causal-lm").run(clients, tmp_path / "run")
    assert all(r["metric"]["name"] == "perplexity" for r in result.data["clients"].values())


def test_a_clients_error_text_reaches_the_log_but_no_message(tiny_bert, tmp_path, caplog):
    """A client that dies is a dropout; what it raised may hold data, so it stays on its side."""
    shared = Shared()
    job = federation(tiny_bert, topology=Topology(source="one_group"))
    clients = make_clients()

    class Breaker(Adversary):
        def exchange(self, stage, requests):
            if stage == "round-1/mask":
                requests = {**requests, "t0-c0": b"\xc1 not a message"}
            return super().exchange(stage, requests)

    with caplog.at_level(logging.WARNING, logger="fedtree_secure.embedded"):
        result = job.run(clients, tmp_path / "run", shared=shared, wrap_transport=Breaker)
    assert "t0-c0 failed at stage round-1/mask" in caplog.text
    assert {"client": "t0-c0", "stage": "round-1/mask", "error": "WireError"} in result.data[
        "failures"
    ]
    assert len(next(iter(result.data["rounds"][0]["opened"].values()))) == 5
