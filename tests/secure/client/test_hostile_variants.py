"""Variants of the attacks in docs/threats.md, by a server that holds the right key and by a thief
of a disk who holds none.
"""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from small_jobs import rows
from takeover import changed, hostile

from fedtree_dp import DPSGD, PrivacyBudget
from fedtree_secure import StoreError, Topology, Training
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.envelope import seal
from fedtree_secure.agreed.messages import OpenedSum, Protocol, Refused, pack
from fedtree_secure.agreed.moves import mean_of, node_digest, start
from fedtree_secure.agreed.round_plan import reach
from fedtree_secure.client.data_sets import DataSets
from fedtree_secure.storage import KEY_FILE

VICTIM = "t0-c0"
TRAINING = Training(records=60, sample_rate=0.5, head_steps=0, max_length=16)
ONE = {"topology": Topology(source="one_group"), "training": TRAINING}
SOME = {
    "topology": Topology(sketch_size=64, significance=0.5, cut="silhouette"),
    "training": TRAINING,
    "privacy": PrivacyBudget(epsilon=400, delta=1e-3),  # so that noise does not decide the tree
}


def told(party, sums, clip, external=None):
    """Experts that a server invents: sums of rounds by number, and digests that follow from them.

    Args:
        sums: for each round the integer that every coordinate of every own node adds up to, as a
            share of what all members can reach.
    """
    external = party.facts.initial if external is None else external
    grid, values, opened = party.quantiser(clip, merge=False), {}, []
    for node in party.nodes():
        values[node.name] = start(node, party.facts.initial)
        count = len(node.members)
        for number, share in sums.items():
            total = np.full(node.width, int(share * count * grid.max_integer), dtype="<i4")
            entry = OpenedSum(number, node.name, count, clip, total.tobytes())
            mean = mean_of(entry, node, grid, party.job.masking.min_group)
            if party.job.training.local_steps == 1:
                values[node.name].follow_gradient(mean, party.job.training.learning_rate)
            else:
                values[node.name].add(mean)
            opened.append(entry)
    digests = tuple(
        node_digest(node, values[node.name], np.asarray(external, np.float32))
        for node in party.nodes()
    )
    opened.sort(key=lambda entry: (entry.round, entry.node))
    return wire.Experts(tuple(opened), digests, pack(external)), values


def farthest(party):
    """Largest distance of a client's cluster expert from its public beginning."""
    initial = party.facts.initial[: len(party.store.state.own)]
    return float(np.abs(party.store.state.own - initial).max())


# --- other-experts ------------------------------------------------------------------------------


def test_hostile_other_experts_a_consistent_lie_at_the_end_is_refused(tiny_bert, tmp_path):
    """No masked round follows `Finish`, in whose plan digests would be bound: one client could be
    delivered a back door, of its external expert and of its last sums. So members sign what they
    got, and keep it when enough others signed the same.
    """

    def script(server, requests):
        party, finish = server.party(VICTIM), requests[VICTIM]
        experts = finish.experts
        assert party.mixing().any()  # or no external expert is delivered
        bound = 0.99 * reach(party.job, party.job.rounds + 1)
        door = (party.facts.initial + np.float32(bound)).astype(np.float32)
        own = {node.name: node for node in party.nodes()}
        digests = tuple(
            changed(entry, external=_outside(own[entry.node], door)) if entry.node in own else entry
            for entry in experts.digests
        )
        lie = changed(experts, digests=digests, external=pack(door))
        before = party.store.state.to_bytes()
        votes = []
        for name, honest in requests.items():
            reply = server.send(name, wire.Finish(lie) if name == VICTIM else honest)
            if isinstance(reply, wire.Voted):
                votes.append((name, reply.signature))
        assert server.send(VICTIM, wire.Deliver(tuple(votes))) == Refused("experts")
        assert server.send(VICTIM, wire.Finish(lie)) is not None
        alone = tuple(vote for vote in votes if vote[0] == VICTIM) * 4
        assert server.send(VICTIM, wire.Deliver(alone)) == Refused("experts")
        assert party.store.state.to_bytes() == before

    hostile(tiny_bert, tmp_path / "run", "finish", script, **SOME)


def _outside(node, external):
    data = np.ascontiguousarray(node.gather(external), dtype="<f4").tobytes()
    return hashlib.sha256(b"fedtree-secure/external/v1\n" + data).digest()


def test_hostile_other_experts_an_early_finish_does_not_widen_the_reach(tiny_bert, tmp_path):
    """`Finish` takes sums of all of the job's rounds at any time, and rounds may follow it: before
    round 1 the expert of every member lies where no round has moved it.
    """

    def script(server, requests):
        begin = requests[VICTIM]
        assert reach(server.party(VICTIM).job, begin.round) == 0.0
        for name in requests:
            experts, _ = told(server.party(name), {1: 1.0, 2: 1.0}, begin.clip)
            server.send(name, wire.Finish(experts))
        moved = changed(experts, opened=())
        replies = [server.send(name, changed(begin, experts=moved)) for name in requests]
        accepted = [reply for reply in replies if isinstance(reply, Protocol)]
        assert not accepted or farthest(server.party(VICTIM)) == 0.0

    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **ONE)


def test_hostile_other_experts_sums_beyond_the_optimisers_reach_are_refused(tiny_bert, tmp_path):
    """Of several local steps the mean change itself is added, and a clip may be 1,024 times what a
    client can reach: node values are never held against `reach`, as external ones are.
    """
    training = dataclasses.replace(TRAINING, local_steps=2)

    def script(server, requests):
        party, begin = server.party(VICTIM), requests[VICTIM]
        clip = 1000.0 * party.own_clip(merge=False)
        experts, _ = told(party, {1: 1.0}, clip)
        server.send(VICTIM, changed(begin, round=2, clip=clip, experts=experts))
        assert farthest(party) <= reach(party.job, 2) * (1 + 1e-5)

    changes = {**ONE, "training": training}
    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **changes)


