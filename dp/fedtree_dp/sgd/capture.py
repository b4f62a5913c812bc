"""Per-sample gradients through Opacus' hooks, on the caller's own model object.

Opacus captures only in modules that are in training mode, and training mode switches the dropout of
Hugging Face models on. Here the hooks capture in either mode, so that a model stays in evaluation
mode and every forward pass is deterministic. Nothing wraps the model: `save_pretrained` works
during and after training, and `close` removes every hook and attribute again.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

from fedtree_dp.errors import ConfigurationError, TrainingError

_MODULE_STATE = ("activations", "max_batch_len")


class Capture(Protocol):
    """How per-sample gradients are obtained. One forward pass, then one `backward`, for each
    micro-batch.
    """

    def backward(self, losses: Tensor) -> list[Tensor]:
        """Return, for each parameter, its gradient for every record: shape (records, *parameter
        shape).
        """

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Switch capturing off for an ordinary forward and backward pass."""

    def reset(self) -> None:
        """Forget a pass that was broken off."""

    def close(self) -> None:
        """Leave the model as it was found."""


class _Hooks(GradSampleHooks):  # type: ignore[misc]
    """Opacus' hooks that do not ask for training mode."""

    def capture_activations_hook(
        self, module: nn.Module, forward_input: Sequence[Any], _output: Any
    ) -> None:
        if not self.hooks_enabled or not torch.is_grad_enabled():
            return
        vars(module).setdefault("activations", []).append([t.detach() for t in forward_input])
        for p in module.parameters():
            if p.requires_grad:
                vars(p)["_forward_counter"] += 1


class HookCapture:
    """Opacus' own computation, unchanged: the reference for everything faster.

    Args:
        model: with at least one trainable parameter, all of them in modules with a registered grad
            sampler.
        parameters: the trainable parameters, as (name, parameter), in the order that `backward`
            answers.

    Raises:
        ConfigurationError: the model's checkpointing runs every forward pass twice under Opacus'
            hooks.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        _refuse_non_reentrant(model)
        self._model = model
        self._parameters = list(parameters)
        self._hooks = _Hooks(model, loss_reduction="sum", strict=True)

    def backward(self, losses: Tensor) -> list[Tensor]:
        """See `Capture.backward`.

        Raises:
            TrainingError: a parameter took no part, or saw another number of records.
        """
        with _quiet():
            losses.sum().backward()  # type: ignore[no-untyped-call]
        found = [p.grad_sample for _, p in self._parameters]  # type: ignore[attr-defined]
        self.reset()
        return complete([name for name, _ in self._parameters], found, len(losses))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """See `Capture.paused`."""
        self._hooks.hooks_enabled = False
        try:
            with _quiet():
                yield
        finally:
            self._hooks.hooks_enabled = True

    def reset(self) -> None:
        """See `Capture.reset`."""
        for _, p in self._parameters:
            p.grad = p.grad_sample = None  # type: ignore[attr-defined]
            p._forward_counter = 0  # type: ignore[attr-defined]
            vars(p).pop("_current_grad_sample", None)
        for module in self._model.modules():
            for name in _MODULE_STATE:
                vars(module).pop(name, None)

    def close(self) -> None:
        """See `Capture.close`."""
        self.reset()
        self._hooks.cleanup()


def _refuse_non_reentrant(model: nn.Module) -> None:
    for module in model.modules():
        settings = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
        if getattr(module, "gradient_checkpointing", False) and not settings.get("use_reentrant"):
            raise ConfigurationError(
                "Opacus' hooks count a forward pass that non-reentrant checkpointing recomputes as "
                "a second one; use "
                'engine="fused", or enable checkpointing with use_reentrant=True'
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide torch's remark that the first layer's input needs no gradient, which is right."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Full backward hook is firing", category=UserWarning
        )
        yield


def complete(names: Sequence[str], found: Sequence[Tensor | None], records: int) -> list[Tensor]:
    """Return `found` if every parameter has one gradient for each record.

    Raises:
        TrainingError: some are missing or have another length, with the parameters' names.
    """
    missing = [name for name, g in zip(names, found, strict=True) if g is None]
    if missing:
        raise TrainingError(
            f"{len(missing)} of {len(names)} trainable parameters took no part in the loss, so "
            "they would get noise "
            f"and no signal: {', '.join(missing[:4])}. Freeze them (requires_grad_(False)), "
            "activate their adapter, "
            "or look for a detach() or torch.no_grad() in the model"
        )
    gradients = [g for g in found if g is not None]
    wrong = [name for name, g in zip(names, gradients, strict=True) if len(g) != records]
    if wrong:
        raise TrainingError(
            f"{wrong[0]} saw another number of rows than the batch has records: its module shares "
            "or flattens the "
            "batch dimension (implicit position ids, experts, packed sequences), so records cannot "
            "be told apart. "
            "Freeze it, or pass its inputs with one row for each record"
        )
    return gradients
