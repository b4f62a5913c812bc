"""May this run's adapters go on? A pipeline's question, answered with an exit code.

In this order, and the first kind of trouble decides the code (`report.exit_codes`): the folder is
what its clients signed; the run kept its protocol; every data set's epsilon, computed again from
its ledger, is within its own budget, what the job promises its client, and what is allowed here; no
audit fails; every required audit passed, on the files that are here. What cannot be read is
trouble, never a pass.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedtree_dp import Event, Ledger, PrivacyBudget, PrivacyUnit, epsilon_of, given_honest
from fedtree_dp.account.accounting import merge
from fedtree_dp.account.shared import counted_on
from fedtree_dp.account.statements import condition
from fedtree_dp.ledger.entries import Entry
from fedtree_secure.config import Masking
from fedtree_secure.errors import ConfigurationError, FedTreeError, suggest
from fedtree_secure.report.audit_files import (
    FAIL,
    FOLDER,
    INCONCLUSIVE,
    AuditFinding,
    read_audits,
)
from fedtree_secure.report.exit_codes import Exit, worst
from fedtree_secure.report.manifest import NAME
from fedtree_secure.report.masks import graph_troubles
from fedtree_secure.report.promises import agreed_in, broken, spent, until_last_charge, within
from fedtree_secure.report.verification import verify
from fedtree_secure.storage import read_json

TOLERANCE = 1e-3  # between the summary's epsilon and the ledger's, as in the audit `ledger`


@dataclass(frozen=True)
class RequiredAudits:
    """Audits that must have passed; the keys of a TOML file.

    Attributes:
        required: Names.
        detected: For some of them, the largest value that they must have been able to notice.
    """

    required: tuple[str, ...] = ()
    detected: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """What is allowed.

    Attributes:
        max_epsilon: Largest epsilon of any data set, over all jobs.
        max_delta: Largest delta; below 1/n of declared records it must be anyhow.
        max_own_epsilon: Largest epsilon whatever all others do, where charges count on other
            clients' noise; without it no such run passes.
        audits: Those that must have passed.
        simulations: Whether a simulation may pass, whose ledgers began empty.
        manifest_sha256: Of the manifest, as it was kept elsewhere.
    """

    max_epsilon: float
    max_delta: float | None = None
    audits: RequiredAudits = field(default_factory=RequiredAudits)
    simulations: bool = False
    manifest_sha256: str | None = None
    max_own_epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.max_own_epsilon is not None and not 0.0 < self.max_own_epsilon < math.inf:
            raise ConfigurationError(
                f"max-own-epsilon is {self.max_own_epsilon}; it must be above 0"
            )
        if not 0.0 < self.max_epsilon < math.inf:
            raise ConfigurationError(f"max-epsilon is {self.max_epsilon}; it must be above 0")
        if self.max_delta is not None and not 0.0 < self.max_delta < 1.0:
            raise ConfigurationError(f"max-delta is {self.max_delta}; it must be within 0 and 1")


@dataclass(frozen=True)
class Trouble:
    """One reason not to pass."""

    code: Exit
    said: str


@dataclass(frozen=True)
class Decision:
    """Outcome of `decide`.

    Attributes:
        troubles: All reasons not to pass.
        epsilon: Of each data set, from its ledger, by client; None where it cannot be read.
        verdicts: Of the audits that ran.
        manifest_sha256: Of the manifest that was checked.
    """

    troubles: tuple[Trouble, ...]
    epsilon: Mapping[str, float | None]
    verdicts: Mapping[str, str]
    manifest_sha256: str

    @property
    def code(self) -> Exit:
        """The exit code: that of the gravest trouble."""
        return worst(trouble.code for trouble in self.troubles)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for ``--json``."""
        return {
            "schema": 1,
            "passed": self.code is Exit.OK,
            "exit_code": int(self.code),
            "troubles": [
                {"exit_code": int(t.code), "kind": t.code.name.lower(), "said": t.said}
                for t in self.troubles
            ],
            "epsilon": {
                name: "inf" if value == math.inf else value for name, value in self.epsilon.items()
            },
            "audits": dict(self.verdicts),
            "manifest_sha256": self.manifest_sha256,
        }


