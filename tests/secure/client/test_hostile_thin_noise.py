"""Attacks on shared noise (dp/SPEC.md, section 10), carried out against real participants: thinner
noise, a part of it alone, members that add none.
"""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from shared_jobs import BUDGET, LABELS, SHARED, clients_of, shared_federation
from small_jobs import make_clients, make_job, scripted
from takeover import changed, hostile

from fedtree_dp import ConfigurationError as DPConfigurationError
from fedtree_dp import Ledger, NoiseSource, SharedPoissonGaussian
from fedtree_dp.account import shared
from fedtree_secagg import Roster
from fedtree_secure import ConfigurationError, Training
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.messages import Protocol, Refused
from fedtree_secure.agreed.round_plan import plan_of_round
from fedtree_secure.agreed.shared_noise import honest_in, release_of, shared_clip, shared_event
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.client import round_checks
from fedtree_secure.client.state import ClientState
from fedtree_secure.client.step import Refusal
from fedtree_secure.client.training import RoundTrainer

VICTIM = "t0-c0"
ADVERTISE, MASK, REVEAL = (f"round-1/{name}" for name in ("advertise", "mask", "reveal"))
ALARM = 1e-9


def attack(model, out, stage, script, **changes):
    clients = changes.pop("clients", None) or clients_of()
    return hostile(model, out, stage, script, clients=clients, **{**SHARED, **changes})


def variance_is(values, wanted):
    """Whether a variance is what it should be, at a false-alarm rate of 2e-9."""
    ratio = (values.astype(np.float64) ** 2).sum() / wanted
    return stats.chi2.ppf(ALARM, values.size) < ratio < stats.chi2.ppf(1 - ALARM, values.size)


def test_hostile_thin_noise_another_grid_is_refused_before_any_charge(deep_bert, tmp_path):
    """A wider clip is a coarser grid: rounding would cost more than was charged, and members on
    other grids would add other noise.
    """

    def script(server, requests):
        honest = requests[VICTIM]
        assert honest.clip == shared_clip(server.party(VICTIM).terms)
        for factor in (1 + 1e-12, 2.0, 1000.0, 0.5):
            told = changed(honest, clip=honest.clip * factor)
            assert server.send(VICTIM, told) == Refused("clip")
        assert server.charges(VICTIM) == []
        assert isinstance(server.send(VICTIM, honest), Protocol)

    attack(deep_bert, tmp_path / "run", ADVERTISE, script)


def test_hostile_thin_noise_an_opened_sum_on_another_grid_is_refused(deep_bert, tmp_path):
    def script(server, requests):
        honest = requests[VICTIM]
        assert honest.experts.opened
        wide = tuple(changed(entry, clip=2 * entry.clip) for entry in honest.experts.opened)
        told = changed(honest, experts=changed(honest.experts, opened=wide))
        assert server.send(VICTIM, told) == Refused("clip")

    attack(deep_bert, tmp_path / "run", "round-2/mask", script)


def test_hostile_thin_noise_a_larger_group_gets_no_thinner_noise(deep_bert, tmp_path):
    """Seven members, and terms that speak of more honest ones: what is charged and drawn follows
    from the smallest sum that opens, and nothing that a server says changes it.
    """

    def script(server, requests):
        party = server.party(VICTIM)
        terms, event = party.terms, party.round_event()
        assert len(party.nodes()[0].members) == 7
        assert event == SharedPoissonGaussian(terms.shared_noise, 1.0, 1, honest=2)
        thin = dataclasses.replace(terms, shared_noise=terms.shared_noise / math.sqrt(3))
        masking = dataclasses.replace(terms.job.masking, min_group=7)
        more = dataclasses.replace(terms, job=dataclasses.replace(terms.job, masking=masking))
        for other in (thin, more):
            assert other.digest != terms.digest
            join = wire.Join(other.digest, party.facts.digest)
            assert server.send(VICTIM, join) == Refused("mismatch")
        assert isinstance(server.send(VICTIM, requests[VICTIM]), Protocol)
        (charge,) = [e.event for e in server.ledger(VICTIM).entries() if e.event]
        assert charge == event

    attack(deep_bert, tmp_path / "run", MASK, script, clients=clients_of(each=7))


def test_hostile_thin_noise_a_plan_with_fewer_honest_members_is_refused(deep_bert, tmp_path):
    """What a client computes it also compares with its charge, should the two ever differ."""

    def script(server, requests):
        party, begin = server.party(VICTIM), requests[VICTIM]
        plan = party_plan(party, requests)
        round_checks._check_honest(party, plan, begin)
        assert honest_in(plan) == 2
        assert honest_in(dataclasses.replace(plan, colluders=0)) == 2  # a curious member is one
        masking = dataclasses.replace(party.job.masking, min_group=4)
        job = dataclasses.replace(party.job, masking=masking)
        party.terms = dataclasses.replace(party.terms, job=job)  # its charge would count on three
        with pytest.raises(Refusal, match="fewer honest members"):
            round_checks._check_honest(party, plan, begin)

    attack(deep_bert, tmp_path / "run", ADVERTISE, script)


