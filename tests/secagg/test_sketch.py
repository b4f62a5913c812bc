"""The sketch: distances come out right, the seed stays inside, and the server's view depends on
distances only.
"""

import hashlib
import math

import numpy as np
import pytest
from harness import Randomness, names

from fedtree_secagg import (
    ConfigurationError,
    Identity,
    ProtocolError,
    Roster,
    ThresholdError,
    sketch,
)
from fedtree_secagg.primitives import keys
from fedtree_secagg.primitives.gaussian import _log, _turn, normals
from fedtree_secagg.rounds import messages

CONTEXT = hashlib.sha256(b"job 1, rebuild 0").digest()
MEMBERS = names(5)
IDENTITIES = {name: Identity.generate(hashlib.sha256(name.encode()).digest()) for name in names(8)}
ROSTER = Roster({name: identity.public_bytes for name, identity in IDENTITIES.items()})
ARGS = (ROSTER, MEMBERS, CONTEXT)


def greet(members=MEMBERS, seed=0, context=CONTEXT):
    random = Randomness(seed)
    greeted = {
        m: sketch.hello(IDENTITIES[m], m, ROSTER, members, context, randomness=random())
        for m in members
    }
    states, hellos = ({m: pair[i] for m, pair in greeted.items()} for i in (0, 1))
    return random, states, hellos


def ready(members=MEMBERS, seed=0):
    random, states, hellos = greet(members, seed)
    broadcast = sketch.collect(ROSTER, members, CONTEXT, hellos)
    sealed = {m: sketch.seal(states[m], broadcast[m], randomness=random()) for m in members}
    routed = sketch.route(
        ROSTER, members, CONTEXT, broadcast[members[0]], {m: s[1] for m, s in sealed.items()}
    )
    return {m: sketch.unseal(sealed[m][0], routed[m]) for m in members}, broadcast[members[0]]


def run(vectors, members=MEMBERS, seed=0, **options):
    states, hellos = ready(members, seed)
    encoded = {m: sketch.encode(states[m], vectors[m], **options) for m in members}
    found = sketch.distances(
        encoded, roster=ROSTER, members=members, context=CONTEXT, hellos=hellos
    )
    return *found, encoded


def random_vectors(dims=(300, 700), seed=0):
    rng = np.random.default_rng(seed)
    return {m: [rng.normal(size=d).astype(np.float32) for d in dims] for m in MEMBERS}


def by_pairs(words):
    """What the specification says, one pair after the other."""
    steps = (words[:, None] - words[None]).view(np.int32).astype(np.float64)
    return (steps * steps).sum(axis=-1)


