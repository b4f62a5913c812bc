"""No key, text, token or private value is in a reply, in a log record or in a file of others."""

import base64
import io
import json
import logging
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from leaks import RUN, WINDOW, Secret, distinct_windows, leaks, to_bfloat16
from safetensors.numpy import load
from small_jobs import Adversary, federation, make_clients

from fedtree_dp import Ledger

VALUES = np.random.default_rng(7).normal(scale=0.03, size=96).astype(np.float32)
TOKENS = np.array([2, 17, 305, 44, 118, 3])
KEY = bytes(np.random.default_rng(8).integers(256, size=32, dtype=np.uint8))
TEXT = 'pain in the "left" k\N{LATIN SMALL LETTER E WITH ACUTE}y'
LARGEST = float(np.abs(VALUES).max())

OF_VALUES = {
    "raw": VALUES.tobytes(),
    "a part": VALUES[5:60].tobytes(),
    "float64": VALUES.astype("<f8").tobytes(),
    "float16": VALUES.astype("<f2").tobytes(),
    "bfloat16": to_bfloat16(VALUES),
    "big-endian": VALUES.astype(">f4").tobytes(),
    "big-endian float64": VALUES.astype(">f8").tobytes(),
    "big-endian float16": VALUES.astype(">f2").tobytes(),
    "big-endian bfloat16": to_bfloat16(VALUES, ">"),
    "scaled and shifted": (3 * VALUES + 1).tobytes(),
    "negated": (-VALUES).tobytes(),
    "int8": np.round(VALUES / LARGEST * 127).astype("i1").tobytes(),
    "uint8 around 128": (np.round(VALUES / LARGEST * 127) + 128).astype("u1").tobytes(),
    "int16": np.round(VALUES / LARGEST * 32767).astype("<i2").tobytes(),
    "int32 on a grid": np.round(VALUES * 2**22).astype("<i4").tobytes(),
    "uint32 in the ring": np.round((VALUES + LARGEST) * 2**20).astype("<u4").tobytes(),
    "big-endian int32": np.round(VALUES * 2**22).astype(">i4").tobytes(),
    "int64": np.round(VALUES * 2**40).astype("<i8").tobytes(),
    "hex": VALUES.tobytes().hex().encode(),
    "hex in capitals with spaces": VALUES.tobytes().hex(" ").upper().encode(),
    "base64": base64.b64encode(VALUES.tobytes()),
    "base64 behind two bytes": base64.b64encode(b"ab" + VALUES.tobytes()),
    "base64 for addresses": base64.urlsafe_b64encode(VALUES.astype(">f8").tobytes()),
    "JSON": json.dumps(VALUES.tolist()).encode(),
    "four digits": json.dumps([float(f"{v:.4g}") for v in VALUES]).encode(),
    "numpy's print": np.array2string(VALUES).encode(),
}
OF_TOKENS = {
    "int16": TOKENS.astype("<i2").tobytes(),
    "int64": TOKENS.astype("<i8").tobytes(),
    "big-endian int32": TOKENS.astype(">i4").tobytes(),
    "float32": TOKENS.astype("<f4").tobytes(),
    "JSON": json.dumps(TOKENS.tolist()).encode(),
    "base64": base64.b64encode(TOKENS.astype("<i8").tobytes()),
}
OF_KEY = {
    "raw": KEY,
    "half": KEY[16:],
    "other byte order": KEY[::-1],
    "hex": KEY.hex().encode(),
    "hex with colons": KEY.hex(":").encode(),
    "base64": base64.b64encode(KEY),
    "number": str(int.from_bytes(KEY, "big")).encode(),
    "little-endian number": str(int.from_bytes(KEY, "little")).encode(),
}
OF_TEXT = {
    "utf-8": TEXT.encode(),
    "utf-16": TEXT.encode("utf-16"),
    "JSON": json.dumps({"text": TEXT}).encode(),
    "base64": base64.b64encode(TEXT.encode()),
    "hex": TEXT.encode().hex().encode(),
}
PLANTED = [
    pytest.param(Secret(kind, value), form, id=f"{kind}, {name}")
    for kind, value, forms in (
        ("values", VALUES, OF_VALUES),
        ("tokens", TOKENS, OF_TOKENS),
        ("key", KEY, OF_KEY),
        ("text", TEXT, OF_TEXT),
    )
    for name, form in forms.items()
]


