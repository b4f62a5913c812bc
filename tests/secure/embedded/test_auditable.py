"""What a run leaves for auditors: signed manifest and checkpoints; with `auditable` its messages
and canaries.
"""

import hashlib
import json
import shutil

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from small_jobs import federation, make_clients

from fedtree_dp import Ledger
from fedtree_secure.client.canaries import Canaries, draw_canaries
from fedtree_secure.embedded.transcript import Transcript
from fedtree_secure.errors import ConfigurationError, RunFolderError
from fedtree_secure.report.manifest import describe, listed, read_manifest, signed_bytes


@pytest.fixture(scope="module")
def kept(tiny_bert, tmp_path_factory):
    """A run of one round with messages and 40 canaries a client; treat it as read-only."""
    job = federation(tiny_bert, rounds=1)
    out = tmp_path_factory.mktemp("runs") / "kept"
    return job.run(make_clients(), out, auditable=True, canaries=40)


def test_every_message_is_kept_where_its_line_says(kept):
    data, at = (kept.folder / "messages.bin").read_bytes(), 0
    for line in (kept.folder / "transcript.txt").read_text().splitlines()[1:]:
        *_, size, digest = line.split()
        assert hashlib.sha256(data[at : at + int(size)]).hexdigest() == digest
        at += int(size)
    assert at == len(data) > 10_000


def test_the_summary_says_what_it_costs(kept):
    told = kept.data["auditable"]
    assert told["message_bytes"] == (kept.folder / "messages.bin").stat().st_size
    assert "25%" in told["costs"][1]  # 20 of 60 + 20 records
    assert json.loads((kept.folder / "summary.json").read_text())["auditable"] == told


def test_canaries_fit_their_commitments_and_leave_reports_alone(kept):
    committed = json.loads((kept.folder / "commitments.json").read_text())
    coins = []
    for client in make_clients():
        found = Canaries.load(kept.folder / "clients" / client.id / "canaries.json")
        assert found.commitment == committed[client.id]
        assert len(found.texts) == len(found.labels) == 40
        coins += found.included
        assert kept.data["clients"][client.id]["majority"] <= 0.7  # of the client's own rows
    assert 80 < sum(coins) < 160
    assert "commitments.json" in read_manifest(kept.folder)["files"]


def test_canaries_join_the_rows_by_their_coins(kept, tiny_bert):
    from transformers import AutoTokenizer

    from fedtree_secure.client.data import prepare

    job, client = federation(tiny_bert).job, make_clients()[0]
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    found = Canaries.load(kept.folder / "clients" / client.id / "canaries.json")
    data = prepare(client, job, tokenizer)
    planted = found.planted(data, job, tokenizer)
    assert planted.train.tokens[:60] == data.train.tokens
    chosen = [i for i, coin in enumerate(found.included) if coin]
    assert len(planted.train) == 60 + len(chosen)
    assert planted.train.labels[60:].tolist() == [found.labels[i] for i in chosen]
    assert (
        tokenizer.decode(planted.train.tokens[60], skip_special_tokens=True)
        == found.texts[chosen[0]]
    )
    assert planted.test is data.test


def test_a_run_goes_on_with_the_canaries_and_messages_it_has(
    kept, tiny_bert, tmp_path, module_stores
):
    again = shutil.copytree(kept.folder, tmp_path / "runs" / "kept")
    for place in ("state", "heads"):
        shutil.copytree(module_stores / place, tmp_path / place)
    job, before = federation(tiny_bert, rounds=1), (again / "messages.bin").read_bytes()
    with pytest.raises(RunFolderError, match=r"differs in auditable"):
        job.run(make_clients(), again, resume=True)
    job.run(make_clients(), again, resume=True, auditable=True, canaries=40)
    assert (again / "messages.bin").read_bytes().startswith(before)
    one = again / "clients" / "t0-c0" / "canaries.json"
    draw = json.loads(one.read_text())
    draw["included"][0] = not draw["included"][0]
    one.write_text(json.dumps(draw))
    with pytest.raises(RunFolderError, match="other canaries"):
        job.run(make_clients(), again, resume=True, auditable=True, canaries=40)


def test_canaries_without_auditable_are_refused(tiny_bert, tmp_path):
    with pytest.raises(ConfigurationError, match="auditable"):
        federation(tiny_bert).run(make_clients(), tmp_path / "x", canaries=40)


def test_too_few_canaries_are_refused(tiny_bert):
    from transformers import AutoTokenizer

    with pytest.raises(ConfigurationError, match="at least 20"):
        draw_canaries(19, AutoTokenizer.from_pretrained(tiny_bert), 2, bytes(32))


def test_coins_are_fair_and_follow_the_randomness(tiny_bert):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    first, second, same = (draw_canaries(2000, tokenizer, 2, bytes([i]) * 32) for i in (1, 2, 1))
    assert first == same != second
    assert abs(np.mean(first.included) - 0.5) < 0.06
    assert abs(np.corrcoef(first.included, first.labels)[0, 1]) < 0.12
    assert first.commitment != second.commitment


def test_the_manifest_lists_what_was_delivered_and_nothing_private(kept):
    found = read_manifest(kept.folder)
    names = set(found["files"])
    assert {
        "summary.json",
        "job.json",
        "transcript.txt",
        "messages.bin",
        "roster.json",
        "tree.png",
    } <= names
    assert "adapters/t0-c0/adapter_model.safetensors" in names
    assert "ledgers/t0-c0.checkpoints" in names
    assert not any(
        "identity" in name or "values" in name or name.startswith("server") for name in names
    )
    for name, told in found["files"].items():
        assert describe(kept.folder / name) == told
    assert names == set(listed(kept.folder))


def test_every_client_signed_the_manifest_and_a_checkpoint(kept):
    found, keys = read_manifest(kept.folder), json.loads((kept.folder / "roster.json").read_text())
    assert set(found["signatures"]) == set(keys["clients"])
    for name, key in keys["clients"].items():
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        public.verify(bytes.fromhex(found["signatures"][name]), signed_bytes(found))
        with Ledger.inspect(kept.folder / "ledgers" / f"{name}.sqlite") as ledger:
            ledger.verify_kept(kept.folder / "ledgers" / f"{name}.checkpoints", public_key=public)


def test_entries_of_a_file_name_what_differs(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "a.safetensors"
    save_file({"one": np.zeros(3), "two": np.ones((2, 2))}, path)
    before = describe(path)["entries"]
    save_file({"one": np.zeros(3), "two": np.ones((4,))}, path)
    after = describe(path)["entries"]
    assert before["one"] == after["one"]
    assert before["two"] != after["two"]
    path.write_bytes(b"damaged")
    assert describe(path)["entries"] == {}


def test_a_manifest_of_another_kind_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": 2, "files": {}, "signatures": {}}')
    with pytest.raises(RunFolderError, match="no manifest of format 1"):
        read_manifest(tmp_path)


def test_kept_messages_are_cut_to_their_index_and_never_shorter(tmp_path):
    path, messages = tmp_path / "transcript.txt", tmp_path / "messages.bin"
    first = Transcript(path, messages)
    first.record("server", "a", "join", b"12345")
    first.close()
    messages.write_bytes(b"12345678")  # killed between message and line
    Transcript(path, messages).close()
    assert messages.read_bytes() == b"12345"
    messages.write_bytes(b"1234")
    with pytest.raises(RunFolderError, match="shortened"):
        Transcript(path, messages)