@pytest.mark.parametrize("liars", [0, 1, 3])
def test_sparse_cohorts_of_many_get_the_same_distances_by_one_product(liars):
    """Wherever the blinds put them on the circle, and whoever sends made-up words."""
    rng = np.random.default_rng(liars)
    for spread in (2**16, 2**24, 2**30):
        views = rng.integers(-spread // 2, spread // 2, size=(12, 64))
        words = (views + rng.integers(2**32, size=64)).astype(np.uint32)
        words[:liars] = rng.integers(2**32, size=(liars, 64), dtype=np.uint32)
        found, expected = sketch._squared(words), by_pairs(words)
        honest = slice(liars, None)
        np.testing.assert_allclose(found[honest, honest], expected[honest, honest], rtol=1e-9)
        assert (found == found.T).all()
        assert (found.diagonal() == 0).all()


def test_squared_distances_are_estimated_within_the_stated_error():
    vectors = random_vectors()
    order, found, _ = run(vectors, size=1024)
    assert order == MEMBERS
    assert found.shape == (2, 5, 5)
    for layer in range(2):
        x = np.stack([vectors[m][layer].astype(np.float64) for m in MEMBERS])
        true = ((x[:, None] - x[None]) ** 2).sum(-1)
        off = ~np.eye(5, dtype=bool)
        relative = found[layer][off] / true[off] - 1
        assert np.abs(relative).max() < 5 * math.sqrt(2 / 1024)
        assert np.array_equal(found[layer], found[layer].T)
        assert not found[layer][~off].any()


def test_equal_vectors_have_distance_zero_up_to_the_grid():
    vectors = random_vectors()
    vectors["c01"] = vectors["c00"]
    _, found, _ = run(vectors)
    assert found[0, 0, 1] == 0.0
    near = {m: [v + np.float32(1e-6) * i for v in vectors["c00"]] for i, m in enumerate(MEMBERS)}
    scale = 2.0**10
    _, found, _ = run(near, scale=scale)
    true = np.array(
        [
            (near["c00"][0].astype(float) - near[m][0].astype(float))
            @ (near["c00"][0].astype(float) - near[m][0])
            for m in MEMBERS
        ]
    )
    assert (found[0, 0] <= 2 * true + 2 * sketch.grid_bias(scale)).all()


def test_one_layers_projection_is_gaussian_and_differs_between_layers_and_sessions():
    eye = {m: [np.eye(1, 50, i, dtype=np.float64)[0]] * 2 for i, m in enumerate(MEMBERS)}
    _, first, sent = run(eye, size=2048)
    assert not np.array_equal(first[0], first[1])
    _, second, again = run(eye, size=2048, seed=1)
    assert not np.array_equal(first, second)
    assert sent["c00"] != again["c00"]


def view(vectors, trials, size=4):
    """The server's view in many independent sessions: the words, shape (trials, members, size)."""
    group = names(3)
    out = []
    for seed in range(trials):
        states, _ = ready(group, seed)
        bodies = [
            sketch.encode(states[m], [vectors[i]], size=size, scale=256.0)[-4 * size :]
            for i, m in enumerate(group)
        ]
        out.append([np.frombuffer(body, "<u4") for body in bodies])
    return np.array(out)


def test_a_common_shift_leaves_single_words_uniform_and_differences_unchanged_but_for_dither():
    """With the same seed, a shift moves all words alike up to one grid step; each word alone is
    uniform.
    """
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, 20))
    plain, shifted = view(x, 150), view(x + 17.25, 150)
    differences = (plain - plain[:, :1]).view(np.int32).astype(float)
    moved = (shifted - shifted[:, :1]).view(np.int32).astype(float)
    assert np.abs(differences - moved).max() <= 1
    # Uniformity of a word, with the shift and without: Kolmogorov-Smirnov below the 1e-9 bound, n =
    # 600.
    for words in (plain, shifted):
        for member in range(3):
            assert ks_uniform(words[:, member].ravel() / 2**32) < math.sqrt(
                math.log(2 / 1e-9) / (2 * 600)
            )
    # Power: without the blind the words would cluster around zero.
    raw = (np.random.default_rng(0).normal(size=600) * 256 * 5) % 2**32 / 2**32
    assert ks_uniform(raw) > 0.3


def test_a_rotation_leaves_the_distribution_of_differences_unchanged():
    """Differences of a pair are N(0, d^2) in either frame: compare the two samples, and show power
    against 1.3 d.
    """
    rng = np.random.default_rng(4)
    x = rng.normal(size=(3, 20))
    rotation, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    plain, turned, longer = (sample_of_differences(v) for v in (x, x @ rotation, 1.5 * x))
    bound = math.sqrt(
        math.log(2 / 1e-9) / 2 * (2 / 600)
    )  # two-sample Kolmogorov-Smirnov, false alarm 1e-9
    assert ks_two(plain, turned) < bound
    assert ks_two(plain**2, longer**2) > ks_two(plain**2, turned**2)
    ratio = float(np.mean(turned**2) / np.mean(plain**2))
    assert 0.7 < ratio < 1.4
    assert not 0.7 < float(np.mean(longer**2) / np.mean(plain**2)) < 1.4


def sample_of_differences(x):
    words = view(x, 150)
    return (words[:, 1] - words[:, 0]).view(np.int32).ravel().astype(float)


def ks_uniform(sample):
    ordered = np.sort(sample)
    grid = np.arange(1, len(ordered) + 1) / len(ordered)
    return float(
        np.maximum(np.abs(ordered - grid), np.abs(ordered - grid + 1 / len(ordered))).max()
    )


def ks_two(a, b):
    both = np.concatenate([a, b])
    return float(
        np.abs(
            np.searchsorted(np.sort(a), both, "right") / len(a)
            - np.searchsorted(np.sort(b), both, "right") / len(b)
        ).max()
    )


def test_normals_are_standard_normal_and_accurate():
    words = np.frombuffer(np.random.default_rng(0).bytes(8 * 200_000), "<u8")
    z = normals(words)
    assert abs(z.mean()) < 6 / math.sqrt(len(z))
    assert abs(z.var() - 1) < 6 * math.sqrt(2 / len(z))
    assert abs(float((z**4).mean()) - 3) < 6 * math.sqrt(96 / len(z))
    u = np.concatenate(
        [np.random.default_rng(1).random(10_000), [1.0, 2.0**-53, 0.5, math.sqrt(0.5)]]
    )
    u = u[u > 0]
    np.testing.assert_allclose(_log(u), np.log(u), rtol=1e-14, atol=2e-16)
    t = np.concatenate([np.random.default_rng(2).random(10_000), np.arange(8) / 8, [1 - 2.0**-53]])
    cosine, sine = _turn(t)
    np.testing.assert_allclose(cosine, np.cos(2 * np.pi * t), atol=2e-15)
    np.testing.assert_allclose(sine, np.sin(2 * np.pi * t), atol=2e-15)


