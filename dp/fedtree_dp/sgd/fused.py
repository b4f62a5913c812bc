"""Per-sample gradients in the backward pass itself: one forward, one backward, no hooks, no summed
gradients.

A linear layer's gradient for one record is `g_i^T x_i` over its tokens. Autograd forms the sum over
records; the functions here form the batch of products instead, at the same cost, because for LoRA
factors one side of the product is only the rank wide. Nothing is stored twice: no `.grad`, no
activation lists, no token-by-token (ghost) norms, which cost T^2 (d_in + d_out) a record where the
factors cost T r (d_in + d_out).

What is fused: `torch.nn.Linear` (heads, single factors), and peft's LoRA layer around a frozen
`torch.nn.Linear` as a whole, base product included. Any other module with trainable parameters runs
as it is and its registered Opacus grad sampler is called in the backward pass. All of it is
`torch.autograd.Function` with saved tensors, so both kinds of
gradient checkpointing work: a recomputed forward pass is never counted as a second one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from opacus.grad_sample import GradSampleHooks
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedtree_dp.errors import TrainingError
from fedtree_dp.sgd import guards
from fedtree_dp.sgd.capture import complete

Forward = Callable[..., Any]


class _Sink:
    """Where the backward pass leaves per-sample gradients, by parameter."""

    def __init__(self) -> None:
        self.gradients: dict[Tensor, Tensor] = {}
        self.enabled = True

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        """Add (records, *shape): a module that is used twice in one pass has the sum of both
        gradients.
        """
        known = self.gradients.get(parameter)
        if known is not None and known.shape[0] != gradient.shape[0]:
            raise TrainingError(
                "a module was used twice in one pass with different numbers of rows, so records "
                "cannot be told apart; "
                "freeze it, or pass one row for each record"
            )
        self.gradients[parameter] = gradient if known is None else known + gradient


class _Patch(functools.partial[Any]):
    """A forward pass that this module put in place."""


class FusedCapture:
    """The default engine; see the module's text. Arguments and behaviour as
    `fedtree_dp.sgd.capture.HookCapture`.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        self._parameters = list(parameters)
        self._sink = _Sink()
        self._patched: list[nn.Module] = []
        trained = {module for _, module in guards.trained_modules(model)}
        for module in model.modules():
            if type(module) is LoraLinear and "forward" not in vars(module):
                self._patch(module, _lora_forward)
            elif module in trained:
                self._patch(
                    module, _linear_forward if type(module) is nn.Linear else _other_forward
                )

    def _patch(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._patched.append(module)
        module.forward = _Patch(forward, self._sink, module, module.forward)

    def backward(self, losses: Tensor) -> list[Tensor]:
        """See `Capture.backward`.

        Raises:
            TrainingError: a parameter took no part, or saw another number of records.
        """
        losses.sum().backward()  # type: ignore[no-untyped-call]
        found = [self._sink.gradients.get(p) for _, p in self._parameters]
        self.reset()
        return complete([name for name, _ in self._parameters], found, len(losses))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """See `Capture.paused`."""
        self._sink.enabled = False
        try:
            yield
        finally:
            self._sink.enabled = True

    def reset(self) -> None:
        """See `Capture.reset`."""
        self._sink.gradients.clear()
        for _, p in self._parameters:
            p.grad = None

    def close(self) -> None:
        """See `Capture.close`."""
        self.reset()
        for module in self._patched:
            del module.forward
        self._patched.clear()


# -- forward passes that stand in for the modules' own ---------------------------------------------


def _linear_forward(sink: _Sink, module: nn.Linear, original: Forward, x: Tensor) -> Any:
    if not (sink.enabled and torch.is_grad_enabled()):
        return original(x)
    return _Linear.apply(x, module.weight, module.bias, sink)  # type: ignore[no-untyped-call]


def _lora_forward(
    sink: _Sink, layer: LoraLinear, original: Forward, x: Tensor, *args: Any, **more: Any
) -> Any:
    plain = (
        sink.enabled and torch.is_grad_enabled() and not args and not more and isinstance(x, Tensor)
    )
    adapter = _only_adapter(layer) if plain else None
    if adapter is None:
        return original(x, *args, **more)
    base, a, b = layer.base_layer, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return _Lora.apply(x, base.weight, base.bias, a, b, layer.scaling[adapter], sink)  # type: ignore[no-untyped-call]


def _only_adapter(layer: LoraLinear) -> str | None:
    """Return the name of the one plain adapter that is active, or None where peft's own forward
    pass is needed.
    """
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if (
        len(active) != 1
        or layer.disable_adapters
        or layer.merged
        or active[0] in layer.lora_variant
    ):
        return None
    modules = layer.base_layer, layer.lora_A[active[0]], layer.lora_B[active[0]]
    dropout = layer.lora_dropout[active[0]]
    quiet = isinstance(dropout, nn.Identity) or not dropout.training
    return active[0] if quiet and _plain(*modules) else None


def _plain(base: nn.Module, a: nn.Module, b: nn.Module) -> bool:
    """Whether `_Lora` computes what these three modules would: linear layers as they are, the base
    frozen.
    """
    for module in (base, a, b):
        ours = isinstance(vars(module).get("forward"), _Patch | None)
        if (
            type(module) is not nn.Linear
            or not ours
            or module._forward_hooks
            or module._forward_pre_hooks
        ):
            return False
    frozen = not any(p.requires_grad for p in base.parameters())
    trained = any(p.requires_grad for m in (a, b) for p in m.parameters())
    return frozen and trained and not any("bias" in dict(m.named_parameters()) for m in (a, b))


def _other_forward(
    sink: _Sink, module: nn.Module, original: Forward, *inputs: Any, **more: Any
) -> Any:
    output = original(*inputs, **more)
    if not (sink.enabled and torch.is_grad_enabled()):
        return output
    if more or not isinstance(output, Tensor) or not all(isinstance(x, Tensor) for x in inputs):
        raise TrainingError(
            f"{type(module).__name__} has trainable parameters and is called with keywords or "
            "returns more than one "
            "tensor; its grad sampler sees positional tensors only"
        )
    return _Other.apply(output, module, sink, *inputs)  # type: ignore[no-untyped-call]


# -- autograd functions ----------------------------------------------------------------------------
# Parameters are kept on the context and not among the saved tensors: checkpointing hands those back
# as other objects.


def _tokens(x: Tensor) -> Tensor:
    """Bring (records, ..., d) to (records, tokens, d)."""
    return x if x.ndim == 3 else x.reshape(x.shape[0], -1, x.shape[-1])


def _products(g: Tensor, x: Tensor) -> Tensor:
    """Return `g_i^T x_i` for each record: (records, tokens, a), (records, tokens, b) -> (records,
    a, b).
    """
    left, right = _tokens(g), _tokens(x)
    if (
        left.shape[2] > right.shape[2]
    ):  # matrix kernels are several times faster with the narrow side first
        return torch.bmm(right.transpose(1, 2), left).transpose(1, 2)
    return torch.bmm(left.transpose(1, 2), right)


class _Linear(torch.autograd.Function):
    """`torch.nn.functional.linear` whose weight and bias receive per-sample gradients and no
    `.grad`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sink: _Sink) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias, ctx.sink = weight, bias, sink
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x,), weight = ctx.saved_tensors, ctx.weight
        if ctx.needs_input_grad[1]:
            ctx.sink.add(weight, _products(g, x.to(g.dtype)))
        if ctx.needs_input_grad[2]:
            ctx.sink.add(ctx.bias, _tokens(g).sum(dim=1))
        grad_x = (g @ weight.to(g.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None


class _Lora(torch.autograd.Function):
    """`W x + bias + s B A x` with W frozen, in the type of W's product."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        sink: _Sink,
    ) -> Tensor:
        out = F.linear(x, weight, bias)
        low = F.linear(x, a.to(x.dtype)).to(out.dtype)
        out.view(-1, out.shape[-1]).addmm_(
            low.view(-1, a.shape[0]), b.to(out.dtype).t(), alpha=scale
        )
        ctx.save_for_backward(x, low)
        ctx.factors, ctx.scale, ctx.sink = (weight, a, b), scale, sink
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x, low), (weight, a, b) = ctx.saved_tensors, ctx.factors
        low_g = F.linear(
            g, b.to(g.dtype).t().contiguous() * ctx.scale
        )  # several times faster than g @ b
        if ctx.needs_input_grad[3]:
            ctx.sink.add(a, _products(low_g, x.to(g.dtype)))
        if ctx.needs_input_grad[4]:
            ctx.sink.add(b, _products(g, low * ctx.scale))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = g @ weight.to(g.dtype)
            grad_x.view(-1, grad_x.shape[-1]).addmm_(low_g.view(-1, a.shape[0]), a.to(g.dtype))
            grad_x = grad_x.to(x.dtype)
        return grad_x, None, None, None, None, None, None


class _Other(torch.autograd.Function):
    """The identity on a module's output; its backward pass asks the module's grad sampler."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, module: nn.Module, sink: _Sink, *inputs: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.module, ctx.sink = module, sink
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        sampler = GradSampleHooks.GRAD_SAMPLERS[type(ctx.module)]
        for parameter, gradient in sampler(ctx.module, list(ctx.saved_tensors), g).items():
            if parameter.requires_grad:
                ctx.sink.add(parameter, gradient)
        return g, None, None, *(None for _ in ctx.saved_tensors)
