"""DP-SGD on a model with few trainable parameters: the training loop's only way to touch private
records.

Abadi et al. (1607.00133): each record's gradient is scaled to a joint L2 norm of at most
`max_grad_norm` over all trainable parameters (LoRA factors, mixing scalars and heads together), the
sum gets Gaussian noise once, and a public constant divides it. The batch must come from a
`PoissonSampler`; the accountant's claim holds for nothing else.

    with DPSGD( model, optimizer, loss, noise_multiplier=1.0, max_grad_norm=1.0,
        expected_batch_size=64, noise=noise
    ) as trainer:
        for _ in range(steps):
            trainer.step(collate(sampler.draw()))

The model stays the caller's object. While a `DPSGD` is open the model is in evaluation mode, so
dropout is off (noise already regularises, and a forward pass is deterministic); only layers with
gradient checkpointing are flagged as training, because Hugging Face checkpoints in no other mode.

What it never does: sample, count privacy, release anything, or look at the data's size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn

from fedtree_dp.checks import count
from fedtree_dp.errors import ConfigurationError
from fedtree_dp.randomness.noise import NoiseSource
from fedtree_dp.sgd import guards
from fedtree_dp.sgd.capture import Capture, HookCapture
from fedtree_dp.sgd.fused import FusedCapture
from fedtree_dp.sgd.guards import Batch, Loss
from fedtree_dp.sgd.optimizer import Clipped, PrivateOptimizer

_CAPTURES: Mapping[str, Callable[[nn.Module, guards.Named], Capture]] = {
    "fused": FusedCapture,
    "hooks": HookCapture,
}
_open_models: weakref.WeakSet[nn.Module] = weakref.WeakSet()
# What was compared with plain autograd before: one model object serves many clients and rounds.
_verified: weakref.WeakKeyDictionary[nn.Module, set[Hashable]] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What one step saw. Private: computed from records without noise; for the data's owner, never
    to be released.

    Attributes: records: size of the Poisson batch, 0 for a step of noise alone. clipped_fraction:
        share of the contributing records whose gradient was scaled down; 0 without records.
        dropped_nonfinite: records that contributed zero because their loss or gradient was not
        finite. mean_loss: over records with a finite loss; None without any.
    """

    records: int
    clipped_fraction: float
    dropped_nonfinite: int
    mean_loss: float | None


