"""The parts one by one: identities, secrets, shares, quantiser, ring, message codecs."""

import copy
import hashlib
import pickle
import threading
from itertools import combinations

import numpy as np
import pytest
from harness import CONTEXT, Randomness, World, names
from hypothesis import given
from hypothesis import strategies as st

import fedtree_secagg
from fedtree_secagg import (
    ConfigurationError,
    Identity,
    ProtocolError,
    Quantiser,
    Ring,
    Roster,
    SecAggError,
    ThresholdError,
    client,
)
from fedtree_secagg.primitives import keys, ring, shamir
from fedtree_secagg.primitives.secret import OneShot, Secret, check_randomness
from fedtree_secagg.rounds import messages

FRESH = bytes(range(32))
KEY = keys.Pair(FRESH).public_bytes


def stream(seed=0):
    return keys.Stream(hashlib.sha256(bytes([seed])).digest(), b"test")


def test_exported_names():
    assert set(fedtree_secagg.__all__) == {
        *(
            "ConfigurationError",
            "Identity",
            "Node",
            "NodeSum",
            "Plan",
            "ProtocolError",
            "Quantiser",
            "Ring",
            "Roster",
        ),
        *("Beacon", "Sparse", "beacon"),
        *("SecAggError", "Session", "ThresholdError", "client", "server", "sketch"),
    }
    assert issubclass(ConfigurationError, SecAggError)
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(ProtocolError, SecAggError)
    assert issubclass(ThresholdError, SecAggError)


# Secrets


def test_states_and_secrets_print_nothing_and_are_neither_pickled_nor_copied():
    run = World.nested().run()
    identity = run.world.identities["c00"]
    states = [
        state for stage in run.states.values() for state in stage.values() if state is not None
    ]
    held = [identity, Secret(FRESH), *states, *run.server_states.values()]
    known = {identity.to_private_bytes(), run.states["advert"]["c00"].mask.to_private_bytes()}
    known |= {seed.reveal() for seed in run.states["advert"]["c00"].seeds}
    for thing in held:
        assert repr(thing) == f"<{type(thing).__name__}>" == str(thing)
        for dump in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="neither pickled nor copied"):
                dump(thing)
    text = "".join(map(repr, held)) + "".join(map(str, held))
    assert not any(secret.hex() in text or repr(secret) in text for secret in known)


def test_errors_of_a_whole_round_never_hold_secrets(caplog):
    caplog.set_level(0)
    world = World.nested()
    run = world.run(upto="masked")
    secrets = [run.states["advert"][n].mask.to_private_bytes() for n in names(9)]
    secrets += [seed.reveal() for n in names(9) for seed in run.states["advert"][n].seeds]
    texts = [caplog.text]
    for stage in (
        "advert",
        "adverts",
        "shares",
        "inbox",
        "masked",
        "survivors",
        "vote",
        "votes",
        "reveal",
    ):
        for damage in (lambda d: d[:-1], lambda d: b"", lambda d: d + b"\0"):
            world.random = Randomness(0)
            with pytest.raises(SecAggError) as error:
                world.run(tamper={(stage, "c01"): damage})
            texts.append(str(error.value))
            texts.append(repr(error.value.__cause__))
    joined = "".join(texts)
    assert not any(secret.hex() in joined or repr(secret)[2:-1] in joined for secret in secrets)


def test_secrets_compare_by_value():
    assert Secret(FRESH) == Secret(FRESH)
    assert Secret(FRESH) != Secret(bytes(32))
    assert Secret(FRESH) != FRESH
    with pytest.raises(TypeError):
        hash(Secret(FRESH))


def test_of_two_threads_one_gets_the_state():
    state, inside, leave = OneShot(), threading.Event(), threading.Event()

    def hold():
        with state:
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(5)
    with pytest.raises(ProtocolError, match="used already"), state:
        pass
    leave.set()
    thread.join()


@pytest.mark.parametrize(
    "bad", [b"", bytes(31), bytes(33), bytes(32), b"\x07" * 32, bytearray(FRESH), "x" * 32, None]
)
def test_bad_randomness_is_refused_by_every_step_that_takes_some(bad):
    with pytest.raises(ConfigurationError, match="randomness"):
        check_randomness(bad)
    with pytest.raises(ConfigurationError, match="randomness"):
        Identity.generate(bad)
    world = World.nested()
    run = world.run(upto="shares")
    me = world.identities["c00"]
    steps = [
        lambda: client.advertise(
            me, "c00", world.roster, world.plan, round=0, attempt=0, randomness=bad
        ),
        lambda: client.share(run.states["advert"]["c00"], b"", randomness=bad),
        lambda: client.mask(run.states["shares"]["c00"], b"", world.updates["c00"], randomness=bad),
    ]
    for step in steps:
        with pytest.raises(ConfigurationError, match="randomness"):
            step()


