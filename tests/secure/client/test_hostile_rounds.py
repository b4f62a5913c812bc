"""Attacks `guards-as-oracle`, `long-record` and `other-experts` (docs/threats.md), carried out
against real participants by a server that holds the right key.
"""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
import torch
from datasets import Dataset
from small_jobs import federation, lying, make_clients, make_job
from takeover import by_itself, changed, hostile
from tiny_models import WORDS

from fedtree_dp import DPSGD, Ledger, NoiseSource, TrainingError
from fedtree_secure import PrivacyBudget, Topology, Training
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.messages import OpenedSum, Protocol, Refused, WireError, pack, unpack
from fedtree_secure.agreed.moves import node_digest, start
from fedtree_secure.client.data import Client, prepare
from fedtree_secure.client.mechanism import Mechanism
from fedtree_secure.client.parts import LocalModel
from fedtree_secure.client.state import initial_state
from fedtree_secure.client.training import RoundTrainer
from fedtree_secure.model.backbone import Backbone

VICTIM = "t0-c0"
ONE = {
    "topology": Topology(source="one_group"),
    "training": Training(records=60, sample_rate=0.5, head_steps=0, max_length=16),
}
TARGET = " ".join(WORDS[:14])  # longer than any other row


def with_target(clients, present):
    """The clients; the first one holds the target row or does not."""
    first = clients[0]
    texts, labels = list(first.train["text"]), list(first.train["label"])
    if present:
        texts, labels = [*texts, TARGET], [*labels, "class-1"]
    rows = Dataset.from_dict({"text": texts, "label": labels})
    return [dataclasses.replace(first, train=rows), *clients[1:]]


class Breaks(DPSGD):
    """An engine that breaks down whenever the target is in the batch, as hostile weights might."""

    def _part(self, part):
        if part["attention_mask"].sum(1).max() > 13:
            raise FloatingPointError("the target is in this batch")
        return super()._part(part)


@pytest.mark.parametrize("present", [True, False])
def test_hostile_guards_as_oracle_replies_and_charges_are_the_same(tiny_bert, tmp_path, present):
    """H1: a guard that raised on private rows gave a missing reply and a charge to be used again.

    Twenty rounds with the target record and twenty without, under an engine that breaks down on
    the target: the same replies of the same sizes, and the same charges.
    """
    kinds = []

    class Watch:
        def __init__(self, inner):
            self.inner = inner
            party = inner._inner._participants[VICTIM].__self__.party
            party.workings = dataclasses.replace(party.workings, engine=Breaks)

        def exchange(self, stage, requests):
            replies = self.inner.exchange(stage, requests)
            data = replies.get(VICTIM)
            kinds.append((stage, None if data is None else len(data)))
            return replies

    result = federation(tiny_bert, rounds=20, **ONE).run(
        with_target(make_clients(each=2), present), tmp_path / "run", wrap_transport=Watch
    )
    assert all(size is not None for _, size in kinds)
    assert len(kinds) == 2 + 5 + 19 * 3 + 2
    *sizes, last = [size for stage, size in kinds if stage.endswith("/mask")]
    assert len(set(sizes)) == 1
    assert last < sizes[0]  # no round follows whose keys it would carry
    events = result.data["clients"][VICTIM]["events"]
    assert sum(event["steps"] for event in events) == 20
    assert not result.data["failures"]


def test_hostile_guards_as_oracle_values_out_of_reach_are_refused(tiny_bert, tmp_path):
    """H1, H2: the weights that make a gradient NaN are far from what the optimiser can reach."""
    tree = {"topology": Topology(source="fingerprint", sketch_size=64, significance=0.5)}

    def script(server, requests):
        victim = next(iter(requests))  # whom the noisy tree left alone is not asked
        begin = requests[victim]
        width = len(begin.experts.external) // 4
        initial = server.party(victim).facts.initial
        before = server.charges(victim)
        for factor in (1e-4, 1.0, 1e4, 1e8, 1e30):
            lie = initial + np.float32(factor) * np.ones(width, dtype=np.float32)
            experts = with_external(server.party(victim), begin.experts, lie)
            assert server.send(victim, changed(begin, experts=experts)) == Refused("experts")
        for bad in (np.inf, np.nan):
            lie = initial.copy()
            lie[3] = bad
            experts = with_external(server.party(victim), begin.experts, lie)
            assert server.send(victim, changed(begin, experts=experts)) is None
        assert server.charges(victim) == before

    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **{**ONE, **tree})


