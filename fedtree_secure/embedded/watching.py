"""Tells whoever watches an embedded run where it is: a person, and a file of events.

Nothing is decided here, and no client and no server sees anything of it.
"""

import contextlib
import importlib.metadata
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedtree_dp import Ledger, given_honest
from fedtree_secure.agreed.envelope import bytes_of
from fedtree_secure.agreed.head_release import answers_of_head
from fedtree_secure.agreed.stages import FIRST, Exchange, kind_of
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.client.data import Client
from fedtree_secure.config import Job
from fedtree_secure.embedded.forecast import HEADS, PRINTS, STEPS, TESTING, Forecast
from fedtree_secure.embedded.in_process import InProcess
from fedtree_secure.embedded.progress import Observer
from fedtree_secure.events import Events
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.report.advice import Advice
from fedtree_secure.report.statement import quick_epsilon, without_path
from fedtree_secure.server.state import RoundRecord
from fedtree_secure.server.telemetry import RoundMeter, layers_of

# What a stage is called in which no client works on rows; else it is a step of masking.
QUIET = {
    Exchange.JOIN: "join",
    Exchange.SKETCH_HELLO: PRINTS,
    Exchange.SKETCH_SEAL: PRINTS,
    Exchange.TREE: "tree",
    Exchange.ADOPT: "tree",
    Exchange.PREPARE: HEADS,
    Exchange.DRAW_COMMIT: "graph",
    Exchange.DRAW_OPEN: "graph",
    Exchange.DRAW_KEEP: "graph",
    Exchange.CONFIRM: "opening",
    Exchange.REVEAL: "opening",
    Exchange.FINISH: "last experts",
    Exchange.DELIVER: "last experts",
}
CHARGED = (Exchange.SKETCH, Exchange.PREPARE)  # outside of the rounds
CHARGING = (*CHARGED, Exchange.MASK, Exchange.ALONE)


def spending(ledgers: Mapping[str, Ledger]) -> dict[str, tuple[float, float]]:
    """Return epsilon spent and allowed of each client's data set, by client.

    For people who watch: a statement's finer grid would change the third digit only.
    """
    return {
        name: (
            quick_epsilon(given_honest(ledger.events()), ledger.budget.delta),
            ledger.budget.epsilon,
        )
        for name, ledger in ledgers.items()
    }