# Identities and rosters


def test_identity_is_stored_and_read_back():
    identity = Identity.generate(FRESH)
    again = Identity(identity.to_private_bytes())
    assert again.public_bytes == identity.public_bytes
    assert Roster({"a": identity.public_bytes}).verifies("a", again.sign(b"x"), b"x")
    for bad in (b"", bytes(31), "x" * 32):
        with pytest.raises(ConfigurationError, match="32 private bytes"):
            Identity(bad)


def test_roster_order_hash_and_lookups():
    a, b = (Identity.generate(bytes([i, *range(31)])).public_bytes for i in range(2))
    roster = Roster({"b": b, "a": a})
    assert roster.names == ("a", "b") == tuple(roster)
    assert len(roster) == 2
    assert "a" in roster
    assert "c" not in roster
    assert roster.hash == Roster({"a": a, "b": b}).hash != Roster({"a": b, "b": a}).hash
    assert not roster.verifies("c", bytes(64), b"")
    assert not roster.verifies("a", bytes(64), b"")


@pytest.mark.parametrize(
    "keys_by_name",
    [
        {},
        {"a": b"short"},
        {"": bytes(32)},
        {"a" * 65: bytes(32)},
        {"a\n": bytes(32)},
        {"a": bytes(32), "b": bytes(32)},
    ],
)
def test_bad_rosters_are_refused(keys_by_name):
    with pytest.raises(ConfigurationError):
        Roster(keys_by_name)


# Shares


@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.integers(0, 4), st.data())
def test_any_threshold_of_shares_rebuilds_the_secret(secret, threshold, extra, data):
    points = data.draw(
        st.lists(
            st.integers(1, 65535),
            min_size=threshold + extra,
            max_size=threshold + extra,
            unique=True,
        )
    )
    shares = shamir.split(secret, points, threshold, stream())
    assert all(shamir.is_share(share) for share in shares)
    chosen = data.draw(st.permutations(range(len(points))))[:threshold]
    weights = shamir.weights_at_zero([points[i] for i in chosen])
    assert shamir.combine([shares[i] for i in chosen], weights) == secret


def test_fewer_shares_or_a_wrong_one_give_another_value():
    secret, points = FRESH, [1, 2, 3, 4, 5]
    shares = shamir.split(secret, points, 3, stream())
    for pair in combinations(range(5), 2):
        assert (
            shamir.combine(
                [shares[i] for i in pair], shamir.weights_at_zero([points[i] for i in pair])
            )
            != secret
        )
    wrong = [bytes(66), *shares[1:3]]
    assert shamir.combine(wrong, shamir.weights_at_zero([1, 2, 3])) != secret
    assert not shamir.is_share(b"\xff" * 66)
    assert not shamir.is_share(shamir.PRIME.to_bytes(66, "big"))
    assert not shamir.is_share(bytes(65))


def test_shares_of_different_secrets_look_alike():
    """One share of a fixed secret is uniform in the field: its top bits are balanced over 400
    dealings.
    """
    tops = [shamir.split(bytes(32), [1, 2], 2, stream(i % 251))[0][1] >> 7 for i in range(200)]
    assert 60 < sum(tops) < 140  # 5.6 standard deviations


# Quantiser


@given(st.integers(2, 31), st.floats(1e-9, 1e9), st.integers(0, 2**32))
def test_quantised_values_are_within_one_step_and_inside_the_grid(bits, clip, seed):
    grid = Quantiser(clip, bits)
    values = np.random.default_rng(seed).uniform(-clip, clip, 50)
    values[:4] = clip, -clip, 0.0, np.nextafter(clip, 0)
    integers = grid.quantise(values, hashlib.sha256(str(seed).encode()).digest())
    assert integers[:3].tolist() == [grid.max_integer, -grid.max_integer, 0]
    assert np.abs(integers).max() <= grid.max_integer
    assert (np.abs(grid.decode(integers) - values) <= grid.step * (1 + 1e-6) + clip * 1e-9).all()