def read_required(path: Path) -> RequiredAudits:
    """Read a file of required audits.

    ::

        required = ["ledger", "disclosure"]
        [detected]
        canary_whitebox = 16.0

    Raises:
        ConfigurationError: It cannot be read, or has a key or a value that is not allowed.
    """
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the file of audits {path} cannot be read: {error}") from None
    for key in found:
        if key not in ("required", "detected"):
            raise ConfigurationError(
                f"{path} has the unknown key {key!r}{suggest(key, ('required', 'detected'))}"
            )
    names, detected = found.get("required"), found.get("detected", {})
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ConfigurationError(f"{path}: required is {names!r}; it must be a list of audits")
    numbers = isinstance(detected, dict) and all(
        isinstance(x, int | float) and not isinstance(x, bool) for x in detected.values()
    )
    if not numbers or set(detected) - set(names):
        raise ConfigurationError(
            f"{path}: detected is {detected!r}; it must be a table of numbers for required audits"
        )
    return RequiredAudits(tuple(names), detected)


def decide(folder: Path, limits: Limits) -> Decision:
    """Decide on a run folder.

    Raises:
        ConfigurationError: There is no run here.
    """
    verified = verify(folder, limits.manifest_sha256)
    if not any((folder / name).exists() for name in (NAME, "summary.json")):
        unfinished = Trouble(Exit.PROTOCOL, f"{folder} holds a run that is not finished")
        return Decision((unfinished,), {}, {}, "")
    troubles = [Trouble(Exit.SIGNATURE, str(finding)) for finding in verified.findings]
    job = _read(folder / "job.json")
    summary = _read(folder / "summary.json")
    troubles += _protocol(job, summary, limits)
    told = {"job.json": unit_told(_table(job, "job"))}
    told["summary.json"] = unit_told(_table(summary, "job"), _table(summary, "guarantee"))
    epsilon: dict[str, float | None] = {}
    for client, about in sorted(_table(job, "clients").items()):
        held = _held(folder, client, about)
        if isinstance(held, Trouble):
            epsilon[client] = None
            troubles.append(held)
            continue
        claim = _table(_table(summary, "clients"), client).get("epsilon_spent")
        epsilon[client], more = _budget(held, client, about, claim, limits)
        troubles += [*more, *_unit(held, client, told), *_promise(held, client, job, summary)]
        troubles += _condition(held, client, _table(summary, "guarantee"))
    try:
        audits = {audit.name: audit for audit in read_audits(folder)}
    except FedTreeError as error:
        audits = {}
        troubles.append(Trouble(Exit.INCONCLUSIVE, str(error)))
    troubles += _audits(audits, limits.audits, verified.unsigned)
    return Decision(
        tuple(troubles),
        epsilon,
        {name: audit.verdict for name, audit in audits.items()},
        verified.manifest_sha256,
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path)
    except FedTreeError:
        return {}
    return found if isinstance(found, dict) else {}


