"""DP-SGD on a model with few trainable parameters: the training loop's only way to touch private
records.

Abadi et al. (1607.00133): each record's gradient is scaled to a joint L2 norm of at most
`max_grad_norm` over all trainable parameters (LoRA factors, mixing scalars and heads together), the
sum gets Gaussian noise once, and a public constant divides it. The batch must come from a
`PoissonSampler`; the accountant's claim holds for nothing else.

    with DPSGD(model, optimizer, loss, noise_multiplier=1.0, max_grad_norm=1.0,
        expected_batch_size=64, noise=noise
    ) as trainer:
        trainer.rehearse(public_dummies)
        for _ in range(steps):
            trainer.step(collate(sampler.draw()))

Where a unit of protection holds several records (a patient), batches name each row's unit: the
gradients of a unit's records are summed first, and the sum is clipped, once (`sgd.units`).

The model stays the caller's object. While a `DPSGD` is open the model is in evaluation mode, so
dropout is off (noise already regularises, and a forward pass is deterministic); only layers with
gradient checkpointing are flagged as training, because Hugging Face checkpoints in no other mode.

What it never does: sample, count privacy, release anything, look at the data's size, or let rows
decide whether a step raises: everything that can be refused is refused in `rehearse`, on public
records.
"""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn, TypedDict, Unpack

import torch
from torch import Tensor, nn

from fedtree_dp.checks import count
from fedtree_dp.errors import ConfigurationError
from fedtree_dp.randomness.noise import NoiseSource
from fedtree_dp.sgd import guards
from fedtree_dp.sgd.capture import Capture, HookCapture
from fedtree_dp.sgd.fused import FusedCapture
from fedtree_dp.sgd.grid import Grid, Ints
from fedtree_dp.sgd.guards import Batch, Loss
from fedtree_dp.sgd.optimizer import Clipped, PrivateOptimizer
from fedtree_dp.sgd.units import UnitSums

_CAPTURES: Mapping[str, Callable[[nn.Module, guards.Named], Capture]] = {
    "fused": FusedCapture,
    "hooks": HookCapture,
}


class Passes(TypedDict, total=False):
    """How gradients are computed; none of it changes what a step releases.

    Attributes:
        physical_batch_size: most records in one forward pass, 64 if not given; bounds memory.
        engine: how per-sample gradients are obtained: "fused" (fast, if not given) or "hooks"
            (Opacus' own code, the reference).
    """

    physical_batch_size: int
    engine: Literal["fused", "hooks"]


_open_models: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_log = logging.getLogger("fedtree_dp")


@dataclasses.dataclass(frozen=True, repr=False)
class StepReport:
    """What one step saw. Private: computed from records without noise; for the data's owner, never
    to be released. It prints no value and is neither copied nor pickled.

    Attributes:
        records: size of the Poisson batch, 0 for an empty one; of units, where batches name them.
        clipped_fraction: share of the contributing records (units) whose gradient was scaled down;
            0 without records.
        dropped_nonfinite: records that contributed zero because their loss or gradient was not
            finite, and units whose sum is not.
        mean_loss: over records with a finite loss; None without any.
        failed: the pass raised on some records, which contributed zero and are not counted.
    """

    records: int
    clipped_fraction: float
    dropped_nonfinite: int
    mean_loss: float | None
    failed: bool = False

    def __repr__(self) -> str:
        return "StepReport(private)"

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError(
            "a StepReport is computed from records without noise: it is neither copied nor pickled"
        )

    __copy__ = __deepcopy__ = __reduce__ = __reduce_ex__ = __getstate__ = _refuse


