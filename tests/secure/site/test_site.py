"""A site admits what its operator approved and its policy allows, and answers nobody else."""

import contextlib
import dataclasses
import json
import logging

import pytest
from command_line import call
from organisations import ONE, Directly, Organisations

from fedtree_dp import Gaussian, Ledger
from fedtree_secagg import Identity
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.envelope import seal
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.errors import ConfigurationError, FedTreeError, RunFolderError, RunStopped
from fedtree_secure.site.site import Site


@contextlib.contextmanager
def opened(clinics):
    with contextlib.ExitStack() as stack:
        yield {n: stack.enter_context(Site.open(clinics.site(n))) for n in clinics.names}


def join(clinics, name, *, run="run-1", counter=1, key=None, terms=None, model=b"m" * 32):
    """A request to join, signed by the server or by somebody else."""
    approval = next(iter((clinics.site(name) / "approvals").glob("*.json")), None)
    assert approval is not None
    found = terms or clinics.terms(run).digest
    return seal(key or clinics.server, run, name, counter, 0, wire.encode(wire.Join(found, model)))


def reason(reply):
    found = wire.decode_reply(reply)
    assert isinstance(found, wire.Refused)
    return found.reason


def charges(clinics, name):
    path = clinics.site(name) / "state" / name / "store.sqlite"
    with Ledger.inspect(path) as ledger:
        return [entry.purpose for entry in ledger.entries() if entry.purpose]


def test_a_run_of_three_sites_is_delivered_to_each(clinics, backbone):
    with opened(clinics) as sites:
        clinics.serve(backbone, Directly(sites)).run()
    for name in clinics.names:
        assert charges(clinics, name) == ["round 1", "round 2"]
        place = clinics.site(name) / "runs" / "run-1"
        report = json.loads((place / "report.json").read_text())
        assert report["epsilon_spent"] <= 8.0
        assert report["metric"]["name"] == "accuracy"
        assert (place / "adapter" / "adapter_model.safetensors").exists()
        assert place.stat().st_mode & 0o077 == 0


def test_a_job_that_nobody_approved_is_refused_in_a_word(clinics, backbone, caplog):
    for path in (clinics.site("t0-c0") / "approvals").glob("*.json"):
        path.rename(path.with_suffix(".aside"))
    request = seal(
        clinics.server,
        "run-1",
        "t0-c0",
        1,
        0,
        wire.encode(wire.Join(clinics.terms("run-1").digest, backbone.digest)),
    )
    with Site.open(clinics.site("t0-c0")) as site, caplog.at_level(logging.WARNING):
        assert reason(site.handle("run-1", request)) == "policy"
    assert "was not approved here" in caplog.text
    assert charges(clinics, "t0-c0") == []


def test_an_approval_is_for_one_run(clinics, backbone):
    with Site.open(clinics.site("t0-c0")) as site:
        first = join(clinics, "t0-c0", model=backbone.digest)
        assert isinstance(wire.decode_reply(site.handle("run-1", first)), wire.Joined)
        second = join(clinics, "t0-c0", run="run-2", model=backbone.digest)
        assert reason(site.handle("run-2", second)) == "policy"
    with Site.open(clinics.site("t0-c0")) as site:  # nor after a restart
        assert reason(site.handle("run-2", second)) == "policy"
        clinics.approve("t0-c0")
        assert isinstance(wire.decode_reply(site.handle("run-2", second)), wire.Joined)


@pytest.mark.parametrize(
    ("rule", "value", "said"),
    [
        ("largest_epsilon", 7.9, "largest_epsilon"),
        ("largest_delta", 1e-4, "largest_delta"),
        ("smallest_group", 4, "smallest_group"),
        ("most_colluders", 2, "most_colluders"),
        ("most_rounds", 1, "most_rounds"),
        ("models", ["0" * 64], "models"),
        ("unit", "patient_id", "unit"),
    ],
)
def test_what_violates_the_policy_is_told_to_the_operator_alone(
    clinics, backbone, caplog, rule, value, said
):
    clinics.policy("t0-c0", backbone.frozen_digest.hex(), **{rule: value})
    with Site.open(clinics.site("t0-c0")) as site, caplog.at_level(logging.WARNING):
        reply = site.handle("run-1", join(clinics, "t0-c0", model=backbone.digest))
    assert reply == wire.encode(wire.Refused("policy"))
    assert f"({said})" in caplog.text
    assert charges(clinics, "t0-c0") == []


def test_a_policy_that_is_tightened_ends_the_site_part_in_a_run(clinics, backbone):
    class Tightening(Directly):
        def exchange(self, stage, requests):
            if stage == "round-2/mask":
                digest = backbone.frozen_digest.hex()
                clinics.policy("t0-c0", digest, largest_epsilon=1.0)
            return super().exchange(stage, requests)

    with opened(clinics) as sites:
        server = clinics.serve(backbone, Tightening(sites))
        with contextlib.suppress(RunStopped):
            server.run()
    assert server.records[1].opened == {}
    assert charges(clinics, "t0-c0") == ["round 1"]


def test_silence_for_whoever_the_policy_does_not_name(clinics, backbone):
    stranger = Identity.generate(bytes(range(32)))
    with Site.open(clinics.site("t0-c0")) as site:
        for data in (b"", b"\x80" * 40, join(clinics, "t0-c0", key=stranger)):
            assert site.handle("run-1", data) is None
            assert site.who(data, "17") is None
        joined = site.handle("run-1", join(clinics, "t0-c0", model=backbone.digest))
        assert isinstance(wire.decode_reply(joined), wire.Joined)
        clinics.policy("t0-c0", backbone.frozen_digest.hex(), largest_epsilon=1.0)
        assert site.handle("run-1", join(clinics, "t0-c0", counter=2, key=stranger)) is None
        assert reason(site.handle("run-1", join(clinics, "t0-c0", counter=2))) == "policy"
        assert site.handle("../../x", join(clinics, "t0-c0", run="../../x")) is None
    assert charges(clinics, "t0-c0") == []