def _table(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _protocol(
    job: Mapping[str, Any], summary: Mapping[str, Any], limits: Limits
) -> Iterator[Trouble]:
    """What an honest run never leaves behind: an end that is missing, a sum over too few."""
    if not summary:
        yield Trouble(Exit.PROTOCOL, "the run is not finished: there is no readable summary.json")
        return
    if job.get("simulate") is not False and not limits.simulations:
        yield Trouble(
            Exit.PROTOCOL,
            "the run is a simulation: its ledgers began empty and say nothing of what was spent on "
            "the data sets. Run it in earnest, or allow simulations",
        )
    try:
        yield from _graphs(summary)
        yield from _rounds(summary)
    except (KeyError, TypeError, AttributeError, ConfigurationError) as error:
        yield Trouble(Exit.PROTOCOL, f"summary.json cannot be read as a run's: {error!r}")


def _graphs(summary: Mapping[str, Any]) -> Iterator[Trouble]:
    """What the statement says of masks must follow from the job."""
    said = _table(summary, "guarantee").get("masks", [])
    for text in graph_troubles(Masking(**summary["job"]["masking"]), said):
        yield Trouble(Exit.SIGNATURE, f"the statement says of masks: {text}")


def _rounds(summary: Mapping[str, Any]) -> Iterator[Trouble]:
    settings, rounds = summary["job"], summary["rounds"]
    least = settings["masking"]["min_group"]
    done = {record["round"] for record in rounds if record["round"] > 0}
    if done != set(range(1, settings["rounds"] + 1)):
        yield Trouble(Exit.PROTOCOL, f"{len(done)} of {settings['rounds']} rounds are recorded")
    for record in rounds:
        small = [len(names) for names in record["opened"].values() if len(names) < least]
        if small:
            yield Trouble(
                Exit.PROTOCOL,
                f"round {record['round']} opened a sum over {min(small)} clients, fewer than "
                f"min_group {least}",
            )
    for layer in summary["layers"]:
        small = [len(group) for group in layer["released"] if len(group) < least]
        if small:
            yield Trouble(
                Exit.PROTOCOL,
                f"layer {layer['layer']} has an opened group of {min(small)}, fewer than "
                f"min_group {least}",
            )


@dataclass(frozen=True)
class _Held:
    """What a client's ledger holds, read and verified once.

    Attributes:
        entries: All its lines.
        budget: Of the data set.
        unit: What it protects, None for records.
    """

    entries: tuple[Entry, ...]
    budget: PrivacyBudget
    unit: PrivacyUnit | None

    @property
    def charged(self) -> tuple[Event, ...]:
        """All charges."""
        return tuple(entry.event for entry in self.entries if entry.event is not None)


def _held(folder: Path, client: str, about: Mapping[str, Any]) -> _Held | Trouble:
    try:
        with Ledger.inspect(folder / "ledgers" / f"{about['dataset']}.sqlite") as ledger:
            return _Held(tuple(ledger.entries()), ledger.budget, ledger.unit)
    except (FedTreeError, KeyError, TypeError) as error:
        return Trouble(Exit.SIGNATURE, f"{client}: its ledger cannot be read: {error}")


def _budget(
    held: _Held, client: str, about: Mapping[str, Any], claim: Any, limits: Limits
) -> tuple[float | None, list[Trouble]]:
    """Compute a data set's epsilon from its ledger; compare with budget, limits and claim."""
    charged, budget = held.charged, held.budget
    events = merge(given_honest(charged))
    said, troubles = f"{client}: epsilon", _own_budget(client, charged, budget, limits)
    for allowed, whose in ((budget.epsilon, "its own budget"), (limits.max_epsilon, "max-epsilon")):
        if not within(events, budget.delta, allowed):
            reached = epsilon_of(events, budget.delta)
            troubles.append(
                Trouble(Exit.BUDGET, f"{said} is {reached:.4f}, above {allowed:g}, {whose}")
            )
    if limits.max_delta is not None and budget.delta > limits.max_delta:
        troubles.append(
            Trouble(
                Exit.BUDGET,
                f"{client}: delta is {budget.delta:g}, above {limits.max_delta:g}, max-delta",
            )
        )
    troubles += _delta(client, about, budget.delta)
    if not _claimed(events, budget.delta, claim):
        troubles.append(
            Trouble(
                Exit.SIGNATURE,
                f"{said} by its ledger is {spent(events, budget.delta):.4f}, by summary.json "
                f"{claim}",
            )
        )
    return spent(events, budget.delta), troubles


def _own_budget(
    client: str, charged: tuple[Event, ...], budget: PrivacyBudget, limits: Limits
) -> list[Trouble]:
    """A claim that counts on others passes only where somebody allowed what holds without them."""
    honest = counted_on(charged)
    if honest == 1:
        return []
    alone, found = merge(charged), []
    own, said = spent(alone, budget.delta), f"{client}: epsilon by its own noise alone"
    if limits.max_own_epsilon is None:
        found.append(
            Trouble(
                Exit.BUDGET,
                f"{client}: its epsilon holds only while {condition(honest)}; whatever they do it "
                f"is {own:.4f}: allow that with max-own-epsilon",
            )
        )
    bounds = [(budget.alone.epsilon, "its own_epsilon")]
    if limits.max_own_epsilon is not None:
        bounds.append((limits.max_own_epsilon, "max-own-epsilon"))
    for allowed, whose in bounds:
        if not within(alone, budget.delta, allowed):
            reached = epsilon_of(alone, budget.delta)
            text = f"{said} is {reached:.4f}, above {allowed:g}, {whose}"
            found.append(Trouble(Exit.BUDGET, text))
    return found


def _promise(
    held: _Held, client: str, job: Mapping[str, Any], summary: Mapping[str, Any]
) -> Iterator[Trouble]:
    """What the job promises a client must have been kept, and be told alike."""
    charged = until_last_charge(held.entries, str(job.get("run")))
    try:
        agreed, told = (agreed_in(_table(file, "job"), client) for file in (job, summary))
    except (FedTreeError, KeyError, TypeError, AttributeError) as error:
        yield Trouble(
            Exit.PROTOCOL, f"{client}: what the job promises it cannot be read: {error!r}"
        )
        return
    if agreed != told:
        yield Trouble(
            Exit.SIGNATURE,
            f"{client}: job.json promises {agreed}, summary.json {told}; they must say one thing",
        )
    for said in broken(agreed, charged):
        yield Trouble(Exit.BUDGET, f"{client}: {said}")


def _condition(held: _Held, client: str, guarantee: Mapping[str, Any]) -> Iterator[Trouble]:
    """What the run's own charges count on must stand in what it says."""
    honest = counted_on(held.charged)
    told = _table(guarantee, "shared").get("honest")
    if honest > 1 and not (
        isinstance(told, int)
        and told >= honest
        and _table(guarantee, "shared").get("condition") == condition(told)
    ):
        yield Trouble(
            Exit.SIGNATURE,
            f"{client}: its ledger counts on {honest - 1} honest others in every sum, and "
            "summary.json does not say so",
        )


def unit_told(job: Mapping[str, Any], guarantee: Mapping[str, Any] | None = None) -> Any:
    """What a file says is protected: name and bound of a unit, None for single records; text that
    no ledger holds where it contradicts itself.
    """
    told = None
    if job.get("unit") is not None or job.get("max_per_unit") is not None:
        told = {"name": job.get("unit"), "at_most": job.get("max_per_unit")}
    if guarantee is not None and guarantee.get("of") != told:
        return "one thing in its job and another in its guarantee"
    return told


def _unit(held: _Held, client: str, told: Mapping[str, Any]) -> Iterator[Trouble]:
    """An epsilon for records is none for patients: the ledger says what charges protect."""
    unit = held.unit
    protected = None if unit is None else unit.to_dict()
    for name, said in told.items():
        if said != protected:
            what = "one record" if unit is None else unit.neighbours.removeprefix("add or remove ")
            yield Trouble(
                Exit.SIGNATURE,
                f"{client}: its ledger protects {what}; {name} says {_shown(said)}",
            )


def _shown(told: Any) -> str:
    if isinstance(told, Mapping):
        return f"one {told['name']} (at most {told['at_most']} records)"
    return "one record" if told is None else str(told)


def _delta(client: str, about: Mapping[str, Any], delta: float) -> list[Trouble]:
    """A delta of 1/n lets one record be published in full."""
    records = about.get("records")
    if isinstance(records, int) and records > 0 and delta * records >= 1.0:
        return [
            Trouble(
                Exit.BUDGET, f"{client}: delta {delta:g} is not below 1/{records} of its records"
            )
        ]
    return []


def _claimed(events: tuple[Event, ...], delta: float, claim: Any) -> bool:
    """Whether the summary claims what the ledger says; the fine grid decides where they differ."""
    if not isinstance(claim, int | float):
        return False
    close = abs(spent(events, delta) - claim) <= TOLERANCE
    return close or abs(epsilon_of(events, delta) - claim) <= TOLERANCE


def _audits(
    found: Mapping[str, AuditFinding], wanted: RequiredAudits, unsigned: tuple[str, ...]
) -> Iterator[Trouble]:
    for name, audit in found.items():
        if audit.verdict == FAIL:
            yield Trouble(Exit.AUDIT, f"audit {name} fails: {'; '.join(audit.troubles[:3])}")
    for name in wanted.required:
        if name not in found:
            yield Trouble(Exit.INCONCLUSIVE, f"audit {name} is required and did not run")
            continue
        yield from _required(found[name], wanted.detected.get(name))
        if f"{FOLDER}/{name}.json" in unsigned:
            yield Trouble(
                Exit.SIGNATURE,
                f"audit {name} is required and nobody signed it: fedtree-secure report FOLDER, "
                "where the clients' keys are",
            )


def _required(audit: AuditFinding, most: float | None) -> Iterator[Trouble]:
    if audit.verdict == INCONCLUSIVE:
        yield Trouble(
            Exit.INCONCLUSIVE,
            f"audit {audit.name} is inconclusive: {'; '.join(audit.troubles[:3]) or audit.power}",
        )
    if audit.stale:
        yield Trouble(
            Exit.INCONCLUSIVE,
            f"audit {audit.name} looked at other files than those here: {', '.join(audit.stale)}",
        )
    seen = math.inf if audit.detected is None else audit.detected
    if most is not None and not audit.exact and seen > most:
        yield Trouble(
            Exit.INCONCLUSIVE,
            f"audit {audit.name} could not have seen enough: {audit.power}; at most {most:g} is "
            "asked for",
        )