class DPSGD:
    """Private gradient steps on one model for one client.

    Formal guarantee: with batches from a `PoissonSampler`, the sequence of weights after each
    `step` is the adaptive composition of one Poisson-subsampled Gaussian event (`noise_multiplier`,
    the sampler's rate) a step, provided that the loss of a record depends on no other record. A
    scalar loss is refused; `rehearse` compares one dummy record with plain autograd on it alone, a
    net for the commonest mistakes. Beyond that it is the caller's duty.

    Where every batch of a step names units, and the sampler draws units with all their records,
    the same holds for a unit added or removed, whatever number of records it has: its gradient is
    the sum of theirs, with one clip. Without units, a unit of k records moves the sum by k norms.

    Where somebody else chooses the weights, also the shape of a forward pass must not depend on
    other records: give physical batches from `fedtree_dp.sgd.shapes.plan_slots`, with dummies
    marked in `present`. A record on which the pass raises contributes zero, and the others as
    much as without it.

    Args:
        model: any module; every trainable parameter sits in a module with an Opacus grad sampler.
        optimizer: over exactly the model's trainable parameters. Its state must be fresh or from
            private steps.
        loss: `(model, batch) -> losses` of shape (records,).
        noise_multiplier: noise standard deviation over `max_grad_norm`; 0 is no privacy.
        max_grad_norm: clipping norm, above 0.
        expected_batch_size: the public divisor, above 0: sample rate times the declared size.
        noise: a `NoiseSource`.
        passes: see `Passes`.

    Raises:
        ConfigurationError: anything that cannot be trained privately; nothing is changed then.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        noise: NoiseSource,
        **passes: Unpack[Passes],
    ) -> None:
        if unknown := sorted(set(passes) - set(Passes.__annotations__)):
            raise TypeError(f"DPSGD takes no argument {unknown[0]!r}")
        engine = passes.get("engine", "fused")
        if engine not in _CAPTURES:
            raise ConfigurationError(f"engine must be one of {sorted(_CAPTURES)}, not {engine!r}")
        self._limit = count("physical_batch_size", passes.get("physical_batch_size", 64))
        if model in _open_models:
            raise ConfigurationError(
                "this model is already being trained by a DPSGD: close() that one first"
            )
        self._named = guards.check_model(model, optimizer)
        self.model = model
        self.optimizer = PrivateOptimizer(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            noise=noise,
        )
        self._loss = loss
        self._units = UnitSums([p for _, p in self._named])
        self._modes = {module: module.training for module in model.modules()}
        self._device = self._named[0][1].device
        self._rehearsed = False
        self._closed = False
        try:
            self._capture: Capture = _CAPTURES[engine](model, self._named)
        except ConfigurationError:
            self.optimizer.release()
            raise
        _set_modes(model)
        _open_models.add(model)

    def release_on(self, grid: Grid, parameters: Sequence[nn.Parameter]) -> None:
        """Let the sums of some parameters leave on a grid, with exact noise that other clients
        complete; they do not move. See `PrivateOptimizer.release_on`.

        Formal guarantee: one step releases, of these parameters, their clipped sum rounded to the
        grid plus discrete Gaussian noise; with the grid's deviation from
        `fedtree_dp.account.shared.deviation_for`, and all other noise larger by its margin, it is
        one `SharedPoissonGaussian` step.
        """
        self.optimizer.release_on(grid, parameters)

    def take_released(self) -> Ints:
        """Return what the last step released on the grid, once; see `PrivateOptimizer`."""
        return self.optimizer.take_released()

    def rehearse(self, batch: Batch) -> None:
        """Run every guard on public dummy records under the current weights; weights and optimizer
        stay as they are, bit for bit.

        Call it whenever weights come from somewhere else, before private records are read: `step`
        does none of these checks. A rehearsal holds until the trainer is closed.

        Args:
            batch: at least two public records, run in one pass: constants, or drawn from a public
                seed; never anything of a private data set. Its shape should be the largest that
                steps will have, so that what does not fit is found here.

        Raises:
            ConfigurationError: the batch, the loss or the optimizer has a form that cannot be
                private.
            TrainingError: nothing, or the wrong thing, would be trained, or the weights give no
                finite gradient.
        """
        self._prepare()
        guards.check_batch(batch)
        part, present = self._placed(batch)
        for name in (guards.UNIT, guards.LAST):
            part.pop(name, None)  # guards look at records
        if int(present.sum()) < 2:
            raise ConfigurationError("a rehearsal needs at least two public records")
        try:
            with torch.enable_grad():
                losses, per_sample = self._gradients(part, len(present))
                clipped = self.optimizer.accumulate(per_sample, losses.isfinite(), present)
                guards.check_usable(clipped.dropped)
                self._compare(part, per_sample, present)
            sums = [p.summed_grad for _, p in self._named]  # type: ignore[attr-defined]
            guards.check_signal(self._named, sums)
            clip, inner = self.optimizer.max_grad_norm, self.optimizer.original_optimizer
            guards.check_moves(self._named, [clip * _unit(total) for total in sums], inner)
        finally:
            self._capture.reset()
            self.optimizer.discard()
        self._rehearsed = True

    def step(self, batch: Batch | Iterable[Batch] | None) -> StepReport:
        """Take one private step.

        Args:
            batch: tensors with one row for each record, on any device, or several such mappings
                that together are the Poisson batch (an iterator is read lazily). Rows that are
                False in an optional bool tensor `present`, which the loss does not see, are
                dummies: they contribute exactly zero and are not counted. `unit` (int64) and `last`
                (bool), which the loss does not see either, name each row's unit and mark its last
                row in the step (`units.plan_units`); all batches of a step have them, or none has.
                `None` or no rows is a step of noise alone, which must be taken too: the accountant
                counts it.

        Returns:
            What happened. A record on which the pass raises contributes zero, with `failed` set and
            a line in the log "fedtree_dp": an error would be an answer about rows.

        Raises:
            ConfigurationError: the trainer is closed or was not rehearsed, the batch's tensors do
                not have one row for each record, or only some batches of the step name units.
        """
        self._prepare()
        if not self._rehearsed:
            raise ConfigurationError(
                "call rehearse() with public dummy records before the first step: a step checks "
                "nothing on private ones"
            )
        try:
            parts, failed = self._sum(batch)
            self.optimizer.noisy_step()
            # Inside a caller's autocast torch keeps casts of weights until its end, and would train
            # on stale ones.
            torch.clear_autocast_cache()
        except BaseException:
            self._capture.reset()
            self.optimizer.discard()
            raise
        finally:
            self._units.discard()
        return _report(parts, failed)

    def close(self) -> None:
        """Remove hooks and attributes, restore training flags, drop gradients. The model is as it
        was, but trained.
        """
        if self._closed:
            return
        self._closed = True
        self._capture.close()
        self.optimizer.release()
        for module, training in self._modes.items():
            module.training = training
        _open_models.discard(self.model)

    def _prepare(self) -> None:
        if self._closed:
            raise ConfigurationError("this DPSGD is closed")
        if self.model.training:
            _set_modes(self.model)

    def _sum(
        self, batch: Batch | Iterable[Batch] | None
    ) -> tuple[list[tuple[Clipped, Tensor]], bool]:
        """Accumulate all micro-batches; return what each saw, and whether one failed."""
        parts: list[tuple[Clipped, Tensor]] = []
        failed = False
        wholes = iter([batch] if isinstance(batch, Mapping) else batch or ())
        by_unit: bool | None = None
        while True:
            try:
                whole = next(wholes)
            except StopIteration:
                return [*parts, *self._open_units()], failed
            except Exception as error:  # what it would have given is unknown: nothing counts
                self.optimizer.discard()
                return parts, _failure(error)
            by_unit = _all_or_none(whole, by_unit)
            for part in _split(whole, self._limit):
                summed = self.optimizer.snapshot()
                try:
                    parts.append(self._part(part))
                except Exception as error:
                    failed = _failure(error)
                    self._capture.reset()
                    self.optimizer.put_back(summed)
                    parts += self._rows_alone(part)

    def _rows_alone(self, part: Batch) -> Iterator[tuple[Clipped, Tensor]]:
        """Compute a part that raised row by row, and leave out the rows that raise.

        Each row fills a physical batch of the same shape by itself. So a record on which the pass
        breaks down takes its own share out of the sum and nobody else's.
        """
        rows = len(next(iter(part.values())))
        present = part.get(guards.PRESENT, torch.ones(rows, dtype=torch.bool))
        # A last row that is a dummy stays one: its padding decides which kernels run (`shapes`).
        filled = rows if bool(present[-1]) else rows - 1
        for row in present.nonzero()[:, 0].tolist():
            alone = {name: value.clone() for name, value in part.items()}
            for name, value in part.items():
                alone[name][:filled] = value[row]
            alone[guards.PRESENT] = torch.arange(rows, device=present.device) == row
            summed = self.optimizer.snapshot()
            try:
                yield self._part(alone)
            except Exception as error:
                _failure(error)
                self._capture.reset()
                self.optimizer.put_back(summed)

    def _part(self, part: Batch) -> tuple[Clipped, Tensor]:
        """Forward and backward of one micro-batch; its clipped gradients join the sum."""
        part, present = self._placed(part)
        unit, last = part.pop(guards.UNIT, None), part.pop(guards.LAST, None)
        with torch.enable_grad():
            losses, per_sample = self._gradients(part, len(present))
        finite = losses.isfinite()
        counted = losses[finite & present.to(finite.device)]
        if unit is None or last is None:
            return self.optimizer.accumulate(per_sample, finite, present), counted
        usable = present & finite.to(present.device)
        dropped = int((present & ~usable).sum()) + self._units.add(per_sample, unit, usable)
        return self._clip_units(unit[last & present].tolist(), dropped), counted

    def _clip_units(self, units: Sequence[int] | None, dropped: int = 0) -> Clipped:
        """Clip the sums of these units, or of all that are open; they join the sum."""
        clipped = self.optimizer.accumulate(self._units.close(units))
        return dataclasses.replace(clipped, dropped=clipped.dropped + dropped)

    def _open_units(self) -> Iterator[tuple[Clipped, Tensor]]:
        """Clip what no last row has closed: a unit whose last row broke the pass."""
        if len(self._units):
            yield self._clip_units(None), torch.empty(0, device=self._device)

    def _placed(self, part: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Return the tensors on the model's device, and which rows are present."""
        moved = {name: value.to(self._device, non_blocking=True) for name, value in part.items()}
        rows = len(next(iter(moved.values()), ()))
        present = moved.pop(guards.PRESENT, None)
        if present is None:
            present = torch.ones(rows, dtype=torch.bool, device=self._device)
        return moved, present

    def _gradients(self, part: Batch, rows: int) -> tuple[Tensor, list[Tensor]]:
        losses = self._loss(self.model, part)
        guards.check_losses(losses, rows)
        return losses.detach(), self._capture.backward(losses)

    def _compare(self, part: Batch, per_sample: list[Tensor], present: Tensor) -> None:
        """Hold the largest gradient of a dummy record inside its batch against its gradient
        alone.
        """
        norms = torch.stack(
            [g.reshape(len(g), -1).double().norm(dim=1).to(self._device) for g in per_sample]
        )
        row = int(norms.norm(dim=0).masked_fill(~present, -1.0).argmax())
        record = {name: value[row : row + 1] for name, value in part.items()}
        with self._capture.paused():
            alone = guards.gradient_alone(self.model, self._loss, record, self._named)
        low = torch.bfloat16 in {p.dtype for p in self.model.parameters()}
        inside = [g[row] for g in per_sample]
        clip = self.optimizer.max_grad_norm
        guards.check_alone(self._named, inside, alone, clip, low_precision=low)

    def __enter__(self) -> DPSGD:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _set_modes(model: nn.Module) -> None:
    """Set evaluation mode everywhere, but training flags on the layers that checkpoint (on
    themselves alone).
    """
    if any(module.training for module in model.modules()):  # a walk costs less than setting flags
        model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def _unit(total: Tensor) -> Tensor:
    """Scale to norm 1, unless zero: noise will be of one size for all, so how large a dummy's
    gradient is says nothing about whether weights will move.
    """
    largest = total.abs().max()
    scaled = total / largest if largest else total
    unit: Tensor = scaled / scaled.norm().clamp(min=1.0)
    return unit