def test_normals_match_golden_bits():
    words = np.arange(1, 9, dtype=np.uint64) * np.uint64(0x1F3D5B79A2C4E680)
    assert hashlib.sha256(normals(words).tobytes()).hexdigest() == GOLDEN


GOLDEN = "c22668f67ebffd7ac878f989a18b5eeeeff63c9819dc75de349df5490ac04778"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9])
def test_values_that_are_not_finite_or_would_wrap_are_refused_and_the_state_survives(bad):
    states, _ = ready()
    vector = np.ones(30)
    vector[3] = bad
    with pytest.raises(ConfigurationError, match=r"finite|wrap"):
        sketch.encode(states["c00"], [vector])
    assert sketch.encode(states["c00"], [np.ones(30)])
    with pytest.raises(ProtocolError, match="used already"):
        sketch.encode(states["c00"], [np.ones(30)])


@pytest.mark.parametrize(
    ("vectors", "options"),
    [
        ([], {}),
        ([np.ones((2, 2))], {}),
        ([np.ones(3, np.int64)], {}),
        ([np.ones(0)], {}),
        ([np.ones(3)], {"size": 0}),
        ([np.ones(3)], {"scale": -1.0}),
        ([np.ones(3)], {"scale": np.nan}),
    ],
)
def test_wrong_shapes_and_options_are_refused(vectors, options):
    states, _ = ready()
    with pytest.raises(ConfigurationError):
        sketch.encode(states["c00"], vectors, **options)


def test_a_member_that_says_no_hello_is_left_out_and_the_next_one_leads():
    random, states, hellos = greet()
    del hellos["c00"]
    broadcast = sketch.collect(*ARGS, hellos)
    assert set(broadcast) == set(MEMBERS[1:])
    sealed = {m: sketch.seal(states[m], broadcast[m], randomness=random()) for m in broadcast}
    assert [m for m, (_, data) in sealed.items() if data] == ["c01"]


def test_too_few_or_wrong_members_are_refused():
    with pytest.raises(ConfigurationError, match="at least 3"):
        sketch.instance_hash(ROSTER, MEMBERS[:2], CONTEXT)
    with pytest.raises(ConfigurationError, match="32 bytes"):
        sketch.instance_hash(ROSTER, MEMBERS, b"short")
    with pytest.raises(ConfigurationError, match="does not name"):
        sketch.instance_hash(ROSTER, (*MEMBERS, "stranger"), CONTEXT)
    with pytest.raises(ConfigurationError, match="no member"):
        sketch.hello(
            IDENTITIES["c07"], "c07", ROSTER, MEMBERS, CONTEXT, randomness=bytes(range(32))
        )
    _, _, hellos = greet()
    with pytest.raises(ThresholdError):
        sketch.collect(*ARGS, {m: hellos[m] for m in MEMBERS[:2]})


def test_hellos_of_another_context_and_impersonation_are_refused():
    _, _, hellos = greet()
    _, _, foreign = greet(context=hashlib.sha256(b"other").digest())
    for false in (foreign["c02"], hellos["c03"], b""):
        with pytest.raises(ProtocolError) as error:
            sketch.collect(*ARGS, {**hellos, "c02": false})
        assert (
            error.value.sender == "c02"
        )  # to be dropped, and not blamed: anyone on the way could have done it
        assert error.value.blames is None
    with pytest.raises(ProtocolError, match="is expected"):
        sketch.collect(
            *ARGS,
            {
                "c00": hellos["c00"],
                "c01": hellos["c01"],
                "c02": hellos["c02"],
                "c03x": hellos["c03"],
            },
        )


def test_a_hello_that_names_another_sketch_than_it_is_signed_for_blames_its_sender():
    _, _, hellos = greet()
    instance = sketch.instance_hash(*ARGS)
    wrong = messages.sign(
        IDENTITIES["c02"], instance, messages.Hello(bytes(32), "c02", bytes(range(32))), "c02"
    )
    with pytest.raises(ProtocolError, match="not for this sketch") as error:
        sketch.collect(*ARGS, {**hellos, "c02": wrong})
    assert error.value.blames == error.value.sender == "c02"


