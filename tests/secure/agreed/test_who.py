"""A node's name is its key's word, for one run, one node and one question."""

import pytest

from fedtree_secagg import Identity, Roster
from fedtree_secure.agreed import who
from fedtree_secure.agreed.messages import WireError

SERVER, SITE, OTHER = (Identity.generate(bytes([n, *range(31)])) for n in (1, 2, 3))
ROSTER = Roster({"site": SITE.public_bytes, "other": OTHER.public_bytes})
NONCE = bytes(range(32))


def asked(run="run", node="7", nonce=NONCE, key=SERVER):
    return who.ask(key, run, node, nonce)


def answered(data, node="7", name="site", key=SITE):
    return who.answer(data, SERVER.public_bytes, name, key, node)


def test_a_site_is_known_by_its_answer():
    assert who.known(answered(asked()), ROSTER, "run", "7", NONCE) == "site"


@pytest.mark.parametrize(
    "other", [("run-2", "7", NONCE), ("run", "8", NONCE), ("run", "7", b"n" * 32)]
)
def test_an_answer_counts_for_its_own_question_alone(other):
    assert who.known(answered(asked()), ROSTER, *other) is None


def test_nobody_answers_in_anothers_name():
    assert who.known(answered(asked(), name="other"), ROSTER, "run", "7", NONCE) is None
    assert who.known(answered(asked(), name="nobody"), ROSTER, "run", "7", NONCE) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff" * 9, asked(key=OTHER), asked(node="8"), asked(nonce=b"short"), asked() + b"x"],
)
def test_a_site_answers_its_server_about_its_own_node_alone(data):
    with pytest.raises(WireError):
        answered(data)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 64, asked()])
def test_garbage_is_nobody(data):
    assert who.known(data, ROSTER, "run", "7", NONCE) is None
