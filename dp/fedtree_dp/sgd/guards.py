"""What is refused before training because it would make the claim false or the training pointless.

Guards that compute run on public dummy records (`DPSGD.rehearse`): on private ones whether they
raise would be an answer about rows, without noise. Messages name parameters, modules and public
settings, never values computed from records.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

from fedtree_dp.errors import ConfigurationError, TrainingError

Batch = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
Named = list[tuple[str, nn.Parameter]]

PRESENT = "present"
UNIT, LAST = "unit", "last"

_TRAINABLE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_HINTS = {
    "DoraLinearLayer": (
        "DoRA computes with its adapter's weights outside their modules; use use_dora=False"
    ),
    "ParameterDict": (
        "adapters of embeddings keep bare parameters; leave embeddings out of target_modules"
    ),
}


def check_model(model: nn.Module, optimizer: torch.optim.Optimizer) -> Named:
    """Return the trainable parameters as (name, parameter), in the optimizer's order.

    Raises:
        ConfigurationError: nothing to train, a type or module that is not supported, or an
            optimizer over other parameters than the model's.
    """
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    if not names:
        raise ConfigurationError(
            "the model has no trainable parameter: add an adapter or unfreeze a head"
        )
    _check_types(model, names)
    _check_optimizer(names, optimizer)
    _check_modules(model)
    return [
        (names[p], p)
        for group in optimizer.param_groups
        for p in group["params"]
        if p.requires_grad
    ]


def trained_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that hold a trainable parameter themselves, each once, by name.

    One walk over the parameters: `module.parameters(recurse=False)` for every module takes ten
    times as long.
    """
    every = model.named_parameters(remove_duplicate=False)
    holders = {name.rpartition(".")[0] for name, p in every if p.requires_grad}
    return [(name, module) for name, module in model.named_modules() if name in holders]


def _check_types(model: nn.Module, names: Mapping[nn.Parameter, str]) -> None:
    for p, name in names.items():
        if p.dtype not in _TRAINABLE_DTYPES:
            raise ConfigurationError(
                f"{name} is {p.dtype}; train float32 (best), bfloat16 or float64"
            )
    for name, p in model.named_parameters():
        if p.dtype == torch.float16:
            raise ConfigurationError(
                f"{name} is float16, whose gradients overflow without loss scaling, and loss "
                "scaling clips wrongly; "
                "load the model in bfloat16 or float32"
            )


def _check_optimizer(names: Mapping[nn.Parameter, str], optimizer: torch.optim.Optimizer) -> None:
    held = {p for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    left_out = [name for p, name in names.items() if p not in held]
    foreign = len(held - names.keys())
    if left_out or foreign:
        raise ConfigurationError(
            f"the optimizer must hold exactly the model's trainable parameters: {len(left_out)} "
            "are missing "
            f"({', '.join(left_out[:3])}) and {foreign} belong to no part of the model. Build it "
            "after adapters were "
            "added and after model.to(device) (Opacus issue 820)"
        )


def _check_modules(model: nn.Module) -> None:
    for name, module in trained_modules(model):
        kind = type(module).__name__
        if type(module) not in GradSampleHooks.GRAD_SAMPLERS:
            hint = _HINTS.get(
                kind, "freeze it, or register one with opacus.grad_sample.register_grad_sampler"
            )
            raise ConfigurationError(
                f"{name or 'the model'} ({kind}) has trainable parameters and no grad sampler: "
                f"{hint}"
            )
        if "forward" in vars(module):
            raise ConfigurationError(
                f"{name} ({kind}) is trainable and has a forward of its own on the instance; its "
                "grad sampler would "
                "not know what that computes. Remove it, or make it a module class with a grad "
                "sampler"
            )
        if any(True for _ in module.buffers(recurse=False)):
            raise ConfigurationError(
                f"{name} ({kind}) keeps buffers that would remember records; freeze or replace it"
            )


def check_batch(batch: Batch) -> int:
    """Return the number of rows.

    Raises:
        ConfigurationError: a value without one row for each record, a mask of present rows that
            is no vector of bools, or units of another form.
    """
    if not isinstance(batch, Mapping):
        raise ConfigurationError(
            f"a batch maps names to tensors with one row for each record, not "
            f"{type(batch).__name__}"
        )
    for name, value in batch.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            raise ConfigurationError(
                f"batch[{name!r}] must be a tensor with one row for each record"
            )
    mask = batch.get(PRESENT)
    if mask is not None and (mask.dtype != torch.bool or mask.ndim != 1):
        raise ConfigurationError(f"batch[{PRESENT!r}] must be bool, one value for each row")
    _check_units(batch)
    sizes = {name: len(value) for name, value in batch.items()}
    if len(set(sizes.values())) > 1:
        raise ConfigurationError(
            f"the batch's tensors have different numbers of rows: {sorted(sizes)}"
        )
    return next(iter(sizes.values()), 0)


def _check_units(batch: Batch) -> None:
    unit, last = batch.get(UNIT), batch.get(LAST)
    if (unit is None) != (last is None):
        raise ConfigurationError(f"a batch has {UNIT!r} and {LAST!r}, or neither")
    if unit is None or last is None:
        return
    if unit.dtype != torch.int64 or unit.ndim != 1 or last.dtype != torch.bool or last.ndim != 1:
        raise ConfigurationError(
            f"batch[{UNIT!r}] must be int64 and batch[{LAST!r}] bool, one value for each row"
        )


def check_losses(losses: Tensor, records: int) -> None:
    """Refuse anything but one loss for each record.

    Raises:
        ConfigurationError: a scalar, another shape, or no gradient.
    """
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        raise ConfigurationError(
            "the loss must return a floating-point tensor with one value for each record"
        )
    if losses.ndim == 0:
        raise ConfigurationError(
            "the loss returned one scalar for the batch. The token-mean loss of Hugging Face "
            "models (output.loss) "
            "divides by the tokens of the whole batch, so one record changes every other record's "
            "gradient and "
            "clipping bounds nothing. Return one loss for each record, as "
            "fedtree_dp.per_sequence_loss does"
        )
    if losses.shape != (records,):
        raise ConfigurationError(
            f"the loss returned shape {tuple(losses.shape)} for a batch of rows; one value a record"
        )
    if not losses.requires_grad:
        raise TrainingError("the loss does not depend on any trainable parameter")


def gradient_alone(model: nn.Module, loss: Loss, record: Batch, named: Named) -> list[Tensor]:
    """Return the ordinary gradient of a batch of one record, one tensor a parameter. Capturing must
    be paused.
    """
    loss(model, record).sum().backward()  # type: ignore[no-untyped-call]
    alone = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in named]
    for _, p in named:
        p.grad = None
    return alone