def noise(size, seed=1):
    return np.random.default_rng(seed).integers(256, size=size, dtype=np.uint8).tobytes()


@pytest.mark.parametrize(("secret", "form"), PLANTED)
@pytest.mark.parametrize("offset", [300, 301])
def test_each_form_is_found_where_it_was_planted(secret, form, offset):
    found = leaks({"reply": noise(offset) + form + noise(200, 2)}, [secret])
    assert found
    assert all(line.startswith(secret.name) and line.endswith("in reply") for line in found)


def test_nothing_is_found_where_nothing_was_planted():
    others = np.random.default_rng(9).normal(scale=0.03, size=2000).astype(np.float32)
    words = json.dumps(others.tolist()) + others.tobytes().hex() + " ".join(map(str, range(500)))
    kinds = (("values", VALUES), ("tokens", TOKENS), ("key", KEY), ("text", TEXT))
    haystacks = {"noise": noise(50_000), "values": others.tobytes(), "words": words.encode()}
    assert leaks(haystacks, [Secret(*kind) for kind in kinds]) == []


def test_a_stretch_with_one_large_value_is_not_sought_by_correlation():
    """Random bytes read as floats are like it; the stretch behind it is taken."""
    values = np.concatenate([np.full(WINDOW, 1e-9), VALUES])
    values[3] = 1.0
    windows = distinct_windows(values)
    assert windows
    assert all((window**2).max() < 0.4 for window in windows)
    assert distinct_windows(np.zeros(50)) == []


# --- a run -------------------------------------------------------------------------------------
# Where today's run keeps things; the tests below know no other place.


def own_folders(run: Path, client: str) -> list[Path]:
    """What is the client's own: others, the server included, hold none of it."""
    return [run / "clients" / client, run / "adapters" / client]


def identity_key(run: Path, client: str) -> bytes:
    return (run / "clients" / client / "identity.key").read_bytes()[1:]  # its mark is no secret


def store_of(run: Path, client: str) -> Path:
    """The store of the client's data set, which lies beside the runs of this module."""
    return run.parent / "stores" / client / "store.sqlite"


def values_of(run: Path, client: str) -> dict[str, np.ndarray]:
    """All values that a client keeps; none of them is ever sent as it is."""
    with Ledger.inspect(store_of(run, client)) as ledger:
        (name,) = ledger.runs()
        stored = ledger.get(name, "values")
    return {n: v for n, v in load(stored[1:]).items() if is_distinct(v)}


def private_values(run: Path, client: str) -> dict[str, np.ndarray]:
    """Head, mixing weights and optimiser moments.

    Not the client's expert: in shared layers it is its group's, which the server knows.
    """
    kept = values_of(run, client)
    return {
        n: v for n, v in kept.items() if n == "mixing_logits" or n.startswith(("head/", "adam/"))
    }


def is_distinct(values: np.ndarray) -> bool:
    """Whether it is more than a counter or a constant that everybody knows."""
    return values.size >= RUN and np.unique(values).size > values.size // 2


def files_by_owner(run: Path, clients: list[str]) -> dict[str, dict[str, bytes]]:
    """Every file of a run, by the client whose own it is; ``""`` for those of nobody."""
    owners = {folder: client for client in clients for folder in own_folders(run, client)}
    found: dict[str, dict[str, bytes]] = {owner: {} for owner in ["", *clients]}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        owner = next((owners[folder] for folder in path.parents if folder in owners), "")
        found[owner][str(path.relative_to(run))] = path.read_bytes()
    return found