@dataclass(frozen=True)
class Watch:
    """What is watched of a job, and by whom.

    Attributes:
        name, job: The job; its name in the forecast's plan.
        observer: Is told.
        forecast: Is told, and asked how long the run will take.
        events: Where to write what happens.
        meter: Listens to the events.
        ledgers: By client, once they are open.
    """

    name: str
    job: Job
    observer: Observer
    forecast: Forecast
    events: Events
    meter: RoundMeter
    ledgers: Mapping[str, Ledger] = field(default_factory=dict)
    _spent: dict[str, tuple[float, float]] = field(default_factory=dict)

    def started(self, name: str, clients: Sequence[Client], *, resumed: bool) -> None:
        """The job begins, or goes on."""
        job = self.job
        self.observer.job(name, job.rounds)
        self.events(
            "started",
            name=name,
            job=job.digest().hex(),
            settings=without_path(job.to_dict()),
            clients={
                client.id: {
                    "dataset": client.dataset or client.id,
                    "records": client.records or job.training.records,
                }
                for client in clients
            },
            rounds=job.rounds,
            resumed=resumed,
            process=os.getpid(),
            version=importlib.metadata.version("fedtree-secure"),
        )

    def phase(self, title: str, steps: int = 0) -> None:
        """Something begins that is no exchange."""
        self.observer.stage(title, steps)
        self.events("stage", stage=title, clients=steps)

    @contextlib.contextmanager
    def at_work(self, client: str, label: str = TESTING) -> Iterator[None]:
        """A client works in a phase: at home, nothing is sent."""
        self.forecast.reach(self.name, label)
        self.observer.client(client)
        self.forecast.ask()
        yield
        self.forecast.answer()
        self.observer.step()
        self._tell()

    def step(self) -> None:
        """A client has taken a private step."""
        self.observer.step()
        self._tell()

    def begins(self, stage: str, clients: int) -> None:
        """An exchange begins."""
        kind, number = kind_of(stage), _round_of(stage)
        title, label, steps = self._planned(kind, number)
        if kind == (Exchange.ADVERTISE if number == FIRST else Exchange.MASK):
            self.forecast.mark()  # a round that was dealt ahead begins with its masks
        self.forecast.reach(self.name, label)
        where = f" (round {number})" if number > 0 else " (merge)" if number == 0 else ""
        self.observer.stage(title + where, (steps or 1) * clients)
        self.events("stage", stage=stage, clients=clients)
        self._tell()

    def asks(self, stage: str, client: str) -> None:
        """A client is asked."""
        self.observer.client(client)
        if self._works(stage):
            self.forecast.ask()
        self._tell()

    def answered(self, stage: str, *, well: bool) -> None:
        """It has answered, or failed."""
        if not self._works(stage):
            self.observer.step()
        elif well:
            self.forecast.answer()
        else:
            self.forecast.skip()
        self._tell()

    def ends(self, stage: str, asked: Iterable[str], facts: Mapping[str, Any]) -> None:
        """An exchange is over: the server is at work.

        Args:
            asked: Whose ledgers it may have charged: no others are read again.
            facts: Of the event ``exchange``, see docs/events.md.
        """
        if kind_of(stage) in CHARGING:
            charged = {name: self.ledgers[name] for name in asked if name in self.ledgers}
            self._spent.update(spending(charged))
        self.observer.client("")
        self.events("exchange", stage=stage, **facts)
        if kind_of(stage) in CHARGED:
            self.tell_budget()

    def over(self, record: RoundRecord) -> None:
        """A round is over."""
        self.forecast.rest(self.name, f"round {record.round}, opened")
        self._tell()
        found = self._spending()
        note = f"nothing was opened: {record.error}" if record.error else ""
        self.observer.round(record.round, self.job.rounds, *_tightest(found), note)
        shown = {
            name: {"spent": round(spent, 4), "allowed": allowed}
            for name, (spent, allowed) in found.items()
        }
        facts = self.meter.facts(record)
        self.events("round", rounds=self.job.rounds, epsilon=shown, **facts)

    def tree(self, tree: Tree, facts: ModelFacts) -> None:
        """A tree is in force."""
        names = [f"layer {number}" for number in facts.layer_names]
        self.events("tree", layers=layers_of(tree, names))

    def tell_budget(self) -> None:
        """Tell what is spent."""
        self.observer.budget(*_tightest(self._spending()))

    def _spending(self) -> dict[str, tuple[float, float]]:
        new = {name: ledger for name, ledger in self.ledgers.items() if name not in self._spent}
        self._spent.update(spending(new))
        return dict(self._spent)

    def note(self, text: str) -> None:
        """Say something that a person must know at once: names and stages, no error's text."""
        self.observer.note(text)
        self.events("note", text=text)

    def advise(self, found: Advice) -> None:
        """Say what a person may want to change before anything is spent."""
        self.observer.advice(found.text)
        self.events("advice", key=found.key, text=found.text)

    def _tell(self) -> None:
        self.observer.left(self.forecast.left())

    def _works(self, stage: str) -> bool:
        return self._planned(kind_of(stage), _round_of(stage))[2] > 0

    def _planned(self, kind: Exchange, number: int) -> tuple[str, str, int]:
        """Title of a stage, its label in the plan, and private steps of one client in it."""
        job = self.job
        if kind == Exchange.SKETCH and number == FIRST:
            return STEPS, "round 1, gradients", 1
        if kind == Exchange.SKETCH:
            prints = job.topology.source == "fingerprint"
            return PRINTS, "sketch", 1 if prints else job.topology.warmup_steps
        if kind == Exchange.PREPARE and job.head_steps:
            return HEADS, "heads", answers_of_head(job)
        if kind in (Exchange.MASK, Exchange.ALONE) and number >= FIRST:
            return STEPS, f"round {number}", job.training.local_steps
        return QUIET.get(kind, "masking"), "", 0


def _tightest(found: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Epsilon spent and allowed of the client that has least left."""
    return min(found.values(), key=lambda pair: pair[1] - pair[0])


def _round_of(stage: str) -> int:
    """The number of a stage's round; -1 outside of the rounds."""
    before = stage.partition("/")[0]
    return int(before.removeprefix("round-")) if before.startswith("round-") else -1


class Announcing:
    """A transport that is watched."""

    def __init__(self, inner: InProcess, watch: Watch) -> None:
        self._inner, self._watch = inner, watch

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        """See `Transport.exchange`."""
        self._watch.begins(stage, len(requests))
        began, before = time.monotonic(), len(self._inner.failures)
        replies: dict[str, bytes] = {}
        try:
            replies = self._inner.exchange(stage, requests)
            return replies
        finally:
            failed = {f.client: type(f.error).__name__ for f in self._inner.failures[before:]}
            missing = {
                name: f"failed: {failed[name]}" if name in failed else "no reply"
                for name in requests
                if name not in replies
            }
            facts = {
                "asked": len(requests),
                "answered": sorted(replies),
                "missing": missing,
                "seconds": round(time.monotonic() - began, 3),
                "bytes_out": bytes_of(requests),
                "bytes_in": sum(map(len, replies.values())),
                "messages": len(requests) + len(replies),
            }
            self._watch.ends(stage, requests, facts)