def with_external(party, experts, external):
    """Another external expert before the first round, and the digests that follow from it."""
    own = {node.name: node for node in party.nodes()}
    digests = tuple(
        node_digest(own[entry.node], start(own[entry.node], party.facts.initial), external)
        if entry.node in own
        else entry
        for entry in experts.digests
    )
    return changed(experts, external=pack(external), digests=digests)


class Unusable(DPSGD):
    """An engine whose guards find that these weights train nothing."""

    def rehearse(self, batch):
        raise TrainingError("no gradient moves")


def test_hostile_guards_as_oracle_weights_are_rehearsed_before_the_charge(tiny_bert, tmp_path):
    """What the guards find on public records is said before anything is written down or paid."""

    def script(server, requests):
        party = server.party(VICTIM)
        honest, before = party.workings, party.store.state.to_bytes()
        party.workings = dataclasses.replace(honest, engine=Unusable)
        assert server.send(VICTIM, requests[VICTIM]) == Refused("experts")
        assert party.store.state.to_bytes() == before
        assert party.store.journal.last is None
        assert server.charges(VICTIM) == []
        party.workings = honest
        assert isinstance(server.send(VICTIM, requests[VICTIM]), Protocol)

    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **ONE)


def test_hostile_guards_as_oracle_charges_are_on_the_disk_before_anything_is_computed(
    tiny_bert, tmp_path, stores
):
    """A client that is killed while it computes has paid already, and burnt its update."""
    found = []

    def look(client, stage):
        with Ledger.inspect(stores / client / "store.sqlite") as ledger:
            runs = [entry.job for entry in ledger.entries() if entry.purpose]
            lines = [name for name in ledger.names(runs[0]) if name.startswith("journal/")]
            latest = ledger.get(runs[0], max(lines)) if lines else b""
            found.append((stage, ledger.entries()[-1].purpose, b"masked" in (latest or b"")))

    class Watch:
        def __init__(self, inner):
            self.inner = inner
            for handle in inner._inner._participants.values():
                party = handle.__self__.party
                party.workings = dataclasses.replace(party.workings, tick=look)

        def exchange(self, stage, requests):
            return self.inner.exchange(stage, requests)

    training = Training(
        records=60, sample_rate=0.5, head_steps=2, head_sample_rate=0.5, max_length=16
    )
    # Under this much noise the tree leaves nobody alone.
    changes = {"topology": Topology(sketch_size=64), "privacy": PrivacyBudget(0.5, 1e-3)}
    job = federation(tiny_bert, rounds=2, training=training, **changes)
    job.run(make_clients(), tmp_path / "run", wrap_transport=Watch)
    alone = ("step", "round 2", False)
    seen = set(found) - {alone}  # a client that the tree left to itself uploads nothing
    assert seen == {
        ("fingerprint", "fingerprint", False),
        ("head", "head", False),
        ("step", "round 1", False),  # its gradient is made before the tree, and leaves in the round
        ("step", "round 2", True),
    }


class BreaksAlways(DPSGD):
    """An engine whose steps break down on any row; a step of noise alone does not."""

    def step(self, batch):
        parts = list(batch)
        if parts:
            raise FloatingPointError("a private step broke down")
        return super().step(parts)


def test_hostile_guards_as_oracle_what_broke_down_is_replaced_by_its_noise(tiny_bert, tmp_path):
    """Zeros in its place would show in the sum, which then has less noise than was charged."""

    def script(server, requests):
        party = server.party(VICTIM)
        party.workings = dataclasses.replace(party.workings, engine=BreaksAlways)
        noise = party.round_change(bytes(range(32))).astype(np.float64)
        training = party.job.training
        deviation = party.member.noise_plan.rounds * training.max_grad_norm
        deviation /= training.sample_rate * party.records
        spread = 5 / np.sqrt(2 * len(noise))  # five standard errors: false alarms below 1e-6
        assert noise.std() == pytest.approx(deviation, rel=spread)
        assert abs(noise.mean()) < 5 * deviation / np.sqrt(len(noise))
        assert not np.array_equal(noise, party.round_change(bytes(range(1, 33))))

    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **ONE)


class NotANumber(DPSGD):
    """An engine after whose step one uploaded value is no number and another is none that fits."""

    def step(self, batch):
        report = super().step(batch)
        first = self.optimizer.params[0].data.view(-1)
        first[0], first[1] = np.nan, np.inf
        return report