# --- guards-as-oracle ---------------------------------------------------------------------------


class Breaks(DPSGD):
    """An engine whose steps break down on rows; a step of noise alone does not."""

    def step(self, batch):
        parts = list(batch)
        if parts:
            raise FloatingPointError("a private step broke down")
        return super().step(parts)


def _break(party):
    party.workings = dataclasses.replace(party.workings, engine=Breaks)


def test_hostile_guards_as_oracle_a_broken_round_of_several_steps_is_noise(tiny_bert, tmp_path):
    """The round uploaded exact zeros: whoever knows the others' updates sees that it broke down."""
    training = dataclasses.replace(TRAINING, local_steps=2)

    def script(server, requests):
        party = server.party(VICTIM)
        assert party.round_change(bytes(range(32))).any()  # it does, where nothing breaks
        _break(party)
        assert party.round_change(bytes(range(32))).any()

    changes = {**ONE, "training": training}
    hostile(tiny_bert, tmp_path / "run", "round-1/mask", script, **changes)


def test_hostile_guards_as_oracle_a_broken_warm_up_is_answered(tiny_bert, tmp_path):
    """Rounds are answered whatever happens to their steps; the warm-up was charged and silent."""

    def script(server, requests):
        _break(server.party(VICTIM))
        reply = server.send(VICTIM, requests[VICTIM])
        assert server.charges(VICTIM) == ["warm-up"]
        assert isinstance(reply, Protocol)

    topology = {"topology": Topology(source="lora_b", sketch_size=64), "training": TRAINING}
    hostile(tiny_bert, tmp_path / "run", "sketch", script, **topology)


# --- unsigned-requests: undeclared errors -------------------------------------------------------


def heard(server, name, message):
    """Ask the participant itself: an answer or `WireError`; anything else ends its process."""
    handle = server.inner._inner._participants[name]
    server.asked += 1
    data = seal(server.key, server.run, name, server.asked, 0, wire.encode(message))
    try:
        return wire.decode_reply(handle(data))
    except wire.WireError as error:
        return error


def test_hostile_unsigned_requests_a_round_before_the_tree_is_no_crash(tiny_bert, tmp_path):
    def script(server, requests):
        party = server.party(VICTIM)
        experts = wire.Experts((), (), pack(party.facts.initial))
        begin = wire.Begin(1, 1, False, party.own_clip(merge=False), experts)
        assert isinstance(heard(server, VICTIM, begin), Refused | wire.WireError)

    hostile(tiny_bert, tmp_path / "run", "sketch-hello", script, **SOME)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("size", [1e300, 1.7e308])
def test_hostile_invented_distances_of_absurd_size_are_no_crash(tiny_bert, tmp_path, size):
    def script(server, requests):
        proposal = requests[VICTIM]
        count, depth = len(proposal.members), server.party(VICTIM).facts.depth
        squared = np.full((depth, count, count), size) * (1.0 - np.eye(count))
        lie = changed(proposal, squared=squared.astype("<f8").tobytes())
        assert isinstance(heard(server, VICTIM, lie), Refused | wire.WireError)

    hostile(tiny_bert, tmp_path / "run", "tree", script, **SOME)


# --- stores -------------------------------------------------------------------------------------


def opened(sets: DataSets, name: str, texts: list[str]) -> None:
    with sets.opened(name, PrivacyBudget(epsilon=8, delta=1e-3), texts):
        pass


def test_hostile_stolen_disk_without_the_operators_key_tests_no_guessed_row(tmp_path, monkeypatch):
    """The key of the rows' sketch lay beside it in the clear, also where the operator gave a key
    for secrets at rest: a thief could ask of any text whether it is a row.
    """
    key = tmp_path / "operator.key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    monkeypatch.setenv(KEY_FILE, str(key))
    sets = DataSets.inside(tmp_path / "owner")
    texts = list(rows(0, 60, 0)["text"])
    opened(sets, "mine", texts)
    secret = (sets.stores / "rows.key").read_bytes()
    stolen = b"".join(path.read_bytes() for path in _files(sets.stores))
    for candidate in {secret, secret[:32], secret[1:33], secret[-32:]}:
        found = [_hashed(text, candidate) in stolen for text in texts]
        assert not any(found)


def _hashed(text: str, key: bytes) -> bytes:
    data = " ".join(text.split()).encode()
    return hashlib.blake2b(data, key=key[:64], digest_size=8).digest()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_hostile_second_budget_for_a_part_of_the_rows(tmp_path):
    """Two fifths of a known data set are rows all of which are known: a second budget for them."""
    sets = DataSets.inside(tmp_path / "owner")
    texts = [f"row number {i}" for i in range(200)]
    opened(sets, "whole", texts)
    with pytest.raises(StoreError):
        sets.check_rows("part", texts[:80])
    sets.check_rows("other", [f"another row {i}" for i in range(80)])


def test_hostile_second_budget_for_a_part_of_many_rows(tmp_path):
    """The same of more rows than a sketch holds."""
    sets = DataSets.inside(tmp_path / "owner")
    texts = [f"row number {i}" for i in range(4000)]
    opened(sets, "whole", texts)
    with pytest.raises(StoreError):
        sets.check_rows("part", texts[:1200])
