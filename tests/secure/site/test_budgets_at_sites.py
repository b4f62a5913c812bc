"""A site that promises less than the other sites: its policy, what it reads, approves and adds."""

import dataclasses

import pytest
from organisations import ONE, Organisations

from fedtree_dp import Ledger, PrivacyBudget
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.envelope import seal
from fedtree_secure.agreed.noise_plan import plan_noise
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.site.approval import approve, plan_for, planned_budget, statement_of
from fedtree_secure.site.check import check_site
from fedtree_secure.site.policy import load_policy
from fedtree_secure.site.settings import load_site
from fedtree_secure.site.site import Site

STRICT = PrivacyBudget(epsilon=3, delta=1e-3)
NAME = "t0-c0"


@pytest.fixture
def clinics(tmp_path, tiny_bert, backbone):
    found = Organisations(tmp_path, tiny_bert, tasks=1, budgets={NAME: STRICT}, **ONE)
    found.ready(backbone.frozen_digest.hex())
    found.policy(NAME, found.digest, largest_epsilon=3.0)
    return found


def joined(clinics, backbone, name):
    message = wire.encode(wire.Join(clinics.terms("run-1").digest, backbone.digest))
    with Site.open(clinics.site(name)) as site:
        return wire.decode_reply(
            site.handle("run-1", seal(clinics.server, "run-1", name, 1, 0, message))
        )


def read_by(clinics, name):
    settings = load_site(clinics.site(name))
    with Ledger.inspect(settings.data_sets().store_of(settings.dataset)) as ledger:
        plan = plan_for(name, clinics.job, ledger)
        return " ".join(statement_of(name, clinics.job, clinics.roster, ledger, plan))


def test_budgets_let_a_strict_site_into_a_job_that_others_give_more(clinics, backbone):
    """Its policy is about what is asked of it; its noise is for what it promised."""
    strict, other = (joined(clinics, backbone, name) for name in (NAME, "t0-c1"))
    assert strict.noise_multiplier == plan_noise(clinics.job, STRICT).rounds
    assert other.noise_multiplier == plan_noise(clinics.job, clinics.job.privacy).rounds
    assert strict.noise_multiplier > 1.8 * other.noise_multiplier
    rules = load_policy(clinics.site(NAME) / "policy.toml")
    assert rules.against(NAME, clinics.job, clinics.roster) == []
    alike = dataclasses.replace(clinics.job, budgets={})
    assert (
        "epsilon is 8; the policy allows at most 3" in rules.against(NAME, alike, clinics.roster)[0]
    )
    (line,) = [
        t
        for t in check_site(load_site(clinics.site(NAME)), clinics.job)
        if t.what == "job and policy"
    ]
    assert line.holds
    assert "at epsilon 3" in line.detail


def test_budgets_are_read_by_every_operator_before_it_approves(clinics):
    """They are public: whoever asks for less must know that the others see it."""
    both = "t0-c0: epsilon 3 at delta 0.001; every other client: epsilon 8 at delta 0.001"
    own = read_by(clinics, NAME)
    assert "The job asks this site for epsilon 3 at delta 0.001" in own
    assert float(own.partition("at most ")[2].partition(". ")[0]) <= 3.0
    other = read_by(clinics, "t0-c1")
    assert "The job asks each site for epsilon 8 at delta 0.001" in other
    assert both in own
    assert both in other


def test_budgets_of_a_data_set_and_of_a_job_hold_both(clinics):
    for kept, planned in ((PrivacyBudget(2, 1e-3), 2.0), (PrivacyBudget(8, 1e-4), 3.0)):
        found = planned_budget(NAME, clinics.job, kept)
        assert (found.epsilon, found.delta) == (planned, kept.delta)
    assert planned_budget("t0-c1", clinics.job, PrivacyBudget(6, 1e-3)).epsilon == 6.0


def test_budgets_of_a_site_that_the_roster_does_not_name_are_not_approved(clinics):
    job = dataclasses.replace(clinics.job, budgets={"t0-c7": STRICT})
    settings = load_site(clinics.site(NAME))
    with Ledger.inspect(settings.data_sets().store_of(settings.dataset)) as ledger:
        plan = plan_for("t0-c1", clinics.job, ledger)
        with pytest.raises(ConfigurationError, match="budgets names 't0-c7', which is no client"):
            approve(NAME, clinics.key(NAME), job, clinics.roster, ledger, plan)
    with pytest.raises(ConfigurationError, match="budgets names 't0-c7'"):
        clinics.roster.terms(job, "run-1")
