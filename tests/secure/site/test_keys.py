"""Keys, cards and rosters: nobody enters another's key, and what was revoked stays out."""

import dataclasses
import json

import pytest

from fedtree_secagg import Identity
from fedtree_secure.errors import ConfigurationError, StoreError
from fedtree_secure.key_file import card_of, new_key, read_card, read_identity
from fedtree_secure.roster_file import make_roster, read_roster, revoke
from fedtree_secure.storage import SecretBox

OPEN = SecretBox(None)


def identity(number):
    return Identity.generate(bytes([number, *range(31)]))


@pytest.fixture
def server():
    return identity(200)


@pytest.fixture
def first(server):
    return make_roster("clinics", server, [card_of(f"c{i}", identity(i)) for i in range(3)])


def test_a_key_is_made_once_and_private(tmp_path):
    path = tmp_path / "a.key"
    made = new_key(path, OPEN)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_identity(path, OPEN).public_bytes == made.public_bytes
    with pytest.raises(ConfigurationError, match="never overwritten"):
        new_key(path, OPEN)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="readable by others"):
        read_identity(path, OPEN)


def test_a_key_that_is_missing_is_not_made(tmp_path):
    with pytest.raises(ConfigurationError, match="keys new"):
        read_identity(tmp_path / "none.key", OPEN)
    assert list(tmp_path.iterdir()) == []


def test_a_key_at_rest_opens_with_the_operators_key_alone(tmp_path):
    box = SecretBox(b"k" * 32)
    made = new_key(tmp_path / "a.key", box)
    assert made.to_private_bytes() not in (tmp_path / "a.key").read_bytes()
    with pytest.raises(StoreError, match="encrypted"):
        read_identity(tmp_path / "a.key", OPEN)


def test_a_card_with_somebody_elses_key_is_refused(tmp_path):
    card_of("c0", identity(0)).write(tmp_path / "card.json")
    found = json.loads((tmp_path / "card.json").read_text())
    for change in ({"name": "c1"}, {"key": identity(1).public_bytes.hex()}, {"proof": "00" * 64}):
        (tmp_path / "changed.json").write_text(json.dumps({**found, **change}))
        with pytest.raises(ConfigurationError, match="not signed by the key"):
            read_card(tmp_path / "changed.json")


def test_a_roster_that_was_changed_is_refused(tmp_path, first):
    first.write(tmp_path / "roster.json")
    assert read_roster(tmp_path / "roster.json").digest == first.digest
    found = json.loads((tmp_path / "roster.json").read_text())
    del found["clients"]["c2"]
    (tmp_path / "roster.json").write_text(json.dumps(found))
    with pytest.raises(ConfigurationError, match="not signed by the server"):
        read_roster(tmp_path / "roster.json")


def test_each_version_has_another_digest_and_names_the_one_before(server, first):
    second = make_roster("clinics", server, [card_of("c3", identity(3))], first)
    assert (second.version, second.previous) == (2, first.digest)
    assert second.digest != first.digest
    assert sorted(second.clients) == ["c0", "c1", "c2", "c3"]


def test_another_key_needs_the_signature_of_the_one_that_it_replaces(server, first):
    with pytest.raises(ConfigurationError, match="that key did not sign it"):
        make_roster("clinics", server, [card_of("c0", identity(9))], first)
    with pytest.raises(ConfigurationError, match="that key did not sign it"):
        make_roster("clinics", server, [card_of("c0", identity(9), identity(8))], first)
    second = make_roster("clinics", server, [card_of("c0", identity(9), identity(0))], first)
    assert second.clients["c0"].key == identity(9).public_bytes.hex()
    assert second.revoked == (identity(0).public_bytes.hex(),)


def test_a_revoked_key_never_comes_back(server, first):
    second = revoke(first, server, "c1")
    assert sorted(second.clients) == ["c0", "c2"]
    with pytest.raises(ConfigurationError, match="revoked key of 'c1'"):
        make_roster("clinics", server, [card_of("c1", identity(1))], second)
    with pytest.raises(ConfigurationError, match="no 'c1'"):
        revoke(second, server, "c1")


def test_only_the_same_server_makes_the_next_version(first):
    with pytest.raises(ConfigurationError, match="only the same server"):
        make_roster("clinics", identity(201), [], first)


def test_two_sites_with_one_key_are_refused(server):
    with pytest.raises(ConfigurationError, match="share a key"):
        make_roster("clinics", server, [card_of("c0", identity(0)), card_of("c1", identity(0))])


def test_a_card_whose_labels_are_changed_is_refused(tmp_path):
    card = card_of("c0", identity(0), labels=("yes", "no"))
    card.write(tmp_path / "card.json")
    assert read_card(tmp_path / "card.json") == card
    for changed in (("no", "yes"), ()):
        with pytest.raises(ConfigurationError, match="not signed by the key"):
            dataclasses.replace(card, labels=changed).check()
    for labels in (("yes",), ("yes", "yes"), ("yes", "")):
        with pytest.raises(ConfigurationError, match="at least two, each once"):
            card_of("c0", identity(0), labels=labels)


def test_a_roster_says_who_may_share_a_head():
    def card(at, *labels):
        return card_of(f"c{at}", identity(at), labels=labels)

    server = identity(7)
    cards = [card(0, "yes", "no"), card(1, "yes", "no"), card(2, "a", "b"), card(3)]
    found = make_roster("clinics", server, cards)
    assert [group.members for group in found.head_groups(2)] == [("c0", "c1")]
    assert found.head_groups(3) == ()
    with pytest.raises(ConfigurationError, match="the same labels in another order"):
        make_roster("clinics", server, [card(0, "yes", "no"), card(1, "no", "yes")])


def test_a_card_without_labels_reads_as_before_there_were_any(tmp_path):
    roster = make_roster("clinics", identity(7), [card_of("c0", identity(0))])
    roster.write(tmp_path / "roster.json")
    assert "labels" not in (tmp_path / "roster.json").read_text()
    assert read_roster(tmp_path / "roster.json").digest == roster.digest