def test_hostile_guards_as_oracle_values_that_are_no_numbers_are_sent_as_zeros(tiny_bert, tmp_path):
    """An upload that raised on them would be a missing reply."""
    out = tmp_path / "run"

    class Watch:
        def __init__(self, inner):
            self.inner = inner
            party = inner._inner._participants[VICTIM].__self__.party
            party.workings = dataclasses.replace(party.workings, engine=NotANumber)

        def exchange(self, stage, requests):
            return self.inner.exchange(stage, requests)

    result = federation(tiny_bert, **ONE).run(make_clients(), out, wrap_transport=Watch)
    assert not result.data["failures"]
    for record in result.data["rounds"]:
        assert VICTIM in next(iter(record["opened"].values()))


# --- long-record --------------------------------------------------------------------------------


class Summed(DPSGD):
    """Keeps the clipped sum of its only step, before any noise."""

    kept: ClassVar[list] = []

    def step(self, batch):
        inner, kept = self.optimizer.add_noise, self.kept

        def add_noise():
            sums = [p.summed_grad for p in self.optimizer.params]
            kept.append(
                torch.cat(
                    [
                        torch.zeros(p.numel()) if s is None else s.reshape(-1).clone()
                        for p, s in zip(self.optimizer.params, sums, strict=True)
                    ]
                )
            )
            inner()

        self.optimizer.add_noise = add_noise
        return super().step(batch)


def clipped_sum(backbone, job, rows, state):
    client = Client("a", train=Dataset.from_dict(rows), labels=("class-0", "class-1"))
    data = prepare(client, job, backbone.tokenizer)
    depth = backbone.experts.depth
    model = LocalModel(2, (True,) * depth, np.zeros(depth, dtype=bool))

    class Engine(Summed):
        kept: ClassVar[list] = []
        widths: ClassVar[set] = set()

        def rehearse(self, batch):
            """Weights that no server may send; the guards would refuse them."""
            self._rehearsed = True

        def step(self, batch):
            parts = list(batch)
            for part in parts:
                lengths, width = part["attention_mask"].sum(dim=1), part["input_ids"].shape[1]
                self.widths |= {(int(n), width) for n in lengths[part["present"]]}
            return super().step(parts)

    trainer = RoundTrainer(backbone, job, engine=Engine)
    trainer.train(
        data,
        state,
        model,
        Mechanism(1.0, 40, 1),
        NoiseSource(bytes(range(32))),
        upload_gradient=True,
    )
    return Engine.kept[0].double(), Engine.widths


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e6, 1e8, np.inf, np.nan])
def test_hostile_long_record_moves_the_sum_by_at_most_one_clip(tiny_bert, scale):
    """H2: one longer row widened the padding of its physical batch, in which all other gradients
    became NaN: the sum moved by ten clips.
    """
    training = Training(
        records=40, sample_rate=1.0, head_steps=0, max_length=32, physical_batch_size=16
    )
    job = make_job(tiny_bert, training=training)
    backbone = Backbone(job)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=int(rng.integers(3, 9)))) for _ in range(21)]
    labels = [f"class-{i % 2}" for i in range(21)]

    def state():
        made = initial_state(backbone, 2)
        values = np.random.default_rng(1).normal(size=made.own.shape)
        made.own = (values * 0.1 * scale).astype(np.float32)
        return made

    without, before = clipped_sum(backbone, job, {"text": texts, "label": labels}, state())
    rows = {"text": [*texts, " ".join(WORDS[:28])], "label": [*labels, "class-1"]}
    with_it, after = clipped_sum(backbone, job, rows, state())
    moved = float((with_it - without).norm())
    assert {width for _, width in before} == {16}
    assert after == before | {(30, 32)}
    assert moved <= job.training.max_grad_norm * (1 + 1e-5)
    if scale == 1.0:
        assert moved > 0.5


# --- other-experts ------------------------------------------------------------------------------


