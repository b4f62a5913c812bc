"""Audit `secagg_transcript`: whether the server sees anything but uniform data.

Real rounds of the installed protocol are run with updates that are as easy to recognise as can be
(zeros, and the same vector in two rounds), and everything the server receives in uploads is tested:
bytes of each client by chi-square, by their place in a word; differences between two rounds with
equal updates; repeated blocks within and across uploads; sums against the exact integers; and the
game in which the server must say which of two sets of updates with the same sum it was given. What
the server learns beside the uploads (shares, votes) is covered by the protocol's own tests.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.errors import MissingEvidence
from fedtree_audits.rigs import rounds
from fedtree_audits.rigs.rounds import CLIENTS, WIDTH, Seen, Words, run_rounds
from fedtree_audits.run_folder import RunFolder
from fedtree_audits.statistics.scores import Floats
from fedtree_audits.statistics.verdict import POWER, SIGNIFICANCE, Check, Power, Result
from fedtree_secagg import Ring, SecAggError
from fedtree_secagg.rounds import messages
from fedtree_secure.testing import SERVER, FedTreeError
from fedtree_secure.testing import messages as wire

QUESTION = "Does the server see anything but uniform data?"
ROUNDS = 6
WORST = 0.25  # epsilon of a word; the claim is 0, of which twice is no limit
# bytes; two of n random blocks agree with probability n^2 / 2^65, below 1e-9 for the 70,000 seen
# here
BLOCK = 8


def audit_ring(ring: Ring, key: bytes, hashes: dict[str, str] | None = None) -> Result:
    """Audit rounds that mask with this ring.

    Args:
        ring: the shipped one, or a broken one.
        key: 32 bytes that all randomness comes from; its hash is reported.
        hashes: of files that were read.
    """
    seen = run_rounds(ring, _updates(key), key)
    checks = [*_uniform(seen), _differences(seen), *_blocks(seen), _sums(seen), _game(seen)]
    return Result(
        audit="secagg_transcript",
        question=QUESTION,
        claim="uploads are uniform whatever is uploaded, and nothing but exact sums opens",
        adversary="server: all uploads of all rounds, choosing the clients' updates",
        assumptions=(
            "the protocol audited here is the one installed where the run took place",
            "AES-CTR keystreams and X25519 keys are as good as random; statistics cannot show that",
        ),
        checks=checks,
        power=_power(),
        hashes={"key commitment": hashlib.sha256(key).hexdigest()} | (hashes or {}),
        figures={"rounds": ROUNDS, "clients": len(CLIENTS), "words": WIDTH},
    )


def audit_run(run: RunFolder) -> Result:
    """Audit the installed protocol, and what the run kept of its own uploads: their hashes, or all
    of them.
    """
    found = audit_ring(
        Ring(32), os.urandom(32), run.hashes("job.json", "transcript.txt", "messages.bin")
    )
    try:
        listed, kept = uploads(run)
    except MissingEvidence as missing:
        return _with(found, missing=(str(missing),))
    twice = len(listed) - len(set(listed))
    checks = [
        Check(
            "uploads of the run",
            twice == 0,
            f"{twice} of {len(listed)} uploads have the hash of another one",
        )
    ]
    if kept is None:
        only = "of the run itself only hashes were kept (run --auditable keeps the uploads)"
        return _with(found, checks=(*found.checks, *checks), assumptions=(*found.assumptions, only))
    return _with(found, checks=(*found.checks, *checks, *_kept(kept)))


def uploads(run: RunFolder) -> tuple[list[str], dict[str, list[Words]] | None]:
    """Return the hashes of all uploads, and by client their masked words in order; None if no
    messages were kept.

    Raises:
        MissingEvidence: no transcript, or a line or message of it cannot be read.
    """
    path, store = run.path / "transcript.txt", run.path / "messages.bin"
    if not path.is_file():
        raise MissingEvidence(f"{path} is not there: uploads of the run itself were not looked at")
    data = store.read_bytes() if store.is_file() else None
    listed, words, at = list[str](), dict[str, list[Words]](), 0
    for line in path.read_text("utf-8").splitlines()[1:]:
        try:
            _, sender, receiver, stage, size, digest = line.split()
            start, at = at, at + int(size)
            if not stage.endswith("/mask") or receiver != SERVER:
                continue
            listed.append(digest)
            if data is not None:
                words.setdefault(sender, []).append(_body(data[start:at]))
        except (ValueError, SecAggError, FedTreeError) as error:
            raise MissingEvidence(
                f"{path}: {line[:80]!r} or its message cannot be read: {error}"
            ) from None
    return listed, words if data is not None else None


def _body(message: bytes) -> Words:
    reply = wire.decode_reply(message)
    payload = reply.payload if isinstance(reply, wire.Protocol) else b""
    return np.frombuffer(messages.detach(payload)[1], "<u4")


def _kept(words: Mapping[str, list[Words]]) -> list[Check]:
    """The same tests on a run's own uploads, whatever was uploaded."""
    everything = np.concatenate([body for bodies in words.values() for body in bodies])
    worst = min(
        _chi_square(column) for column in everything.astype("<u4").view(np.uint8).reshape(-1, 4).T
    )
    gaps = [
        b - a
        for bodies in words.values()
        for a, b in itertools.pairwise(bodies)
        if len(a) == len(b)
    ]
    blocks = sum(len(body) // 2 for bodies in words.values() for body in bodies)
    twice = _repeats(
        np.concatenate([body[: len(body) // 2 * 2] for bodies in words.values() for body in bodies])
    )
    chance = float(stats.poisson.sf(twice - 1, blocks**2 / 2.0**65))
    found = [
        Check.test(
            "bytes of the run's uploads",
            min(1.0, 4 * worst),
            f"{len(everything)} words, worst of four places",
        ),
        Check.test(
            "blocks of the run's uploads",
            chance,
            f"{twice} of {blocks} blocks of {BLOCK} bytes occur twice",
        ),
    ]
    if gaps:
        least = _chi_square(np.concatenate(gaps).astype("<u4").view(np.uint8)[3::4])
        text = f"highest bytes of {len(gaps)} differences of a client's uploads"
        found.append(Check.test("rounds of the run", least, text))
    return found


def _with(result: Result, **changes: object) -> Result:
    import dataclasses

    return dataclasses.replace(result, **changes)  # type: ignore[arg-type]


def _updates(key: bytes) -> list[Mapping[str, Floats]]:
    """Rounds 0 and 1: zeros. 2 and 3: the same vectors. 4: others with the sum of 5, moved between
    two clients.
    """
    rng = np.random.default_rng(list(hashlib.sha256(b"updates" + key).digest()[:8]))
    zeros = {name: np.zeros(WIDTH) for name in CLIENTS}
    same = {name: rng.uniform(-1, 1, WIDTH) for name in CLIENTS}
    high = zeros | {CLIENTS[0]: np.full(WIDTH, 0.9), CLIENTS[1]: np.full(WIDTH, -0.9)}
    low = zeros | {CLIENTS[0]: np.full(WIDTH, -0.9), CLIENTS[1]: np.full(WIDTH, 0.9)}
    return [zeros, zeros, same, same, high, low]


def _uniform(seen: Sequence[Seen]) -> list[Check]:
    found = []
    for name in CLIENTS:
        words = np.concatenate([each.bodies[name] for each in seen])
        worst = min(
            _chi_square(column) for column in words.astype("<u4").view(np.uint8).reshape(-1, 4).T
        )
        found.append(
            Check.test(
                f"uploads of {name}",
                min(1.0, 4 * worst),
                "bytes by place, worst of four, times four",
            )
        )
    return found


def _chi_square(values: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> float:
    return float(stats.chisquare(np.bincount(values, minlength=256)).pvalue)


def _differences(seen: Sequence[Seen]) -> Check:
    """With equal updates, the difference of two rounds is that of their masks."""
    gaps = [seen[b].bodies[n] - seen[a].bodies[n] for a, b in ((0, 1), (2, 3)) for n in CLIENTS]
    worst = min(_chi_square(gap.astype("<u4").view(np.uint8)) for gap in gaps)
    return Check.test(
        "equal updates in two rounds",
        min(1.0, worst * len(gaps)),
        f"worst of {len(gaps)} differences",
    )


def _blocks(seen: Sequence[Seen]) -> list[Check]:
    """Blocks of zeros' uploads: within one upload, and over all of them."""
    uploads = [each.bodies[name] for each in seen[:2] for name in CLIENTS]
    return [
        Check(f"blocks {where}", twice == 0, f"{twice} of {BLOCK} bytes occur twice")
        for where, twice in (
            ("of one upload", max(_repeats(words) for words in uploads)),
            ("of all uploads", _repeats(np.concatenate(uploads))),
        )
    ]


def _repeats(words: Words) -> int:
    blocks = np.ascontiguousarray(words).view("<u8")
    return len(blocks) - len(np.unique(blocks))


def _sums(seen: Sequence[Seen]) -> Check:
    right = sum(
        each.opened is not None and np.array_equal(each.opened, sum(each.integers.values()))
        for each in seen
    )
    return Check(
        "exact sums",
        right == len(seen),
        f"{right} of {len(seen)} rounds opened the exact sum of integers",
    )


def _game(seen: Sequence[Seen]) -> Check:
    """Rounds 4 and 5 have equal sums: guess from each coordinate of two uploads which client holds
    the large value.
    """
    large, total = 0, 0
    for each, larger, smaller in (
        (seen[4], CLIENTS[0], CLIENTS[1]),
        (seen[5], CLIENTS[1], CLIENTS[0]),
    ):
        large += int(
            (each.bodies[larger].view(np.int32) > each.bodies[smaller].view(np.int32)).sum()
        )
        total += WIDTH
    p_value = float(stats.binomtest(large, total, 0.5).pvalue)
    return Check.test(
        "which of two equal sums", p_value, f"guessed right in {large / total:.4f} of {total} words"
    )


@functools.lru_cache(maxsize=1)
def _power() -> Power:
    """Of the game: how often a word must be guessed right to be noticed, as the epsilon that allows
    it (no delta).
    """
    words = 2 * WIDTH
    right = 0.5 + float(stats.norm.isf(SIGNIFICANCE / 2) + stats.norm.ppf(POWER)) / (
        2 * math.sqrt(words)
    )
    found = math.log(right / (1 - right))
    how = (
        f"guessing {right:.3f} of {words} words right where uniform uploads allow half; "
        "no leak at all is claimed"
    )
    return Power(0.0, found, how, quantity="epsilon of one uploaded word", limit=WORST)


def _variant(make: type[Ring]) -> Variant:
    return lambda seed: audit_ring(make(32), hashlib.sha256(f"transcript/{seed}".encode()).digest())


AUDIT = Audit(
    name="secagg_transcript",
    question=QUESTION,
    on_run=audit_run,
    correct=_variant(Ring),
    parties=frozenset(),
    mutants={
        "mask reuse": _variant(rounds.ReusedMasks),
        "short keystream": _variant(rounds.ShortKeystream),
        "one unmasked client": _variant(rounds.OneUnmasked),
        "masks of the wrong range": _variant(rounds.NarrowMasks),
        "a missing mask": _variant(rounds.MissingMask),
    },
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