def test_a_request_that_comes_twice_is_answered_once(clinics, backbone):
    request = join(clinics, "t0-c0", model=backbone.digest)
    with Site.open(clinics.site("t0-c0")) as site:
        assert site.handle("run-1", request) is not None
        assert site.handle("run-1", request) is None
    with Site.open(clinics.site("t0-c0")) as site:
        assert site.handle("run-1", request) is None


def test_a_site_that_is_started_again_loses_the_round_that_was_dealt_and_no_other(
    tmp_path, tiny_bert, backbone
):
    """Its keys for the second round lived in memory; all three are needed to open anything."""
    clinics = Organisations(tmp_path, tiny_bert, tasks=1, **{**ONE, "rounds": 3})
    clinics.ready(backbone.frozen_digest.hex())
    with contextlib.ExitStack() as stack:
        sites = {
            n: stack.enter_context(Site.open(clinics.site(n)))
            for n in clinics.names
            if n != "t0-c0"
        }

        class Restarting(Directly):
            def exchange(self, stage, requests):
                if stage == "round-2/mask":
                    first.close()
                    sites["t0-c0"] = stack.enter_context(Site.open(clinics.site("t0-c0")))
                return super().exchange(stage, requests)

        first = contextlib.ExitStack()
        sites["t0-c0"] = first.enter_context(Site.open(clinics.site("t0-c0")))
        server = clinics.serve(backbone, Restarting(sites))
        server.run()
    opened_by_round = [sum(map(len, record.opened.values())) for record in server.records]
    assert opened_by_round == [3, 0, 3]
    assert charges(clinics, "t0-c0") == ["round 1", "round 3"]


def test_a_site_that_leaves_says_so_and_pays_for_nothing_more(clinics, backbone, monkeypatch):
    """By the operator's command, between two rounds, with the node stopped."""
    with contextlib.ExitStack() as stack:
        others = [name for name in clinics.names if name != "t0-c0"]
        sites = {n: stack.enter_context(Site.open(clinics.site(n))) for n in others}
        first = contextlib.ExitStack()
        sites["t0-c0"] = first.enter_context(Site.open(clinics.site("t0-c0")))

        class Leaving(Directly):
            def exchange(self, stage, requests):
                if stage == "round-2/mask":
                    first.close()
                    assert call("site", "leave", clinics.site("t0-c0"), "run-9", "--yes") == 2
                    monkeypatch.setattr("builtins.input", lambda _: "")
                    assert call("site", "leave", clinics.site("t0-c0"), "run-1") == 1
                    assert call("site", "leave", clinics.site("t0-c0"), "run-1", "--yes") == 0
                    sites["t0-c0"] = stack.enter_context(Site.open(clinics.site("t0-c0")))
                return super().exchange(stage, requests)

        server = clinics.serve(backbone, Leaving(sites))
        with contextlib.suppress(RunStopped):  # two of three are too few to open anything
            server.run()
        assert set(server._channel.left) == {"t0-c0"}
    assert charges(clinics, "t0-c0") == ["round 1"]


def test_noise_is_planned_anew_where_something_was_spent_since_the_approval(clinics, backbone):
    with Site.open(clinics.site("t0-c0")) as site:
        (approval,) = (clinics.site("t0-c0") / "approvals").glob("*.json")
        shown = json.loads(approval.read_text())["plan"]["rounds"]
        site.ledger.charge(Gaussian(4.0), job="elsewhere", purpose="a survey")
        request = join(clinics, "t0-c0", model=backbone.digest)
        joined = wire.decode_reply(site.handle("run-1", request))
    assert joined.noise_multiplier > shown


def test_a_store_is_made_by_site_init_alone(clinics):
    import shutil

    shutil.rmtree(clinics.site("t0-c0") / "state")
    shutil.rmtree(clinics.site("t0-c0") / "heads")
    with pytest.raises(FedTreeError, match="site init"), Site.open(clinics.site("t0-c0")):
        pass
    assert not (clinics.site("t0-c0") / "state" / "t0-c0" / "store.sqlite").exists()


def test_two_processes_do_not_hold_one_site(clinics):
    with (
        Site.open(clinics.site("t0-c0")),
        pytest.raises(RunFolderError, match="in use"),
        Site.open(clinics.site("t0-c0")),
    ):
        pass


def test_a_key_that_the_roster_does_not_name_opens_no_site(clinics):
    other = Identity.generate(bytes(range(1, 33))).to_private_bytes()
    clinics.replace_key(clinics.site("t0-c0") / "identity.key", other)
    with (
        pytest.raises(ConfigurationError, match="does not name 't0-c0' with the key"),
        Site.open(clinics.site("t0-c0")),
    ):
        pass


def test_a_changed_approval_approves_nothing(clinics, backbone):
    (path,) = (clinics.site("t0-c0") / "approvals").glob("*.json")
    changed = json.loads(path.read_text())
    changed["job"]["rounds"] = 5
    path.write_text(json.dumps(changed))
    job = dataclasses.replace(clinics.job, rounds=5)
    terms = Terms(job, clinics.roster.roster, clinics.roster.server_key, "run-1")
    with Site.open(clinics.site("t0-c0")) as site:
        request = join(clinics, "t0-c0", terms=terms.digest, model=backbone.digest)
        assert reason(site.handle("run-1", request)) == "policy"
    assert charges(clinics, "t0-c0") == []