def test_hostile_other_experts_for_one_member_are_refused(tiny_bert, tmp_path):
    """H9, model inconsistency: another opened sum, another external expert or other digests."""

    def script(server, requests):
        mask, before = requests[VICTIM], server.charges(VICTIM)
        experts = mask.experts
        begin = by_itself(server, VICTIM, 2, experts)
        (opened,) = experts.opened
        total = np.frombuffer(opened.total, dtype="<i4").copy()
        total[0] += 1
        external = unpack(experts.external, len(experts.external) // 4).copy()
        external[0] = np.nextafter(external[0], np.float32(1))
        (entry,) = experts.digests
        lies = {
            "another sum": changed(experts, opened=(changed(opened, total=total.tobytes()),)),
            "no sum": changed(experts, opened=()),
            "fewer survivors": changed(experts, opened=(changed(opened, survivors=4),)),
            "another external": changed(experts, external=pack(external)),
            "another digest": changed(experts, digests=(changed(entry, values=bytes(32)),)),
            "no digests": changed(experts, digests=()),
            "one digest more": changed(experts, digests=(entry, changed(entry, node="other"))),
        }
        for honest in (mask, begin):
            for what, lie in lies.items():
                told = changed(honest, experts=lie)
                assert server.send(VICTIM, told) == Refused("experts"), what
            for clip in (0.5 * opened.clip, 2.0 * opened.clip):
                lie = changed(experts, opened=(changed(opened, clip=clip),))
                assert server.send(VICTIM, changed(honest, experts=lie)) == Refused("clip")
            assert server.charges(VICTIM) == before
        assert isinstance(server.send(VICTIM, begin), Protocol)

    hostile(tiny_bert, tmp_path / "run", "round-2/mask", script, **ONE)


def test_hostile_other_experts_opened_sums_are_of_own_nodes_and_each_once(tiny_bert, tmp_path):
    """A sum twice would move an expert twice; one of this round is known to nobody yet."""

    def script(server, requests):
        mask, failures = requests[VICTIM], server.inner._inner.failures
        (opened,) = mask.experts.opened
        later = changed(opened, round=2)
        for lie in (
            (opened, opened),
            (later, opened),
            (opened, later),
            (changed(opened, node="node-of-others"),),
        ):
            before = len(failures)
            told = changed(mask, experts=changed(mask.experts, opened=lie))
            assert server.send(VICTIM, told) is None
            (failure,) = failures[before:]
            assert isinstance(failure.error, WireError)
        assert isinstance(server.send(VICTIM, mask), Protocol)

    hostile(tiny_bert, tmp_path / "run", "round-2/mask", script, **ONE)


def test_hostile_other_experts_no_sum_of_a_merge_where_there_is_none(tiny_bert, tmp_path):
    """It would move an expert by more than any round may, under a clip that nobody agreed on."""

    def script(server, requests):
        begin, party = requests[VICTIM], server.party(VICTIM)
        (node,) = party.nodes()
        still = OpenedSum(0, node.name, 6, party.own_clip(merge=True), bytes(4 * node.width))
        told = changed(begin, experts=changed(begin.experts, opened=(still,)))
        assert server.send(VICTIM, told) is None
        assert "no merge round" in str(server.inner._inner.failures[-1].error)
        assert isinstance(server.send(VICTIM, begin), Protocol)

    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **ONE)


@pytest.mark.parametrize("ahead", [True, False])
def test_hostile_other_experts_with_digests_to_fit_open_nothing(tiny_bert, tmp_path, ahead):
    """A consistent lie to one member gives it other masks, which fit nobody's, and nobody opens
    them: it signs what it was given (secagg/SPEC.md, "Late context"). In a round by itself, as one
    is after a lost message, not even its keys fit.
    """
    out = tmp_path / "run"

    def lie(stage, name, message):
        if stage == "round-1/mask" and not ahead and name != VICTIM:
            return changed(message, ahead=None)
        if stage == ("round-2/mask" if ahead else "round-2/advertise") and name == VICTIM:
            party = made[0].inner._inner._participants[VICTIM].__self__.party
            return _consistent_lie(party, message)
        return message

    wrap, made = lying(out, lie)
    result = federation(tiny_bert, **ONE).run(make_clients(), out, wrap_transport=wrap)
    first, second = result.data["rounds"]
    assert VICTIM in next(iter(first["opened"].values()))
    assert VICTIM not in {n for names in second["opened"].values() for n in names}
    told = (out / "transcript.txt").read_text("utf-8")
    assert ("round-2/advertise" in told) is not ahead


def _consistent_lie(party, begin):
    """Another sum for the victim, and the digests that follow from it."""
    from fedtree_secure.agreed.moves import mean_of

    experts, (node,) = begin.experts, party.nodes()
    (opened,) = experts.opened
    total = np.frombuffer(opened.total, dtype="<i4").copy()
    total //= 2
    told = changed(opened, total=total.tobytes())
    values = start(node, party.facts.initial)
    grid = party.quantiser(opened.clip, merge=False)
    values.follow_gradient(mean_of(told, node, grid, 3), party.job.training.learning_rate)
    external = unpack(experts.external, party.facts.layout.length)
    entry = node_digest(node, values, external)
    return changed(begin, experts=changed(experts, opened=(told,), digests=(entry,)))