def test_a_server_cannot_slip_its_own_key_or_reorder_hellos():
    random, states, hellos = greet()
    _, _, other = greet(seed=9)
    swapped = messages.encode(messages.Hellos((other["c00"], *(hellos[m] for m in MEMBERS[1:]))))
    with pytest.raises(ProtocolError, match="own hello"):
        sketch.seal(states["c00"], swapped, randomness=random())
    backwards = messages.encode(messages.Hellos(tuple(hellos[m] for m in MEMBERS[::-1])))
    with pytest.raises(ProtocolError, match="order"):
        sketch.seal(states["c00"], backwards, randomness=random())


def test_equal_keys_are_refused():
    same = bytes(range(32))
    hellos = {m: sketch.hello(IDENTITIES[m], m, *ARGS, randomness=same)[1] for m in MEMBERS}
    with pytest.raises(ProtocolError, match="same key"):
        sketch.collect(*ARGS, hellos)


def test_a_false_seal_is_refused_and_blames_the_leader():
    random, states, hellos = greet()
    broadcast = sketch.collect(*ARGS, hellos)["c00"]
    group = sketch.Group(*ARGS, messages.decode(messages.Hellos, broadcast).hellos)
    sealed = {m: sketch.seal(states[m], broadcast, randomness=random()) for m in MEMBERS}
    good = messages.verify(messages.Seal, sealed["c00"][1], ROSTER, group.id, "c00")

    def forged(**changes):
        fields = {
            "session": good.session,
            "sender": "c00",
            "commitment": good.commitment,
            "boxes": good.boxes,
        }
        return messages.sign(
            IDENTITIES["c00"], group.id, messages.Seal(**{**fields, **changes}), "c00"
        )

    leader = sealed["c00"][0]
    channel = leader.channel.agree(group.id, "c01", group.hellos["c01"].channel_key)
    other_seed = keys.seal(channel, bytes(12), bytes(32), *group.binding("c01", good.commitment))
    cases = [
        forged(boxes=(other_seed, *good.boxes[1:])),
        forged(commitment=bytes(32)),
        forged(boxes=good.boxes[:-1]),
        forged(session=bytes(32)),
        forged(boxes=(good.boxes[1], *good.boxes[1:])),
        forged(boxes=(b"", *good.boxes[1:])),
    ]
    for data in cases:
        with pytest.raises(ProtocolError) as error:
            sketch.unseal(sealed["c01"][0], data)
        assert error.value.blames == "c00"
    for data in cases[2:4]:
        with pytest.raises(ProtocolError):
            sketch.route(*ARGS, broadcast, {"c00": data})
    with pytest.raises(ProtocolError):
        sketch.route(*ARGS, broadcast, {})
    assert (
        sketch.unseal(sealed["c01"][0], sealed["c00"][1]).seed.reveal()
        == sealed["c00"][0].seed.reveal()
    )


def test_sketches_of_another_shape_or_seed_are_refused():
    vectors = random_vectors(dims=(20,))
    states, hellos = ready()
    good = {m: sketch.encode(states[m], vectors[m], size=8) for m in MEMBERS[:4]}
    odd = sketch.encode(states["c04"], vectors["c04"], size=9)
    where = {"roster": ROSTER, "members": MEMBERS, "context": CONTEXT, "hellos": hellos}
    odd_first = {"c00": sketch.encode(ready()[0]["c00"], vectors["c00"], size=9)}
    for odd_one, others in (({"c04": odd}, good), (odd_first, {m: good[m] for m in MEMBERS[1:4]})):
        with pytest.raises(ProtocolError, match="most others") as error:
            sketch.distances({**others, **odd_one}, **where)
        assert error.value.sender in odd_one
        assert error.value.blames is None
    with pytest.raises(ProtocolError, match="at least one"):
        sketch.distances({}, **where)
    with pytest.raises(ProtocolError, match="only from members"):
        sketch.distances({**good, "c07": odd}, **where)
    group = sketch.Group(*ARGS, messages.decode(messages.Hellos, hellos).hellos)
    commitment = states["c04"].commitment
    for scale, body in ((1.0, b"123"), (math.nan, bytes(32)), (0.0, bytes(32))):
        bad = messages.Sketch(group.id, "c04", commitment, 1, 8, scale, body)
        with pytest.raises(ProtocolError, match=r"length|scale") as error:
            sketch.distances(
                {**good, "c04": messages.sign(IDENTITIES["c04"], group.id, bad, "c04")}, **where
            )
        assert error.value.blames == error.value.sender == "c04"
    order, found = sketch.distances(good, **where)
    assert order == MEMBERS[:4]
    assert found.shape == (1, 4, 4)
