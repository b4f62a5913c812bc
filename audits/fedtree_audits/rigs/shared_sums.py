"""A small federation with shared noise and no signal: what the shipped code adds to its sums.

Coordinator, participants, masking, grid and noise are the product's own. The auditor's are the
tree (a trunk and two clusters, the smallest that open), and engines that are given no record: what
they release is noise alone. In the first round everybody survives, so that each cluster opens as
the smallest sum that ever does; in the second a member of one cluster drops out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtree_audits.rigs.broken import any_group_opens, replaced
from fedtree_audits.rigs.federated import two_clusters
from fedtree_audits.rigs.parties import Casting, Parties, ample, open_parties, scratch
from fedtree_audits.rigs.tiny import text_rows, write_model
from fedtree_dp import DPSGD, SharedPoissonGaussian
from fedtree_dp.sgd.engine import StepReport
from fedtree_dp.sgd.guards import Batch
from fedtree_secure.testing import (
    Backbone,
    Coordinator,
    InProcess,
    Job,
    Masking,
    NoisePlan,
    Party,
    Training,
    Transcript,
    Workings,
    inside,
    messages,
    nodes_of,
)

LAYERS, TRUNK, WIDTH, ROUNDS, ROWS = 2, 1, 64, 2, 4
Ints = npt.NDArray[np.int64]
Opening = Callable[[], contextlib.AbstractContextManager[None]]


class NoRecord(DPSGD):
    """The shipped engine on empty batches: noise alone."""

    def step(self, batch: Batch | object) -> StepReport:
        """Take the step without its records."""
        del batch
        return super().step(None)


@dataclass
class Seen:
    """What was measured.

    Attributes:
        step: size of a grid step, in clipping norms of a step's sum.
        parts: by round and client, what it uploaded before masking, (values,) grid steps.
        sums: by round and node, survivors and the opened sum, in grid steps.
        places: of each node its coordinates in an update.
        charged: what each client's ledger was charged for rounds.
    """

    step: float = 0.0
    parts: dict[tuple[int, str], Ints] = field(default_factory=dict)
    sums: dict[tuple[int, str], tuple[tuple[str, ...], Ints]] = field(default_factory=dict)
    places: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    charged: dict[str, list[SharedPoissonGaussian]] = field(default_factory=dict)


@dataclass(frozen=True)
class SumsOf:
    """A federation to be measured.

    Attributes:
        masking: of the job.
        sample_rate, together: of the job's rounds: rate, and the noise multiplier of the honest
            members.
        broken: entered around the run; a self-test breaks a part here.
    """

    masking: Masking
    sample_rate: float
    together: float
    broken: Opening = contextlib.nullcontext


def measure(what: SumsOf, key: bytes) -> Seen:
    """Run a federation and return what its members added, and what was opened.

    Args:
        what: see there.
        key: 32 bytes that all randomness comes from.
    """
    size = what.masking.min_group
    names = tuple(f"c{i:03}" for i in range(2 * size))
    seen = Seen()
    with scratch() as place, what.broken():
        job = Job(
            backbone=str(write_model(place / "model", "llama", layers=LAYERS, hidden=WIDTH)),
            privacy=ample(1e-6, shared=True),
            rounds=ROUNDS,
            task="causal-lm",
            noise="shared",
            masking=what.masking,
            training=Training(records=ROWS, sample_rate=what.sample_rate, max_length=16),
        )
        backbone = Backbone(job, device="cpu")
        casting = Casting(
            rows={name: text_rows(ROWS, number) for number, name in enumerate(names)},
            noise=NoisePlan(rounds=what.together),
            key=key,
            workings=lambda _, randomness: Workings(randomness=randomness, engine=NoRecord),
        )
        with contextlib.ExitStack() as stack:
            parties = open_parties(stack, job, backbone, place / "run", casting)
            tree = two_clusters(names, TRUNK, LAYERS, size, size)
            parties.give_tree(tree)
            stack.enter_context(_watching(seen))
            _run(stack, parties, tree, place / "run", seen, names[-1])
            for name, participant in parties.participants.items():
                seen.charged[name] = [
                    entry.event
                    for entry in participant.party.store.ledger.entries()
                    if isinstance(entry.event, SharedPoissonGaussian)
                ]
            some = parties.participants[names[0]].party
            seen.step = some.quantiser(some.own_clip(merge=False), merge=False).step * (
                what.sample_rate * ROWS / job.training.max_grad_norm
            )
            for node in nodes_of(tree, backbone.layout()):
                seen.places[node.name] = node.gather(np.arange(backbone.layout().length))
    return seen


@contextlib.contextmanager
def _watching(seen: Seen) -> Iterator[None]:
    """Keep what each client releases, from inside of it."""
    release = Party.round_release

    def watched(self: Party, *given: Any) -> Ints:
        found = release(self, *given)
        seen.parts[self.store.record.round, self.id] = found.copy()
        return found

    with replaced((Party, "round_release", watched)):
        yield


class _Losing:
    """Carries messages; one client's answer to the second round's upload never comes."""

    def __init__(self, inner: InProcess, lost: str) -> None:
        self._inner, self._lost = inner, lost

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        if stage == "round-2/mask":
            requests = {name: data for name, data in requests.items() if name != self._lost}
        return self._inner.exchange(stage, requests)


def _run(
    stack: contextlib.ExitStack,
    parties: Parties,
    tree: Any,
    folder: Path,
    seen: Seen,
    lost: str,
) -> None:
    transcript = Transcript(folder / "transcript.txt")
    stack.callback(transcript.close)
    handlers = {name: p.handle for name, p in parties.participants.items()}
    carrier = _Losing(InProcess(handlers, transcript), lost)
    facts = parties.backbone.facts()
    coordinator = Coordinator(parties.terms, parties.server, facts, carrier, folder / "server")
    coordinator.adopt(tree)
    coordinator.run()
    assert coordinator.book is not None
    opened: dict[tuple[int, str], messages.OpenedSum] = {
        (entry.round, entry.node): entry for entry in coordinator.book.opened
    }
    for record in coordinator.records:
        for node, members in record.opened.items():
            total = np.frombuffer(opened[record.round, node].total, dtype="<i4").astype(np.int64)
            seen.sums[record.round, node] = (tuple(members), total)


# --- broken builds --------------------------------------------------------------------------------


def counted_too_high() -> contextlib.AbstractContextManager[None]:
    """Counts every member of the smallest sum and two more as honest."""
    return replaced(
        (Masking, "honest", property(lambda self: self.min_group + 2)),
        (inside.round_checks, "honest_in", lambda plan: plan.min_group + 2),
    )


def split_over_ten() -> contextlib.AbstractContextManager[None]:
    """Each member adds what would do if ten times as many were honest."""
    return replaced((inside.party, "release_of", lambda t, p: _scaled(t, p, 0.1**0.5)))


def parts_of_nothing() -> contextlib.AbstractContextManager[None]:
    """Members add next to nothing."""
    return replaced((inside.party, "release_of", lambda t, p: _scaled(t, p, 1e-3)))


def split_over_too_many() -> contextlib.AbstractContextManager[None]:
    """Splits the noise over the members of the largest group, and charges for the smallest."""
    return replaced((inside.party, "release_of", _thinner))


def without_a_member_s_part() -> contextlib.AbstractContextManager[None]:
    """One client adds next to nothing."""
    release = Party.round_release

    def silent(self: Party, *given: Any) -> Ints:
        found = release(self, *given)
        return found // 1000 if self.id == "c001" else found

    return replaced((Party, "round_release", silent))


def one_part_for_all() -> contextlib.AbstractContextManager[None]:
    """All members draw their part from one seed."""
    release = Party.round_release
    return replaced((Party, "round_release", lambda self, _, plan: release(self, bytes(32), plan)))


def a_shrunken_sum_opens() -> contextlib.AbstractContextManager[None]:
    """Opens a sum with however few survivors, and lets clients believe that enough are honest."""
    return _both(
        any_group_opens(),
        replaced((inside.round_checks, "honest_in", lambda plan: len(plan.cohort))),
    )


@contextlib.contextmanager
def _both(*given: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for one in given:
            stack.enter_context(one)
        yield


def _thinner(terms: Any, plan: Any) -> Any:
    return _scaled(terms, plan, (terms.job.masking.honest / len(plan.cohort)) ** 0.5)


def _scaled(terms: Any, plan: Any, factor: float) -> Any:
    how = inside.shared_noise.release_of(terms, plan)
    return replace(how, deviation=how.deviation * factor)