def test_hostile_other_experts_a_back_door_at_the_end_is_refused(tiny_bert, tmp_path):
    """H9: `Finish` delivered anything."""

    def script(server, requests):
        finish = requests[VICTIM]
        experts, state = finish.experts, server.party(VICTIM).store.state
        before = state.to_bytes()
        door = unpack(experts.external, len(experts.external) // 4) + np.float32(0.02)
        total = np.frombuffer(experts.opened[-1].total, dtype="<i4") // 2
        sums = (*experts.opened[:-1], changed(experts.opened[-1], total=total.tobytes()))
        for lie in (changed(experts, external=pack(door)), changed(experts, opened=sums)):
            assert server.send(VICTIM, wire.Finish(lie)) == Refused("experts")
            assert state.to_bytes() == before
        assert isinstance(server.send(VICTIM, finish), wire.Voted)
        assert state.to_bytes() == before  # it keeps them when enough members signed the same

    hostile(tiny_bert, tmp_path / "run", "finish", script, **ONE)


def test_every_member_moves_its_expert_as_the_server_does(tiny_bert, tmp_path):
    """The public optimiser gives server and members the same bits, with no values sent."""
    seen = []

    class Watch:
        def __init__(self, inner):
            self.inner = inner

        def exchange(self, stage, requests):
            replies = self.inner.exchange(stage, requests)
            if stage == "deliver":
                participants = self.inner._inner._participants.values()
                seen.extend(p.__self__.party.store.state.own for p in participants)
            return replies

    federation(tiny_bert, **ONE).run(make_clients(), tmp_path / "run", wrap_transport=Watch)
    from safetensors.numpy import load_file

    (path,) = (tmp_path / "run" / "server").glob("values-2.safetensors")
    tensors = load_file(path)
    (values,) = [value for name, value in tensors.items() if name.endswith("/values")]
    assert values.any()
    assert all(np.array_equal(own, values) for own in seen)
    assert len(seen) == 6


def test_hostile_other_experts_a_client_that_missed_rounds_catches_up(tiny_bert, tmp_path):
    """It gets the sums that it missed, and ends with what all others have."""
    from small_jobs import scripted

    lost = [(f"round-1/{s}", VICTIM, "before") for s in ("advertise", "share", "mask")]
    lost += [(f"round-2/{s}", VICTIM, "before") for s in ("advertise", "share", "mask")]
    wrap, made = scripted(lose=lost)
    job = federation(tiny_bert, rounds=3, **ONE)
    result = job.run(make_clients(), tmp_path / "run", wrap_transport=wrap)
    assert VICTIM in next(iter(result.data["rounds"][2]["opened"].values()))
    parties = {
        name: handle.__self__.party for name, handle in made[0].inner._inner._participants.items()
    }
    own = {name: party.store.state.own for name, party in parties.items()}
    assert all(np.array_equal(own[VICTIM], other) for other in own.values())


def test_rounds_that_every_client_refuses_open_nothing_and_cost_nothing(tiny_bert, tmp_path):
    out = tmp_path / "run"

    def lie(stage, name, message):
        return changed(message, clip=0.5 * message.clip) if "advertise" in stage else message

    result = federation(tiny_bert, **ONE).run(
        make_clients(), out, wrap_transport=lying(out, lie)[0]
    )
    assert all(record["error"] and not record["opened"] for record in result.data["rounds"])
    assert all(not report["events"] for report in result.data["clients"].values())


def test_a_head_that_is_sure_of_everything_keeps_nobody_out(tiny_bert, tmp_path):
    """A rehearsal under it found no gradient, and the client left out rounds for good."""

    def script(server, requests):
        party = server.party(VICTIM)
        state = party.store.state
        for name, value in state.head.items():
            state.head[name] = value * np.float32(1e6)
        before = {name: value.copy() for name, value in state.head.items()}
        assert isinstance(server.send(VICTIM, requests[VICTIM]), Protocol)
        assert party.round_change(bytes(range(32))).any()
        moved = [np.abs(state.head[name] - value).max() for name, value in before.items()]
        assert 0 < max(moved) < 1  # its own head was trained on, not the public one

    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **ONE)