def _failure(error: Exception) -> Literal[True]:
    """Log a failure by its class, for its text may hold values."""
    kind = type(error).__name__
    _log.warning("a private pass failed (%s): what it failed on contributes zero", kind)
    return True


def _all_or_none(whole: Batch, by_unit: bool | None) -> bool:
    """A record without a unit among units would be clipped as if it were one."""
    if not isinstance(whole, Mapping) or not whole:
        return bool(by_unit)
    named = guards.UNIT in whole
    if by_unit is not None and named != by_unit:
        raise ConfigurationError("some batches of this step name units and some do not; all must")
    return named


def _split(whole: Batch, limit: int) -> Iterator[Batch]:
    """Yield micro-batches of 1 to `limit` rows."""
    for start in range(0, guards.check_batch(whole), limit):
        yield {name: value[start : start + limit] for name, value in whole.items()}


def _report(parts: list[tuple[Clipped, Tensor]], failed: bool) -> StepReport:
    records = sum(clipped.records for clipped, _ in parts)
    dropped = sum(clipped.dropped for clipped, _ in parts)
    clipped_records = sum(clipped.clipped for clipped, _ in parts)
    losses = torch.cat([loss.double() for _, loss in parts]) if parts else torch.empty(0)
    return StepReport(
        records=records,
        clipped_fraction=clipped_records / max(records - dropped, clipped_records, 1),
        dropped_nonfinite=dropped,
        mean_loss=float(losses.mean()) if len(losses) else None,
        failed=failed,
    )