def test_hostile_thin_noise_no_value_at_home_holds_a_part_of_the_noise(deep_bert, tmp_path):
    """The upload never moves the client's own experts: a later step that read them would read less
    noise than was charged. They move by opened sums alone.
    """
    labels = {"training": Training(records=60, head_steps=4, max_length=16)}

    def script(server, requests):
        party = server.party(VICTIM)
        assert party.shares() == [True] * 5  # four layers, and the head of its group
        own = party.store.state.own.copy()
        head = {name: value.copy() for name, value in party.store.state.head.items()}
        for name in requests:
            assert isinstance(server.send(name, requests[name]), Protocol)
        assert np.array_equal(party.store.state.own, own)
        assert all(np.array_equal(party.store.state.head[n], v) for n, v in head.items())
        kept = ClientState.from_bytes(party.store.state.to_bytes())
        assert np.array_equal(kept.own, own)
        assert not kept.adam
        assert kept.first is None

    attack(deep_bert, tmp_path / "run", MASK, script, clients=clients_of(declared=True), **labels)


def test_hostile_thin_noise_who_has_nothing_to_put_into_a_sum_puts_its_noise(deep_bert, tmp_path):
    """A server that loses a member's merge keeps its head out of the group's; the others of that
    sum count on its noise all the same.
    """
    labels = {
        "training": Training(records=60, head_steps=4, max_length=16),
        "privacy": dataclasses.replace(BUDGET, epsilon=0.5, own_epsilon=2),
    }

    def script(server, requests):
        party = server.party(VICTIM)
        party.store.record.head_merged = False  # as if it had missed the merge
        assert party.shares() == [True] * 4 + [False]
        begin, end = party.head_range()
        plan = party_plan(party, requests)
        how, draws, home = release_of(party.terms, plan), [], []
        for seed in range(6):
            before = dict(party.store.state.head)
            update = party.round_release(bytes([seed] * 32), plan)
            assert update.dtype == np.int64
            draws.append(update)
            home.append(any((before[n] != party.store.state.head[n]).any() for n in before))
        assert all(home)  # its head took the step at home
        unmerged = np.concatenate([u[begin:end] for u in draws])
        assert variance_is(unmerged, how.deviation**2)
        assert not variance_is(unmerged, how.deviation**2 / 2)
        assert how.at_home >= party.round_event().together().noise_multiplier

    attack(
        deep_bert, tmp_path / "run", ADVERTISE, script, clients=clients_of(declared=True), **labels
    )


def party_plan(party, requests):
    begin = requests[party.id]
    digests = begin.experts.digests
    return plan_of_round(
        party.terms, party.facts, party.tree(), "", begin.clip, digests, merge=False
    )


def test_hostile_thin_noise_each_member_s_part_is_what_was_charged(deep_bert, tmp_path):
    """With so little budget the noise drowns the signal: its size is that of the charge, of one
    member and of the sum; a half or twice as much is told apart.
    """

    def script(server, requests):
        parties = [server.party(name) for name in sorted(requests)]
        plan = party_plan(parties[0], requests)
        how, event = release_of(parties[0].terms, plan), shared_event(parties[0].terms)
        charged = event.noise_multiplier * parties[0].job.training.max_grad_norm / how.step
        assert charged <= how.deviation <= 1.2 * charged
        updates = [party.round_release(NoiseSource.from_os().bytes(32), plan) for party in parties]
        for update in updates:
            assert variance_is(update, how.deviation**2)
            assert not variance_is(update, how.deviation**2 / 2)
            assert not variance_is(update, how.deviation**2 * 2)
        assert variance_is(np.sum(updates, axis=0), len(updates) * how.deviation**2)
        least = event.together().noise_multiplier * parties[0].job.training.max_grad_norm / how.step
        assert math.sqrt(honest_in(plan)) * how.deviation >= least

    drowned = {"privacy": dataclasses.replace(BUDGET, epsilon=0.05, own_epsilon=0.2)}
    attack(deep_bert, tmp_path / "run", ADVERTISE, script, **drowned)