def test_rounding_is_unbiased_with_power_against_rounding_to_nearest():
    """Mean of n coins of probability f: standard error sqrt(f (1-f) / n); bound of 6.5 of them,
    false alarm 1e-10.
    """
    grid, n = Quantiser(1.0, 8), 40_000
    for fraction in (0.1, 0.5, 0.9):
        for base in (-5, 3):
            value = (base + fraction) / grid.scale
            mean = float(
                grid.quantise(
                    np.full(n, value), hashlib.sha256(bytes([base & 255])).digest()
                ).mean()
            )
            assert abs(mean - (base + fraction)) < 6.5 * np.sqrt(fraction * (1 - fraction) / n)
            assert fraction == 0.5 or abs(
                round(base + fraction) - (base + fraction)
            ) > 6.5 * 0.5 / np.sqrt(n)


def test_float32_input_is_quantised_as_its_float64_value():
    values = np.random.default_rng(0).uniform(-1, 1, 40_000).astype(np.float32)
    grid = Quantiser(1.0, 24)
    assert np.array_equal(
        grid.quantise(values, FRESH), grid.quantise(values.astype(np.float64), FRESH)
    )
    assert not np.array_equal(grid.quantise(values, FRESH), grid.quantise(values, FRESH[::-1]))


def test_saturation_is_explicit_and_does_not_excuse_nan():
    values = np.array([-5.0, 0.5, 7.0])
    with pytest.raises(ConfigurationError, match="beyond the clip"):
        Quantiser(1.0, 8).quantise(values, FRESH)
    assert Quantiser(1.0, 8, saturate=True).quantise(values, FRESH)[[0, 2]].tolist() == [-127, 127]
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ConfigurationError, match="nan or infinite"):
            Quantiser(1.0, 8, saturate=True).quantise(np.array([0.0, bad]), FRESH)


@pytest.mark.parametrize(
    ("clip", "bits"),
    [(0.0, 8), (-1.0, 8), (np.nan, 8), (np.inf, 8), (1.0, 1), (1.0, 32), (5e-324, 30)],
)
def test_bad_quantisers_are_refused(clip, bits):
    with pytest.raises(ConfigurationError, match="quantiser"):
        Quantiser(clip, bits)


# Ring


@pytest.mark.parametrize("bits", [16, 32])
def test_masks_cancel_and_equal_the_keystream(bits):
    integers = Ring(bits)
    values = np.arange(70_001).astype(integers.dtype)
    target = values.copy()
    integers.add_masks(target, [(FRESH, 1), (CONTEXT, -1)])
    assert not np.array_equal(target, values)
    one = np.zeros(4, integers.dtype)
    integers.add_masks(one, [(FRESH, 1)])
    # AES-256 of the counter 2 under the key 00..1f, FIPS 197 appendix C.3 construction
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    block = Cipher(algorithms.AES(FRESH), modes.ECB()).encryptor().update((2).to_bytes(16, "big"))
    assert one.tobytes() == block[: 4 * integers.word_bytes]
    integers.add_masks(target, [(CONTEXT, 1), (FRESH, -1)])
    assert np.array_equal(target, values)


@pytest.mark.parametrize("count", [1, 7, 32_768, 100_003])
def test_both_ways_to_the_keystream_agree(monkeypatch, count):
    found = []
    for mode in (ring.counter, ring.galois):
        monkeypatch.setattr(ring, "fastest_mode", lambda mode=mode: mode)
        words = np.zeros(count, "<u4")
        Ring(32).add_masks(words, [(FRESH, 1), (CONTEXT, -1)])
        found.append(words)
    assert np.array_equal(*found)
    assert len(np.unique(found[0])) > 0.99 * count


def test_ring_widths_and_byte_order(monkeypatch):
    with pytest.raises(ConfigurationError, match="16 and 32"):
        Ring(64)
    monkeypatch.setattr("sys.byteorder", "big")
    with pytest.raises(ConfigurationError, match="big-endian"):
        Ring(32)


# Uploads


def test_an_upload_is_written_in_place_and_its_body_aligned():
    def write(body):
        assert len(body) == 40
        body[:] = bytes(range(40))
        return b"signed"

    upload = messages.attach(6, 40, write)
    assert upload == b"\0\6signed" + bytes(8) + bytes(range(40))
    assert messages.detach(upload) == (b"signed", memoryview(bytes(range(40))))
    with pytest.raises(ValueError, match="different structures"):
        messages.attach(7, 40, write)


def test_an_upload_that_cannot_be_written_fails_with_the_cause():
    def write(body):
        words = np.frombuffer(body, "<u4")
        raise ConfigurationError(f"no {len(words)} values")

    with pytest.raises(ConfigurationError, match="no 10 values"):
        messages.attach(6, 40, write)
