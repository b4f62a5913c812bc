"""The values that a loaded client trains, sorted by what happens to their change.

A change is *uploaded*, stays at home with the client's own *local* layers, or belongs to the *head*
(and to the mixing weights, which learn at its rate).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from fedtree_dp.sgd.grid import Ints
from fedtree_secure.client.state import Floats
from fedtree_secure.config import Job
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.experts import CLUSTER
from fedtree_secure.model.layout import Layout


class SplitAdam(torch.optim.Adam):
    """Adam, except for groups with ``plain=True``, which take ``p -= lr * grad``.

    A plain group with lr 1 turns an optimiser step into the gradient itself, which is what a client
    uploads when the server drives the expert.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; ``closure`` is not used."""
        plain = [
            p
            for group in self.param_groups
            if group.get("plain")
            for p in group["params"]
            if p.grad is not None
        ]
        held = [(p, p.grad) for p in plain]
        for group in self.param_groups:
            if group.get("plain"):
                for p in group["params"]:
                    if p.grad is not None:
                        p.sub_(p.grad, alpha=group["lr"])
                        p.grad = None
        super().step(closure)
        for p, gradient in held:
            p.grad = gradient


@dataclass(frozen=True)
class LocalModel:
    """What of the shared model is a client's turn about.

    Attributes:
        outputs: Classes of its head, 0 for none.
        shares: For each part of the layout, whether the client's change of it is uploaded. Of the
            heads that is its own group's at most.
        mixing: (depth,) whether the layer has an external expert.
        layout: Where everybody's parts stand; the backbone's own where no head is shared.
    """

    outputs: int
    shares: tuple[bool, ...]
    mixing: "np.ndarray[Any, np.dtype[np.bool_]]"
    layout: Layout | None = None


@dataclass(frozen=True)
class Trainables:
    """Parameters of a loaded client.

    Attributes:
        uploaded: Of layers (and a group's head) whose change is uploaded.
        local: Name and parameter of adapters that stay at home.
        head: Name and parameter of mixing weights and a local head.
    """

    uploaded: tuple[nn.Parameter, ...]
    local: tuple[tuple[str, nn.Parameter], ...]
    head: tuple[tuple[str, nn.Parameter], ...]

    def all(self) -> list[nn.Parameter]:
        """Every trainable parameter."""
        return [*self.uploaded, *(p for _, p in self.local), *(p for _, p in self.head)]

    def at_home(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and parameter of everything that stays at home."""
        yield from self.local
        yield from self.head


def trainables(backbone: Backbone, job: Job, model: LocalModel) -> Trainables:
    """Sort the parameters of the client that is loaded, and let them be trained."""
    experts = backbone.experts
    uploaded: list[nn.Parameter] = []
    local: list[tuple[str, nn.Parameter]] = []
    head: list[tuple[str, nn.Parameter]] = []
    for layer, shared in enumerate(model.shares[: experts.depth]):
        for i, factor in enumerate(experts.factors(CLUSTER, layer)):
            if shared:
                uploaded.append(factor)
            else:
                local.append((f"layer{layer}.{i}", factor))
        if model.mixing[layer]:
            head.append((f"lam{layer}", experts.mixes[layer].logit))
    if job.head != "frozen":
        named = [(f"head.{name}", p) for name, p in backbone.projection.named_parameters()]
        if any(model.shares[experts.depth :]):
            uploaded.extend(p for _, p in named)
        else:
            head.extend(named)
    found = Trainables(tuple(uploaded), tuple(local), tuple(head))
    for p in found.all():
        p.requires_grad_(True)
    return found


def optimizer_of(parts: Trainables, job: Job, *, upload_gradient: bool) -> SplitAdam:
    """Adam on all parts; with ``upload_gradient`` the uploaded ones take their gradient plainly."""
    settings = job.training
    shared: dict[str, Any] = {"params": list(parts.uploaded), "lr": settings.learning_rate}
    if upload_gradient:
        shared |= {"plain": True, "lr": 1.0}
    groups = [
        shared,
        {"params": [p for _, p in parts.local], "lr": settings.learning_rate},
        {"params": [p for _, p in parts.head], "lr": settings.head_learning_rate},
    ]
    return SplitAdam([group for group in groups if group["params"]])


def restore_moments(optimizer: SplitAdam, parts: Trainables, saved: dict[str, Floats]) -> None:
    """Give what stays at home the moments of earlier rounds."""
    for name, p in parts.at_home():
        if f"{name}/step" in saved:
            optimizer.state[p] = {
                "step": torch.from_numpy(saved[f"{name}/step"].copy()).reshape(()),
                "exp_avg": torch.from_numpy(saved[f"{name}/m"].copy()).to(p.device).view_as(p),
                "exp_avg_sq": torch.from_numpy(saved[f"{name}/v"].copy()).to(p.device).view_as(p),
            }


def moments_of(optimizer: SplitAdam, parts: Trainables) -> dict[str, Floats]:
    """Return the moments of what stays at home, by parameter name."""
    saved: dict[str, Floats] = {}
    for name, p in parts.at_home():
        if state := optimizer.state.get(p):
            saved[f"{name}/step"] = state["step"].detach().float().cpu().reshape(1).numpy()
            saved[f"{name}/m"] = state["exp_avg"].detach().float().cpu().reshape(-1).numpy()
            saved[f"{name}/v"] = state["exp_avg_sq"].detach().float().cpu().reshape(-1).numpy()
    return saved


def spread(changes: list[torch.Tensor], layout: Layout, shares: Sequence[bool]) -> Floats:
    """Return the uploaded parts' changes at their places in the layout, zeros elsewhere."""
    flat = torch.cat(changes).numpy() if changes else np.zeros(0, dtype=np.float32)
    return _placed(flat, np.zeros(layout.length, dtype=np.float32), layout, shares)


def spread_on_grid(released: Ints, noise: Ints, layout: Layout, shares: Sequence[bool]) -> Ints:
    """Return the same of whole numbers, and noise alone elsewhere.

    A member of a sum that has nothing to put into a part of it (its head was not merged) puts its
    noise there: the others count on it.

    Args:
        released: The uploaded parts' values, noise included.
        noise: (layout.length,) noise of its own.
    """
    return _placed(released, noise.copy(), layout, shares)


V = TypeVar("V", bound="np.ndarray[Any, Any]")


def _placed(flat: V, out: V, layout: Layout, shares: Sequence[bool]) -> V:
    at = 0
    for (start, stop), uploaded in zip(layout.parts, shares, strict=True):
        if uploaded:
            out[start:stop] = flat[at : at + stop - start]
            at += stop - start
    return out