def test_a_release_is_what_own_noise_would_upload_but_for_the_noise(deep_bert, tmp_path):
    """With next to no noise: the same step against the same gradient, in steps of the grid."""

    def script(server, requests):
        party, plan = server.party(VICTIM), party_plan(server.party(VICTIM), requests)
        own = party.store.state.own.copy()
        released = party.round_release(bytes(32), plan) * plan.quantiser.step
        assert np.array_equal(party.store.state.own, own)
        changed = party.round_change(bytes(32)).astype(np.float64)
        noise = release_of(party.terms, plan).deviation * plan.quantiser.step
        assert np.abs(changed).max() > 20 * noise
        assert np.abs(released - changed).max() < 8 * noise

    loud = {
        "privacy": dataclasses.replace(BUDGET, epsilon=1e5, own_epsilon=1e6),
        "training": Training(records=60, head_steps=0, head="frozen", max_length=16),
    }
    attack(deep_bert, tmp_path / "run", ADVERTISE, script, **loud)


def test_hostile_thin_noise_a_breakdown_is_noise_alone(deep_bert, tmp_path, monkeypatch):
    """An engine that raises on rows leaves the full part of the noise, and an answer."""
    release = RoundTrainer.release

    def breaks(self, data, *rest):
        if len(data.train):
            raise FloatingPointError("on rows")
        return release(self, data, *rest)

    def script(server, requests):
        party, plan = server.party(VICTIM), party_plan(server.party(VICTIM), requests)
        monkeypatch.setattr(RoundTrainer, "release", breaks)
        alone = party.round_release(bytes(32), plan)
        assert variance_is(alone, release_of(party.terms, plan).deviation ** 2)

    attack(deep_bert, tmp_path / "run", ADVERTISE, script)


def test_hostile_thin_noise_clients_reveal_nothing_of_a_node_below_the_smallest_sum(
    deep_bert, tmp_path
):
    """One of the three that share a head drops out after it got its shares: the layers' sum opens
    over five, the head's would hold one honest part of the noise and stays closed.
    """
    training = Training(records=60, head_steps=0, max_length=16)
    wrap, _ = scripted(lose=[("round-1/mask", "t1-c2", "before")])
    clients = two_label_sets()
    result = shared_federation(deep_bert, rounds=1, training=training).run(
        clients, tmp_path / "run", wrap_transport=wrap
    )
    (first,) = result.data["rounds"]
    assert sorted(map(len, first["opened"].values())) == [3, 5]
    assert len(first["closed"]) == 1
    charged = {n: report["events"] for n, report in result.data["clients"].items()}
    assert charged.pop("t1-c2") == []  # what it never computed was not charged
    assert all(events[0]["steps"] == 1 for events in charged.values())


def two_label_sets():
    clients = make_clients(tasks=2, each=3)
    named = {f"t{task}": tuple(f"t{task}/{label}" for label in LABELS) for task in range(2)}

    def renamed(table, task):
        return table.map(lambda row: {"label": f"{task}/{row['label']}"})

    return [
        dataclasses.replace(
            c,
            labels=named[c.id[:2]],
            train=renamed(c.train, c.id[:2]),
            test=renamed(c.test, c.id[:2]),
        )
        for c in clients
    ]


def test_a_grid_that_is_too_coarse_is_refused_before_anything_is_charged(
    deep_bert, tmp_path, monkeypatch
):
    """As where thousands share one sum: few bits are left for each."""
    monkeypatch.setattr(shared, "MOST_ROUNDING", 1e-9)
    with pytest.raises(DPConfigurationError, match="too coarse a grid"):
        shared_federation(deep_bert).run(clients_of(), tmp_path / "run")
    with Ledger.inspect(next((tmp_path / "state").rglob("store.sqlite"))) as ledger:
        assert not ledger.events()


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, None])
def test_terms_without_a_part_for_each_member_are_refused(wrong):
    roster = Roster({f"c{i}": bytes([i]) * 32 for i in range(3)})
    with pytest.raises(ConfigurationError, match="noise"):
        Terms(make_job("m", **SHARED), roster, bytes(32), "run", (), wrong)
    with pytest.raises(ConfigurationError, match="noise is own"):
        Terms(make_job("m"), roster, bytes(32), "run", (), 1.0)


def test_a_client_of_no_sum_shares_its_noise_with_nobody(deep_bert, tmp_path):
    """Its rounds at home keep the whole noise, and are charged as such."""

    def script(server, requests):
        party = server.party(VICTIM)
        assert isinstance(party.round_event(), SharedPoissonGaussian)
        party.nodes = tuple  # as where the tree leaves it alone
        own = party.round_event()
        assert own.noise_multiplier == party.member.noise_plan.rounds
        assert own.mechanism == "poisson_gaussian"

    attack(deep_bert, tmp_path / "run", ADVERTISE, script)
