"""One client's side of a run: what it holds, and what it computes from its rows.

Every method that touches rows takes the seed of a charge, and what it returns is the output of the
mechanism that was charged. Its randomness comes from that seed alone, so a result that depends on
nothing a server sent can be computed again and is the same.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fedtree_dp import DPSGD, Gaussian, NoiseSource, PoissonGaussian, SharedPoissonGaussian
from fedtree_dp.sgd.grid import Grid, Ints
from fedtree_secagg import Identity, Node, Plan, sketch
from fedtree_secure.agreed.class_sums import head_of
from fedtree_secure.agreed.cohort import Era, Roll
from fedtree_secure.agreed.head_groups import labels_digest
from fedtree_secure.agreed.head_release import sums_classes
from fedtree_secure.agreed.noise_plan import NoisePlan
from fedtree_secure.agreed.round_plan import (
    clip_is_usable,
    fixed_tree,
    largest_change,
    nodes_of,
    nodes_of_round,
    quantiser_of,
    tree_without_distances,
)
from fedtree_secure.agreed.shared_noise import check_grid, release_of, shared_clip, shared_event
from fedtree_secure.agreed.stages import Purpose
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.agreed.tree import Tree, tree_of
from fedtree_secure.client.class_sums import check_head, release_sums
from fedtree_secure.client.data import Client
from fedtree_secure.client.fingerprint import fingerprint
from fedtree_secure.client.head import train_head
from fedtree_secure.client.kept import Kept, keep
from fedtree_secure.client.mechanism import Engine, Mechanism
from fedtree_secure.client.parts import LocalModel
from fedtree_secure.client.seats import check_units
from fedtree_secure.client.state import (
    ClientState,
    Floats,
    head_from,
    head_values_of,
    initial_state,
    loaded_into,
)
from fedtree_secure.client.store import Store
from fedtree_secure.client.training import RoundTrainer
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.model.backbone import Backbone, Observation
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.model.rows import ClientData, Table

log = logging.getLogger("fedtree_secure.client")
Tick = Callable[[str, str], None]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """What one client brings to a run.

    Attributes:
        client: Its description.
        data: Its tokenised rows.
        identity: Its signing key, which the roster pins.
        noise_plan: What its stages cost.
    """

    client: Client
    data: ClientData
    identity: Identity
    noise_plan: NoisePlan


@dataclass(frozen=True)
class Workings:
    """What audits and progress bars replace.

    Attributes:
        randomness: Gives fresh bytes for the masking protocol.
        engine: What takes the DP-SGD steps.
        tick: Called with the client's id and the stage after each step.
        place: The client's own folder of the run, for what does not stay in memory; None for none.
    """

    randomness: Callable[[int], bytes] = os.urandom
    engine: Engine = DPSGD
    tick: Tick = lambda *_: None
    place: Path | None = None


class Party:
    """Terms, model, member and store of one client; see the module's text.

    Args:
        terms: Its own copy of what all parties pinned.
        member: Who it is.
        backbone: The frozen model; shared by the clients of one process.
        store: Its memory of this run.
        workings: See `Workings`.
        cache: Computed from rows with the frozen model, once in a process; never leaves it.
    """

    def __init__(
        self,
        terms: Terms,
        member: Member,
        backbone: Backbone,
        store: Store,
        workings: Workings,
        cache: dict[str, Observation],
    ) -> None:
        self.terms, self.member, self.backbone, self.store = terms, member, backbone, store
        self.workings, self._cache = workings, cache
        self._kept: Kept | None = None
        self.facts: ModelFacts = backbone.facts(terms.outputs_of_heads)
        self._check_head_group()
        check_head(self.job, self.outputs, backbone)
        self._check_shared_noise()
        check_units(terms.job, member.data.train.units)

    @property
    def id(self) -> str:
        """The client's name in the roster."""
        return self.member.client.id

    @property
    def job(self) -> Job:
        """The public configuration."""
        return self.terms.job

    @property
    def records(self) -> int:
        """Declared size of the training set."""
        return self.member.client.records or self.job.training.records

    @property
    def outputs(self) -> int:
        """Classes of its head; 0 for language modelling."""
        return len(self.member.data.label_set)

    def _check_head_group(self) -> None:
        """Refuse terms that put this client's head among heads with other outputs."""
        data, labels = self.member.data, labels_digest([str(x) for x in self.member.data.label_set])
        for group in self.terms.heads:
            fits = group.labels == labels and group.outputs == self.outputs
            if self.id in group.members and not (data.labels_declared and fits):
                raise ConfigurationError(
                    f"client {self.id}: the terms put its head in a group with other labels than "
                    "those that it declares"
                )

    def _check_shared_noise(self) -> None:
        """Refuse another divisor than the others', under which their noise would protect this
        client less, and a grid that is too coarse for exact noise.
        """
        declared, agreed = self.records, self.job.training.records
        if self.job.noise == "own":
            return
        check_grid(self.terms, self.facts.layout.length)
        if declared != agreed:
            raise ConfigurationError(
                f'client {self.id}: it declares {declared} records; with noise = "shared" all have '
                f"one divisor, training.records = {agreed}: leave out the client's own"
            )

    def fresh(self) -> bytes:
        """Return 32 fresh bytes for a step of the masking protocol."""
        return self.workings.randomness(32)

    def sketch_advert(
        self, members: tuple[str, ...], context: bytes
    ) -> tuple[sketch.Greeted, bytes]:
        """Return the state and the signed key advert of a sketch among some members."""
        identity, roster = self.member.identity, self.terms.roster
        return sketch.hello(identity, self.id, roster, members, context, randomness=self.fresh())

    # --- the tree -------------------------------------------------------------------------------

    def tree(self) -> Tree:
        """The tree that this client adopted.

        A client that adopted none keeps every layer to itself.
        """
        labels, least = self.store.record.tree, self.job.masking.min_group
        if labels is not None:
            return tree_of(self.terms.names, labels, least)
        fixed = fixed_tree(self.terms, self.facts)
        return fixed or tree_without_distances(self.terms, self.facts, "none")

    @property
    def has_tree(self) -> bool:
        """Whether this client adopted a tree, or the job's tree needs no adopting."""
        fixed = fixed_tree(self.terms, self.facts)
        return self.store.record.tree is not None or fixed is not None

    def roll(self) -> Roll:
        """All trees that this client adopted, and whom it knows to have left.

        A client that adopted none has the tree that the job's terms give.
        """
        record, least = self.store.record, self.job.masking.min_group
        names = self.terms.names
        before = [Era(tree_of(names, e.labels, least), e.evidence) for e in record.earlier]
        seated = frozenset(record.seated or names)
        return Roll((*before, Era(self.tree(), record.evidence)), seated, frozenset(record.gone))

    def nodes(self) -> tuple[Node, ...]:
        """The nodes that this client belongs to, by name."""
        return self.nodes_under(self.tree())

    def nodes_under(self, tree: Tree) -> tuple[Node, ...]:
        """The same under another tree."""
        every = nodes_of(tree, self.facts.layout)
        return tuple(node for node in every if self.id in node.members)

    def sums(self, *, merge: bool) -> bool:
        """Whether a round of this kind sums a node of this client."""
        every = nodes_of_round(self.tree(), self.facts.layout, self.job, merge=merge)
        return any(self.id in node.members for node in every)

    def shares(self, *, merged: bool | None = None) -> list[bool]:
        """For each part of the layout, whether this client's value of it is its group's.

        Args:
            merged: Whether the heads of its group were averaged: until then its head is its own.
                What its record says, if None.
        """
        tree, depth = self.tree(), self.facts.depth
        shared = [tree.group_of(self.id, part) is not None for part in range(len(tree.labels))]
        known = self.store.record.head_merged if merged is None else merged
        if self.terms.merges_heads and not known:
            return [*shared[:depth], *(False for _ in shared[depth:])]
        return shared

    def head_range(self) -> tuple[int, int] | None:
        """Where its group's head stands in the layout; None where its head stays at home."""
        for group, place in zip(self.terms.heads, self.facts.layout.heads, strict=True):
            if self.id in group.members:
                return place
        return None

    def mixing(self) -> Bools:
        """(depth,) whether the layer has an external expert."""
        depth = self.facts.depth
        if self.store.record.tree is None:
            return np.zeros(depth, dtype=bool)
        tree = self.tree()
        return np.array([bool(tree.externals_of(self.id, layer)) for layer in range(depth)])

    # --- what rounds cost and reach -------------------------------------------------------------

    def round_event(self) -> PoissonGaussian | SharedPoissonGaussian:
        """What a round of training is charged. A client of no sum shares its noise with nobody."""
        if self.job.noise == "shared" and self.nodes():
            return shared_event(self.terms)
        return self._steps(self.member.noise_plan.rounds, self.job.training.local_steps)

    def own_clip(self, *, merge: bool) -> float:
        """Bound on what this client uploads, see `largest_change`."""
        if self.job.noise == "shared" and not merge:
            return shared_clip(self.terms)
        return largest_change(self.job, self.member.noise_plan.rounds, self.records, merge=merge)

    def takes_clip(self, clip: float, *, merge: bool) -> bool:
        """Whether this client uploads under a clip. Where noise is shared there is one: the grid
        decides what rounding costs, and members on other grids would add other noise.
        """
        own = self.own_clip(merge=merge)
        if self.job.noise == "shared" and not merge:
            return clip == own
        return clip_is_usable(clip, own)

    def quantiser(self, clip: float, *, merge: bool, tree: Tree | None = None) -> Any:
        """The grid of a round under the run's clip; of one that an earlier tree was in force in."""
        every = nodes_of_round(tree or self.tree(), self.facts.layout, self.job, merge=merge)
        largest = max(len(node.members) for node in every)
        return quantiser_of(self.job, clip, largest, merge=merge)

    def _steps(self, multiplier: float, steps: int) -> PoissonGaussian:
        return PoissonGaussian(multiplier, self.job.training.sample_rate, steps)

    # --- what touches rows ----------------------------------------------------------------------

    def keep_activations(self) -> None:
        """Take the room for what frozen layers make of the rows (see `kept`); nothing is computed.

        Raises:
            ConfigurationError: There is none.
        """
        train, place = self.member.data.train, self.workings.place
        self._kept = keep(self.backbone, self.job, train, self.records, place)

    def forget_activations(self) -> None:
        """Delete them: the run is over here, or this process's part in it."""
        if self._kept is not None:
            self._kept.close()

    def observed(self) -> Observation:
        """The frozen model's view of the rows: computed once, with the public initial experts."""
        if "observed" not in self._cache:
            initial = initial_state(self.backbone, self.outputs)
            flat = np.zeros(self.facts.depth, dtype=bool)
            with loaded_into(self.backbone, initial, self.outputs, flat):
                self._cache["observed"] = self.backbone.observe(self.member.data.train)
        return self._cache["observed"]

    def sketch_event(self) -> tuple[Purpose, Gaussian | PoissonGaussian]:
        """What the vectors behind a sketch cost, and under which name."""
        plan = self.member.noise_plan
        if self.job.topology.source == "fingerprint":
            return Purpose.FINGERPRINT, Gaussian(plan.fingerprint)
        return Purpose.WARM_UP, self._steps(plan.warm_up, self.job.topology.warmup_steps)

    def sketch_vectors(self, seed: bytes) -> "np.ndarray[Any, Any]":
        """Return the (depth, values) vectors that a sketch is made of; noise included."""
        if self.job.topology.source == "fingerprint":
            return self._fingerprint(seed)
        return np.stack(self._warm_up(seed))

    def _fingerprint(self, seed: bytes) -> "np.ndarray[Any, Any]":
        units = self.member.data.train.units

        def of(
            means: "np.ndarray[Any, Any]", units: "np.ndarray[Any, Any] | None"
        ) -> "np.ndarray[Any, Any]":
            return fingerprint(
                means,
                self.backbone.layer_reference,
                noise_multiplier=self.member.noise_plan.fingerprint,
                records=self.records,
                noise=NoiseSource(seed),
                units=units,
            )

        self.workings.tick(self.id, Purpose.FINGERPRINT)
        nobody = np.zeros((0, self.facts.depth, self.facts.hidden_size), dtype=np.float32)
        without = self.member.data.train.none().units
        return self._answered(lambda: of(self.observed().means, units), lambda: of(nobody, without))

    def _warm_up(self, seed: bytes) -> "list[np.ndarray[Any, Any]]":
        steps, state = self.job.topology.warmup_steps, self.store.state
        depth = self.facts.depth
        shares = [True] * depth + self.shares()[depth:]
        mechanism = Mechanism(self.member.noise_plan.warm_up, self.records, steps)
        change = self._train(mechanism, shares, seed, upload_gradient=False)
        with loaded_into(self.backbone, state, self.outputs, self.mixing()):
            vectors = self.backbone.experts.b_factors()
        state.pending = change
        state.own = self.backbone.initial_expert.copy()
        return vectors

    def head_event(self) -> PoissonGaussian | Gaussian:
        """What the head alone costs: its steps, or the release of class sums."""
        if sums_classes(self.job):
            return Gaussian(self.member.noise_plan.head)
        rate = self.job.training.head_sample_rate
        return PoissonGaussian(self.member.noise_plan.head, rate, self.job.head_steps)

    def train_head(self, seed: bytes) -> None:
        """Make the head alone of cached features, as the job does; the result stays at home."""
        own = self.member.data.train
        assert own.labels is not None  # or the request was answered without a charge
        if sums_classes(self.job):
            self._release_sums(own, seed)
            return
        mechanism = Mechanism(self.member.noise_plan.head, self.records, self.job.head_steps)

        def on(table: Table) -> None:
            features = self.observed().features[: len(table)]
            assert table.labels is not None
            with loaded_into(self.backbone, self.store.state, self.outputs, self.mixing()):
                train_head(
                    features,
                    table.labels,
                    self.backbone.centred,
                    self.job,
                    mechanism,
                    NoiseSource(seed),
                    lambda: self.workings.tick(self.id, Purpose.HEAD),
                    table.members,
                )

        self._answered(lambda: on(own), lambda: on(own.none()))
        self._keep_for_the_group()

    def _release_sums(self, own: Table, seed: bytes) -> None:
        """Release class sums: the group's head will come from all members' together, and until then
        this client has that of its own.
        """
        state = self.store.state

        def of(table: Table) -> "np.ndarray[Any, np.dtype[np.float64]]":
            flat = np.zeros(self.facts.depth, dtype=bool)
            features = self.observed().features[: len(table)]
            with loaded_into(self.backbone, state, self.outputs, flat):
                return release_sums(
                    features,
                    table,
                    self.backbone.centred,
                    records=self.job.training.records,
                    noise_multiplier=self.member.noise_plan.head,
                    noise=NoiseSource(seed),
                )

        self.workings.tick(self.id, Purpose.HEAD)
        released = self._answered(lambda: of(own), lambda: of(own.none()))
        deviation = self.member.noise_plan.head / self.job.training.records
        head_from(state.head, head_of(released, self.outputs, deviation))
        self._set_aside(released)

    def _keep_for_the_group(self) -> None:
        """Set the head's change aside for the merge of its group."""
        place = self.head_range()
        if place is not None:
            initial = self.facts.initial[slice(*place)]
            self._set_aside(head_values_of(self.store.state.head) - initial)

    def _set_aside(self, values: "np.ndarray[Any, Any]") -> None:
        """Keep what goes into the head's place of the group's merge."""
        state, place = self.store.state, self.head_range()
        if place is not None:
            if state.pending is None:
                state.pending = np.zeros(self.facts.layout.length, dtype=np.float32)
            state.pending[slice(*place)] = values

    def rehearse(self, state: ClientState) -> None:
        """Run the engine's guards on public dummy records under the weights received.

        Raises:
            fedtree_dp.TrainingError, fedtree_dp.ConfigurationError: These weights train nothing.
        """
        mechanism = Mechanism(self.member.noise_plan.rounds, self.records, steps=1)
        self._trainer().rehearse(state, self._local(self.shares()), mechanism)

    def round_change(self, seed: bytes) -> Floats:
        """Take a round's private steps; return what is uploaded of them."""
        steps = self.job.training.local_steps
        mechanism = Mechanism(self.member.noise_plan.rounds, self.records, steps)
        return self._train(mechanism, self.shares(), seed, upload_gradient=steps == 1)

    def round_release(self, seed: bytes, plan: Plan) -> Ints:
        """Take the one private step of a round with shared noise; return what is uploaded of it, in
        steps of the plan's grid. What the step leaves at home has the whole noise.
        """
        how = release_of(self.terms, plan)
        grid = Grid(how.step, how.deviation, how.limit)
        mechanism = Mechanism(how.at_home, self.job.training.records, 1, grid)

        def on(data: ClientData) -> Ints:
            local = self._local(self.shares())
            return self._trainer().release(
                data, self.store.state, local, mechanism, NoiseSource(seed)
            )

        own = self.member.data
        nobody = replace(own, train=own.train.none())
        return self._answered(lambda: on(own), lambda: on(nobody))

    def first_gradient(self, seed: bytes) -> Floats:
        """Take the first round's private step for every layer, before anybody knows who shares it;
        return the gradient, noise included.
        """
        depth = self.facts.depth
        shares = [True] * depth + self.shares()[depth:]
        mechanism = Mechanism(self.member.noise_plan.rounds, self.records, steps=1)
        state, own, head = self.store.state, self.store.state.own, self.store.state.head
        gradient = self._train(mechanism, shares, seed, upload_gradient=True)
        state.own = own  # the server's optimiser will move them, in the round
        if any(shares[depth:]):
            state.head = head
        return gradient

    def of_layers(self, gradient: Floats) -> "list[np.ndarray[Any, Any]]":
        """Return the gradient's vectors by layer, finite and within what an upload may reach."""
        bound = self.own_clip(merge=False)
        finite = np.nan_to_num(gradient.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        return [np.clip(finite[a:b], -bound, bound) for a, b in self.facts.layout.layers]

    def _answered(self, compute: Callable[[], T], without_rows: Callable[[], T]) -> T:
        """Compute what was charged; where that breaks down, the same on no rows: noise alone.

        A missing reply would tell about the rows that it broke down on. What fails without rows,
        too, fails for everybody, and no reply is no answer about anybody.
        """
        try:
            return compute()
        except Exception as error:
            kind = type(error).__name__  # its text could quote rows
            log.warning("%s: a private computation broke down (%s): noise alone", self.id, kind)
            return without_rows()

    def _local(self, shares: list[bool]) -> LocalModel:
        return LocalModel(self.outputs, tuple(shares), self.mixing(), self.facts.layout)

    def _train(
        self, mechanism: Mechanism, shares: list[bool], seed: bytes, *, upload_gradient: bool
    ) -> Floats:
        def on(data: ClientData) -> Floats:
            return self._trainer().train(
                data,
                self.store.state,
                self._local(shares),
                mechanism,
                NoiseSource(seed),
                upload_gradient=upload_gradient,
            )

        own = self.member.data
        nobody = replace(own, train=own.train.none())
        return self._answered(lambda: on(own), lambda: on(nobody))

    def _trainer(self) -> RoundTrainer:
        return RoundTrainer(
            self.backbone,
            self.job,
            engine=self.workings.engine,
            tick=lambda: self.workings.tick(self.id, "step"),
            kept=self._kept,
        )