class Records(logging.Handler):
    """Keeps every record of every logger, with its arguments and the text of an exception."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(message)s %(args)r"))

    def emit(self, record):
        if record.name.startswith("matplotlib"):  # thousands of lines about fonts
            return
        self.lines.append(self.format(record))


class Garbage(Adversary):
    """Sends one client bytes that are no message, which it logs."""

    def exchange(self, stage, requests):
        if stage == "prepare" and "t0-c1" in requests:
            requests = {**requests, "t0-c1": b"\xc1 no message"}
        return super().exchange(stage, requests)


@pytest.fixture(scope="module")
def watched(tiny_bert, tmp_path_factory):
    """Run folder, all replies and all that is said of a run in which one client fails: log records,
    events, progress.
    """
    root, records = logging.getLogger(), Records()
    level = root.level
    root.addHandler(records)
    root.setLevel(logging.DEBUG)
    made = []
    out = tmp_path_factory.mktemp("watched") / "run"
    try:
        with redirect_stderr(io.StringIO()) as shown:
            federation(tiny_bert).run(
                make_clients(),
                out,
                state=out.parent / "stores",
                events=out.parent / "events.jsonl",
                wrap_transport=lambda inner: made.append(Garbage(inner)) or made[0],
            )
    finally:
        root.removeHandler(records)
        root.setLevel(level)
    replies = b"\0".join(reply for _, _, seen in made[0].seen for reply in seen.values())
    said = {
        "log": "\n".join(records.lines).encode(),
        "events": (out.parent / "events.jsonl").read_bytes(),
        "progress": shown.getvalue().encode(),
    }
    return out, replies, said


def secrets_of(run, client, tokenizer):
    """The client's key, private values, texts and tokens."""
    sought = {"identity key": identity_key(run, client.id)}
    sought |= private_values(run, client.id)
    for i, text in enumerate(client.train["text"]):
        sought[f"text {i}"] = text
    for i, text in enumerate(client.train["text"][:20]):
        sought[f"tokens {i}"] = np.array(tokenizer(text)["input_ids"])
    return [Secret(f"{client.id}: {name}", value) for name, value in sought.items()]


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


def test_the_secrets_of_a_run_are_there_to_be_found(watched, tokenizer):
    """In the client's own folder they are; so the search below looks for the right things."""
    run, _, _ = watched
    client = make_clients()[0]
    sought = secrets_of(run, client, tokenizer)
    kept = [secret for secret in sought if ": t" not in secret.name]  # no texts, no tokens
    assert len(sought) > len(kept) + 60
    assert any(": head/" in secret.name for secret in kept)
    own = files_by_owner(run, [client.id])[client.id]
    own |= {"store": store_of(run, client.id).read_bytes()}
    found = leaks(own, kept)
    missed = [s.name for s in kept if not any(line.startswith(f"{s.name} (") for line in found)]
    assert missed == []


def test_no_secret_is_in_a_reply_in_what_is_said_or_a_file_of_others(watched, tokenizer):
    run, replies, said = watched
    assert len(replies) > 10_000
    assert all(said.values())
    assert len(said["events"]) > 2_000
    clients = make_clients()
    secrets = {client.id: secrets_of(run, client, tokenizer) for client in clients}
    files = files_by_owner(run, list(secrets))
    assert len(files[""]) > 10
    files[""] |= {"replies": replies, **said}
    for owner, haystacks in files.items():
        others = [s for client, own in secrets.items() if client != owner for s in own]
        assert leaks(haystacks, others) == []


def test_no_value_of_a_client_is_in_a_reply_or_in_what_is_said(watched):
    """Its expert included, whose shared layers leave as masked changes only."""
    run, replies, said = watched
    kept = [
        Secret(f"{client.id}: {name}", value)
        for client in make_clients()
        for name, value in values_of(run, client.id).items()
    ]
    assert any(secret.name.endswith(": own") for secret in kept)
    assert leaks({"replies": replies, **said}, kept) == []