class DPSGD:
    """Private gradient steps on one model for one client.

    Formal guarantee: with batches from a `PoissonSampler`, the sequence of weights after each
    `step` is the adaptive composition of one Poisson-subsampled Gaussian event (`noise_multiplier`,
    the sampler's rate) a step, provided that the loss of a record depends on no other record. A
    scalar loss is refused; on the first records one of them is compared with plain autograd on it
    alone, a net for the commonest mistakes. Beyond that it is the caller's duty.

    Args: model: any module; every trainable parameter sits in a module with an Opacus grad sampler.
        optimizer: over exactly the model's trainable parameters. Its state must be fresh or from
        private steps. loss: `(model, batch) -> losses` of shape (records,). noise_multiplier: noise
        standard deviation over `max_grad_norm`; 0 is no privacy. max_grad_norm: clipping norm,
        above 0. expected_batch_size: the public divisor, above 0: sample rate times the declared
        size. noise: a `NoiseSource`. physical_batch_size: most records in one forward pass; bounds
        memory and changes no result. engine: how per-sample gradients are obtained: "fused" (fast)
        or "hooks" (Opacus' own code, the reference).

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
        physical_batch_size: int = 64,
        engine: Literal["fused", "hooks"] = "fused",
    ) -> None:
        if engine not in _CAPTURES:
            raise ConfigurationError(f"engine must be one of {sorted(_CAPTURES)}, not {engine!r}")
        self._limit = count("physical_batch_size", physical_batch_size)
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
        self._modes = {module: module.training for module in model.modules()}
        self._device = self._named[0][1].device
        self._known = _verified.setdefault(model, set())
        self._signature = (engine, tuple(name for name, _ in self._named), _code(loss))
        self._verified = self._signature in self._known
        self._checked = False
        self._closed = False
        try:
            self._capture: Capture = _CAPTURES[engine](model, self._named)
        except ConfigurationError:
            self.optimizer.release()
            raise
        _set_modes(model)
        _open_models.add(model)

    def step(self, batch: Batch | Iterable[Batch] | None) -> StepReport:
        """Take one private step.

        Args: batch: tensors with one row for each record, on any device, or several such mappings
            that together are the
                Poisson batch (each may be padded to its own length; an iterator is read lazily).
                `None` or no rows is a step of noise alone, which must be taken too: the accountant
                counts it.

        Raises: ConfigurationError: the batch or the loss has a shape that cannot be private.
            TrainingError: the first records show that nothing, or the wrong thing, is trained. The
            weights must not be
                released then; what was charged stays charged.
        """
        if self._closed:
            raise ConfigurationError("this DPSGD is closed")
        if self.model.training:
            _set_modes(self.model)
        try:
            with torch.enable_grad():
                parts = [self._part(part) for part in _split(batch, self._limit)]
            with self._first_step_check(any(part.records > part.dropped for part, _ in parts)):
                self.optimizer.noisy_step()
            # Inside a caller's autocast torch keeps casts of weights until its end, and would train
            # on stale ones.
            torch.clear_autocast_cache()
        except BaseException:
            self._capture.reset()
            self.optimizer.discard()
            raise
        return _report(parts)

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

    def _part(self, part: Batch) -> tuple[Clipped, Tensor]:
        """Forward and backward of one micro-batch; its clipped gradients join the sum."""
        part = {name: value.to(self._device, non_blocking=True) for name, value in part.items()}
        losses = self._loss(self.model, part)
        guards.check_losses(losses, guards.check_batch(part))
        per_sample = self._capture.backward(losses)
        finite = losses.detach().isfinite()
        clipped = self.optimizer.accumulate(per_sample, finite)
        if not self._verified and clipped.dropped == 0:
            self._verify(part, per_sample)
            self._known.add(self._signature)
        return clipped, losses.detach()[finite]

    def _verify(self, part: Batch, per_sample: list[Tensor]) -> None:
        record = {name: value[:1] for name, value in part.items()}
        row = [g[0] for g in per_sample]
        with self._capture.paused():
            alone = guards.gradient_alone(self.model, self._loss, record, self._named)
        low = torch.bfloat16 in {p.dtype for p in self.model.parameters()}
        guards.check_alone(self._named, row, alone, self.optimizer.max_grad_norm, low_precision=low)
        self._verified = True

    @contextlib.contextmanager
    def _first_step_check(self, contributed: bool) -> Iterator[None]:
        """Around the first noisy step with a contributing record: signal before noise, and weights
        that move.
        """
        if self._checked or not contributed:
            yield
            return
        guards.check_signal(self._named, [p.summed_grad for _, p in self._named])  # type: ignore[attr-defined]
        before = [p.detach().clone() for _, p in self._named]
        yield
        guards.check_moved(self._named, before, self.optimizer.original_optimizer)
        self._checked = True

    def __enter__(self) -> DPSGD:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _code(loss: Loss) -> Hashable:
    """Return what tells one loss from another: its code, which outlives a lambda that is made anew
    for each client.
    """
    return getattr(loss, "__code__", None) or getattr(type(loss).__call__, "__code__", type(loss))


def _set_modes(model: nn.Module) -> None:
    """Set evaluation mode everywhere, but training flags on the layers that checkpoint (on
    themselves alone).
    """
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def _split(batch: Batch | Iterable[Batch] | None, limit: int) -> Iterator[Batch]:
    """Yield micro-batches of 1 to `limit` records."""
    for whole in [batch] if isinstance(batch, Mapping) else batch or ():
        for start in range(0, guards.check_batch(whole), limit):
            yield {name: value[start : start + limit] for name, value in whole.items()}


def _report(parts: list[tuple[Clipped, Tensor]]) -> StepReport:
    records = sum(clipped.records for clipped, _ in parts)
    dropped = sum(clipped.dropped for clipped, _ in parts)
    clipped_records = sum(clipped.clipped for clipped, _ in parts)
    losses = torch.cat([loss.double() for _, loss in parts]) if parts else torch.empty(0)
    return StepReport(
        records=records,
        clipped_fraction=clipped_records / max(records - dropped, 1),
        dropped_nonfinite=dropped,
        mean_loss=float(losses.mean()) if len(losses) else None,
    )