def check_alone(
    named: Named,
    row: Sequence[Tensor],
    alone: Sequence[Tensor],
    max_grad_norm: float,
    *,
    low_precision: bool = False,
) -> None:
    """Compare one record's gradient inside its batch (`row`) with its gradient `alone`.

    It catches losses and models that couple records (a mean over the batch's tokens, batch
    statistics, contrastive terms) and parameters used outside their module, whose gradient no hook
    sees. It looks at one record, so it is a net, not a proof.

    Raises:
        TrainingError: they differ by more than rounding.
    """
    gap = torch.stack(
        [(a.double() - g.double()).norm().cpu() for a, g in zip(alone, row, strict=True)]
    )
    size = torch.stack([a.double().norm().cpu() for a in alone]).norm()
    dtypes = {g.dtype for g in row}
    loose = (
        0.25
        if low_precision or torch.bfloat16 in dtypes
        else 1e-2
        if torch.float32 in dtypes
        else 1e-6
    )
    if not gap.norm() <= loose * (size + 1e-3 * max_grad_norm):  # NaN is a difference, too
        worst = named[int(gap.argmax())][0]
        raise TrainingError(
            f"a record's gradient inside its batch is not its gradient alone (most in {worst}): "
            "the loss or the model "
            "couples records (a mean over the batch, batch statistics), or the parameter is used "
            "outside its module"
        )


def check_usable(dropped: int) -> None:
    """Every dummy record's gradient must be finite.

    Raises:
        TrainingError: some are not.
    """
    if dropped:
        raise TrainingError(
            "the weights received are unusable: public dummy records have no finite gradient under "
            "them; train from weights that their sender did not damage"
        )


def check_signal(named: Named, sums: Sequence[Tensor | None]) -> None:
    """Some gradient of dummy records must have reached the adapter, before any noise.

    A LoRA whose B is zero gives its A a zero gradient, rightly, so a family of parameters is judged
    as a whole.

    Raises:
        TrainingError: no parameter, or no LoRA parameter, received anything but zero.
    """
    reached = {
        name: bool(s is not None and s.any()) for (name, _), s in zip(named, sums, strict=True)
    }
    adapter = [reached[name] for name in reached if "lora_" in name]
    if not any(reached.values()) or (adapter and not any(adapter)):
        raise TrainingError(
            "the gradient of every adapter parameter is exactly zero: the adapter is not in the "
            "forward pass, is "
            "merged or disabled, or both its factors are zero (Opacus issue 820)"
        )


def check_moves(
    named: Named, gradients: Sequence[Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """A step with these gradients must move the weights, unless the learning rate is zero.

    The step is taken by a copy of the optimizer on copies of the weights, so that neither is
    touched, whatever happens.

    Raises:
        ConfigurationError: the optimizer cannot be copied.
        TrainingError: no weight, or no LoRA weight, moved.
    """
    if all(float(group.get("lr", 1.0)) == 0 for group in optimizer.param_groups):
        return
    trial, weights = _trial(optimizer, [p for _, p in named])
    for w, g in zip(weights, gradients, strict=True):
        w.grad = g.to(w.dtype)
    trial.step()
    moved = {name: not torch.equal(w, p) for (name, p), w in zip(named, weights, strict=True)}
    adapter = [moved[name] for name in moved if "lora_" in name]
    if not any(moved.values()) or (adapter and not any(adapter)):
        raise TrainingError(
            "a step moved no weight of the adapter: the optimizer ignores its gradient, or its "
            "update is below the "
            "parameters' precision (Opacus issue 820)"
        )


def _trial(
    optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter]
) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """Return a copy of the optimizer over copies of `params`, and these; what is frozen is shared.

    Not `copy.deepcopy(optimizer)`: torch leaves attributes of subclasses out of it. A `step` on the
    instance is a learning rate scheduler's and would step the original.
    """
    weights = [nn.Parameter(p.detach().clone()) for p in params]
    trial: torch.optim.Optimizer = object.__new__(type(optimizer))
    memo: dict[int, object] = {
        id(p): p for group in optimizer.param_groups for p in group["params"]
    }
    memo |= {id(p): w for p, w in zip(params, weights, strict=True)}
    memo[id(optimizer)] = trial
    held = {name: value for name, value in vars(optimizer).items() if name != "step"}
    try:
        vars(trial).update(copy.deepcopy(held, memo))
    except (TypeError, RuntimeError, copy.Error) as error:
        raise ConfigurationError(
            f"{type(optimizer).__name__} cannot be copied for a rehearsal of its step: "
            f"{type(error).__name__}; keep locks, files and graphs out of an optimizer"
        ) from error
    return trial, weights
