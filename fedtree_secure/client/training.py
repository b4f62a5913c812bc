"""The private steps of a round. All that they return is the output of DP-SGD.

The mechanism says what the ledger was charged for. Nothing else of the rows reaches the values that
are returned: no counts, no losses. The divisor of each mean is a declared constant, and the shape
of what is computed on a record follows from that record alone (`fedtree_dp.sgd.shapes`).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fedtree_dp import DPSGD, NoiseSource, PoissonSampler, discrete_gaussian
from fedtree_dp.sgd.grid import Ints
from fedtree_dp.sgd.shapes import Buckets, PhysicalBatch, plan_slots
from fedtree_dp.sgd.units import plan_units, units_at_once
from fedtree_secure.client.kept import Kept
from fedtree_secure.client.mechanism import Engine, Mechanism, Tick
from fedtree_secure.client.parts import (
    LocalModel,
    SplitAdam,
    Trainables,
    moments_of,
    optimizer_of,
    restore_moments,
    spread,
    spread_on_grid,
    trainables,
)
from fedtree_secure.client.seats import check_units, marks_of, slots_of
from fedtree_secure.client.state import ClientState, Floats, loaded_into
from fedtree_secure.config import Job
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.lower import STATES
from fedtree_secure.model.rows import ClientData


class RoundTrainer:
    """Takes the steps of a client's rounds.

    Args:
        backbone: The shared model.
        job: Public settings.
        engine: What takes the steps; audits plant canaries in a subclass of it.
        tick: Called after each step.
        kept: The client's activations below the first adapter; steps are the same without.
    """

    def __init__(
        self,
        backbone: Backbone,
        job: Job,
        *,
        engine: Engine = DPSGD,
        tick: Tick = lambda: None,
        kept: Kept | None = None,
    ) -> None:
        self._backbone, self._job, self._engine, self._tick = backbone, job, engine, tick
        self._kept = kept

    def rehearse(self, state: ClientState, model: LocalModel, mechanism: Mechanism) -> None:
        """Run the engine's guards on public dummy records under a client's values.

        Nothing is changed, and no private row is read.

        Raises:
            fedtree_dp.TrainingError, fedtree_dp.ConfigurationError: These values train nothing.
        """
        noise = NoiseSource.from_os()
        with (
            self._seated(state, model, upload_gradient=True) as (_, optimizer),
            self._opened(optimizer, mechanism, noise) as trainer,
            self._public_head(model.outputs),
            self._backbone.arithmetic(),
        ):
            trainer.rehearse(self._public())

    def release(
        self,
        data: ClientData,
        state: ClientState,
        model: LocalModel,
        mechanism: Mechanism,
        noise: NoiseSource,
    ) -> Ints:
        """Take the one DP-SGD step of a round with shared noise, on the grid.

        The uploaded values do not move: they would hold this client's part of the noise alone.

        Args:
            data, state, model, noise: As for `train`.
            mechanism: Of one step, with a grid.

        Returns:
            Values of the layout's length in grid steps, each with the grid's noise; a step against
            the gradient, as `train` returns.
        """
        assert mechanism.grid is not None
        with self._stepped(data, state, model, mechanism, noise, upload_gradient=True) as stepped:
            nothing = not stepped.parts.uploaded
            found = np.zeros(0, np.int64) if nothing else -stepped.trainer.take_released()
        layout = model.layout or self._backbone.layout()
        alone = discrete_gaussian(layout.length, mechanism.grid.deviation, noise)
        return spread_on_grid(found, alone, layout, model.shares)

    def train(
        self,
        data: ClientData,
        state: ClientState,
        model: LocalModel,
        mechanism: Mechanism,
        noise: NoiseSource,
        *,
        upload_gradient: bool,
    ) -> Floats:
        """Take the DP-SGD steps of one round and return the change of the client's values.

        Args:
            data: The client's rows.
            state: Its values; what stays at home changes.
            model: What is uploaded and mixed.
            mechanism: What was charged.
            noise: All randomness of the steps.
            upload_gradient: True for one step whose noisy mean gradient is the change of uploaded
                values.

        Returns:
            Values of the layout's length: new minus old, 0 where the client keeps a part.
        """
        with self._stepped(
            data, state, model, mechanism, noise, upload_gradient=upload_gradient
        ) as stepped:
            changes = [
                (p.detach() - old).float().cpu().reshape(-1)
                for p, old in zip(stepped.parts.uploaded, stepped.before, strict=True)
            ]
        return spread(changes, model.layout or self._backbone.layout(), model.shares)

    @contextlib.contextmanager
    def _stepped(
        self,
        data: ClientData,
        state: ClientState,
        model: LocalModel,
        mechanism: Mechanism,
        noise: NoiseSource,
        *,
        upload_gradient: bool,
    ) -> Iterator["_Stepped"]:
        """Take a round's steps; what is yielded may be looked at while the client is loaded."""
        settings = self._job.training
        check_units(self._job, data.train.units)
        members = data.train.members
        drawn_from = len(data.train) if members is None else len(members)
        sampler = PoissonSampler(drawn_from, settings.sample_rate, noise)
        buckets = Buckets.up_to(settings.max_length)
        lengths = [len(row) for row in data.train.tokens]
        slots, kept = slots_of(self._job, mechanism.records), self._kept
        if kept is not None and not kept.fits(data.train, slots):
            kept = None
        seated = self._seated(state, model, upload_gradient=upload_gradient)
        with seated as (parts, optimizer):
            before = [p.detach().clone() for p in parts.uploaded]
            restore_moments(optimizer, parts, state.adam)
            with (
                self._opened(optimizer, mechanism, noise) as trainer,
                self._backbone.arithmetic(),
            ):
                if mechanism.grid is not None and parts.uploaded:
                    trainer.release_on(mechanism.grid, parts.uploaded)
                with self._public_head(model.outputs):
                    trainer.rehearse(self._public())
                for _ in range(mechanism.steps):
                    drawn = sampler.draw()
                    if members is None:
                        plan = plan_slots(lengths, drawn, buckets, slots, noise)
                    else:
                        plan = plan_units(
                            *(lengths, members, drawn, buckets, slots, noise),
                            at_once=self._units_at_once(),
                        )
                    trainer.step(self._collate(data, p, kept) for p in plan)
                    self._tick()
            state.adam |= moments_of(optimizer, parts)
            yield _Stepped(parts, before, trainer)

    @contextlib.contextmanager
    def _seated(
        self, state: ClientState, model: LocalModel, *, upload_gradient: bool
    ) -> Iterator[tuple[Trainables, SplitAdam]]:
        backbone = self._backbone
        with loaded_into(backbone, state, model.outputs, model.mixing):
            parts = trainables(backbone, self._job, model)
            try:
                yield parts, optimizer_of(parts, self._job, upload_gradient=upload_gradient)
            finally:
                backbone.model.requires_grad_(False)

    @contextlib.contextmanager
    def _public_head(self, outputs: int) -> Iterator[None]:
        """Put the public initial head in the place of the client's own, for a rehearsal.

        A trained head can be so sure of the public records that no gradient is left of them; what
        is rehearsed are the experts that a server sent.
        """
        head = self._backbone.head
        if not outputs or head is None:
            yield
            return
        own = {name: value.clone() for name, value in head.state_dict().items()}
        head.load_state_dict(self._backbone.new_head(outputs).state_dict())
        try:
            yield
        finally:
            head.load_state_dict(own)
            # Inside a caller's autocast torch would go on with the public head's cast weights.
            torch.clear_autocast_cache()

    def _opened(self, optimizer: SplitAdam, mechanism: Mechanism, noise: NoiseSource) -> DPSGD:
        settings = self._job.training
        return self._engine(
            self._backbone.model,
            optimizer,
            self._backbone.loss,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=settings.max_grad_norm,
            expected_batch_size=settings.sample_rate * mechanism.records,
            physical_batch_size=slots_of(self._job, mechanism.records),
            noise=noise,
        )

    def _units_at_once(self) -> int:
        parameters = self._backbone.model.parameters()
        return units_at_once(sum(p.numel() for p in parameters if p.requires_grad))

    def _collate(
        self, data: ClientData, plan: PhysicalBatch, kept: Kept | None
    ) -> dict[str, torch.Tensor]:
        backbone = self._backbone
        found = data.train.batch(plan.rows, backbone.pad, backbone.device, width=plan.width)
        states = None if kept is None else kept.of(plan)
        if states is not None:
            found[STATES] = states
        return found | marks_of(plan, backbone.device)

    def _public(self) -> dict[str, torch.Tensor]:
        return public_records(self._backbone, self._job.training.max_length)


@dataclass(frozen=True)
class _Stepped:
    """What a round's steps leave: parameters, their values before, and what took the steps."""

    parts: Trainables
    before: list[torch.Tensor]
    trainer: DPSGD


def public_records(backbone: Backbone, width: int) -> dict[str, torch.Tensor]:
    """Two texts of random tokens of the job's public seed, each with label 0 and with label 1: what
    a trainer rehearses on. One label of a text is wrong, so its gradient is never negligible.

    Args:
        width: Tokens of one text; the other has half as many, and padding.
    """
    rng = np.random.default_rng([backbone.job.seed, 0xD])
    ids = rng.integers(len(backbone.tokenizer), size=(2, width))
    mask = np.ones((2, width), dtype=np.int64)
    mask[1, (width + 1) // 2 :] = 0
    ids[mask == 0] = backbone.pad
    batch = {"input_ids": np.tile(ids, (2, 1)), "attention_mask": np.tile(mask, (2, 1))}
    if backbone.job.task == "classification":
        batch["labels"] = np.repeat(np.arange(2), 2)
    return {name: torch.from_numpy(v).to(backbone.device) for name, v in batch.items()}
