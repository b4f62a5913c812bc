"""Sites share heads and noise as clients of one process do, and say so before they take part."""

import contextlib
import dataclasses
import json
import logging

import pytest
from alike import LABELS, assert_alike, run_embedded
from organisations import ONE, Directly, Organisations
from seeded import seeded

from fedtree_dp import PrivacyBudget
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.envelope import seal
from fedtree_secure.errors import BackboneError, ConfigurationError
from fedtree_secure.model.facts_file import check_heads
from fedtree_secure.site.approval import plan_for, statement_of
from fedtree_secure.site.policy import load_policy
from fedtree_secure.site.site import Site

SEED = "heads at sites"
GROUP = dataclasses.replace(ONE["training"], head="group", head_steps=4, head_sample_rate=0.5)
HEADS = {**ONE, "training": GROUP}
BUDGET = PrivacyBudget(epsilon=8, delta=1e-3, own_epsilon=20)
SHARED = {**HEADS, "noise": "shared", "privacy": BUDGET}
ALLOWED = {"noise": ["own", "shared"], "largest_own_epsilon": 20.0}


def made(place, model, backbone, settings, **changes):
    policy = ALLOWED if "noise" in settings else {}
    given = {"labels": LABELS, "policy": policy, **changes}
    found = Organisations(place, model, tasks=1, **settings, **given)
    found.ready(backbone.frozen_digest.hex())
    return found


@pytest.fixture
def clinics(tmp_path, tiny_bert, backbone):
    return made(tmp_path, tiny_bert, backbone, HEADS)


@pytest.fixture
def sharing(tmp_path, tiny_bert, backbone):
    return made(tmp_path, tiny_bert, backbone, SHARED)


def told(clinics, name="t0-c0"):
    """What the operator of a site is shown."""
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Site.open(clinics.site(name))).ledger
        plan = plan_for("t0-c0", clinics.job, ledger)
        return " ".join(statement_of(name, clinics.job, clinics.roster, ledger, plan))


def asked_to_join(clinics, backbone, name="t0-c0"):
    message = wire.encode(wire.Join(clinics.terms("run-1").digest, backbone.digest))
    with Site.open(clinics.site(name)) as site:
        return wire.decode_reply(
            site.handle("run-1", seal(clinics.server, "run-1", name, 1, 0, message))
        )


def test_heads_and_noise_are_shared_as_in_one_process(tmp_path, tiny_bert, backbone):
    embedded = run_embedded(tmp_path, tiny_bert, SEED, tasks=1, **SHARED)
    clinics = made(tmp_path / "places", tiny_bert, backbone, SHARED)
    run = clinics.take_over(embedded)
    with contextlib.ExitStack() as stack:
        for patch in seeded(SEED):
            stack.enter_context(patch)
        sites = {n: stack.enter_context(Site.open(clinics.site(n))) for n in clinics.names}
        server = clinics.serve(backbone, Directly(sites, run), run)
        server.run()
    assert len(server.records[0].opened) == 1, "the round of the heads opened nothing"
    assert_alike(embedded, clinics, run)
    report = json.loads((clinics.site("t0-c0") / "runs" / run / "report.json").read_text())
    assert report["head_shared_with"] == clinics.names
    assert report["guarantee"]["shared"]["own_epsilon"] == 20.0
    assert report["epsilon_promised"] == 8.0
    assert report["own_epsilon_spent"] > report["epsilon_spent"]


def test_an_operator_reads_who_shares_the_head(clinics):
    said = told(clinics)
    assert "its labels class-0, class-1" in said
    assert "t0-c0, t0-c1, t0-c2 declare the same labels and share one" in said
    assert "Stays at this site: rows, labels of rows, the final adapter" in said


def test_an_operator_reads_what_shared_noise_counts_on(sharing):
    said = told(sharing)
    assert "at least 1 other client that is honest" in said
    assert "allowed is 20" in said


def test_without_declared_labels_heads_stay_at_home(tmp_path, tiny_bert, backbone):
    found = made(tmp_path, tiny_bert, backbone, HEADS, labels=())
    assert found.terms("run-1").heads == ()
    assert "rows, labels of rows, the head, the final adapter" in told(found)


def test_a_site_whose_file_declares_other_labels_than_its_card_does_not_open(clinics):
    clinics.write_site("t0-c0", labels=["class-1", "class-0"])
    with (
        pytest.raises(ConfigurationError, match="declares the labels class-0, class-1; labels in"),
        Site.open(clinics.site("t0-c0")),
    ):
        pass


def test_other_noise_than_the_policy_allows_is_refused(sharing, backbone, caplog):
    sharing.policy("t0-c0", backbone.frozen_digest.hex(), largest_own_epsilon=19.5)
    with caplog.at_level(logging.WARNING):
        assert asked_to_join(sharing, backbone) == wire.Refused("policy")
    assert "own_epsilon is 20; the policy allows at most 19.5" in caplog.text
    sharing.rules = {k: v for k, v in sharing.rules.items() if k != "largest_own_epsilon"}
    sharing.policy("t0-c0", backbone.frozen_digest.hex(), noise=["own"])
    with caplog.at_level(logging.WARNING):
        assert asked_to_join(sharing, backbone) == wire.Refused("policy")
    assert "its noise is shared; the policy allows own (noise)" in caplog.text


def test_another_divisor_than_the_others_is_refused_and_leaves_no_trace(sharing, backbone, caplog):
    sharing.write_site("t0-c0", records=50)
    with caplog.at_level(logging.WARNING):
        assert asked_to_join(sharing, backbone) == wire.Refused("policy")
    assert "all have one divisor" in caplog.text
    with Site.open(sharing.site("t0-c0")) as site:
        assert site.admitted == ()


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        ({"noise": []}, "noise is"),
        ({"noise": ["none"]}, "noise is"),
        ({"noise": ["shared"]}, "largest_own_epsilon is None"),
        ({"noise": ["own"], "largest_own_epsilon": 9.0}, "only there"),
        ({"unit": ""}, "unit is empty"),
    ],
)
def test_a_policy_says_what_it_allows(clinics, noise, said):
    clinics.policy("t0-c0", clinics.digest, **noise)
    with pytest.raises(ConfigurationError, match=said):
        load_policy(clinics.site("t0-c0") / "policy.toml")


def test_facts_of_another_roster_are_refused(clinics, backbone):
    outputs = clinics.terms("run-1").outputs_of_heads
    check_heads(backbone.facts(outputs), outputs, clinics.folder / "model.facts")
    for heads in ((), (3,), (2, 2)):
        with pytest.raises(BackboneError, match="make it again"):
            check_heads(backbone.facts(heads), outputs, clinics.folder / "model.facts")
