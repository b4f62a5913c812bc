"""What a client computes from private rows: fingerprint, head warm-up, and the steps of a round.
All of it is DP.

Every function here takes the noise multiplier that the ledger was charged for. Nothing else of the
rows reaches the values that are returned: no counts, no losses. The divisor of each mean is a
declared constant.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedtree_dp import DPSGD, NoiseSource, PoissonSampler, gaussian_mean
from fedtree_secure.client.data import ClientData
from fedtree_secure.client.state import Belongings, Floats, seated
from fedtree_secure.config import Job
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.experts import CLUSTER

Tick = Callable[[], None]
Engine = Callable[..., DPSGD]


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
class Trainables:
    """Parameters of a seated client, by what happens to their change.

    Attributes:
        shared: Of layers (and a shared head) whose change is uploaded.
        home: Name and parameter of adapters that stay at home.
        light: Name and parameter of lam and a local head: driven by the head's learning rate.
    """

    shared: tuple[nn.Parameter, ...]
    home: tuple[tuple[str, nn.Parameter], ...]
    light: tuple[tuple[str, nn.Parameter], ...]

    def all(self) -> list[nn.Parameter]:
        """Every trainable parameter."""
        return [*self.shared, *(p for _, p in self.home), *(p for _, p in self.light)]


def trainables(
    backbone: Backbone, job: Job, shares: Sequence[bool], mixing: "np.ndarray[Any, Any]"
) -> Trainables:
    """Sort the seated client's parameters; ``shares`` says for each layer whether its change is
    uploaded.
    """
    experts = backbone.experts
    shared: list[nn.Parameter] = []
    home: list[tuple[str, nn.Parameter]] = []
    light: list[tuple[str, nn.Parameter]] = []
    for layer, uploaded in enumerate(shares[: experts.depth]):
        for i, factor in enumerate(experts.factors(CLUSTER, layer)):
            if uploaded:
                shared.append(factor)
            else:
                home.append((f"layer{layer}.{i}", factor))
        if mixing[layer]:
            light.append((f"lam{layer}", experts.mixes[layer].logit))
    if job.head != "frozen":
        named = [(f"head.{name}", p) for name, p in backbone.projection.named_parameters()]
        if job.head == "shared" and shares[-1]:
            shared.extend(p for _, p in named)
        else:
            light.extend(named)
    return Trainables(tuple(shared), tuple(home), tuple(light))


def train_round(
    backbone: Backbone,
    job: Job,
    data: ClientData,
    mine: Belongings,
    *,
    shares: Sequence[bool],
    mixing: "np.ndarray[Any, Any]",
    noise_multiplier: float,
    records: int,
    steps: int,
    upload_gradient: bool,
    noise: NoiseSource,
    tick: Tick,
    engine: Engine = DPSGD,
) -> Floats:
    """Take the DP-SGD steps of one round and return the change of the client's values.

    Args:
        shares: For each part of the layout, whether the client's change of it is uploaded.
        mixing: (depth,) whether the layer has an external expert.
        records: Declared size of the training set.
        upload_gradient: True for one step whose noisy mean gradient is the change of shared values.
        engine: What takes the steps; audits plant canaries in a subclass of it.

    Returns:
        Values of the layout's length: new minus old, 0 where the client keeps a part to itself.
    """
    outputs, settings = len(data.label_set), job.training
    sampler = PoissonSampler(len(data.train), settings.sample_rate, noise)
    with seated(backbone, mine, outputs, mixing):
        parts = trainables(backbone, job, shares, mixing)
        parameters = parts.all()
        for p in parameters:
            p.requires_grad_(True)
        before = [p.detach().clone() for p in parts.shared]
        optimizer = _optimizer(parts, job, upload_gradient=upload_gradient)
        _restore_moments(optimizer, parts, mine.adam)
        with engine(
            backbone.model,
            optimizer,
            backbone.loss,
            noise_multiplier=noise_multiplier,
            max_grad_norm=settings.max_grad_norm,
            expected_batch_size=settings.sample_rate * records,
            physical_batch_size=settings.physical_batch_size,
            noise=noise,
        ) as trainer:
            for _ in range(steps):
                drawn = sampler.draw()
                # Similar lengths share a physical batch. Which records were drawn is not changed,
                # only their order.
                drawn = drawn[
                    np.argsort([len(data.train.tokens[int(i)]) for i in drawn], kind="stable")
                ]
                parts_of_batch = _physical(drawn, settings.physical_batch_size)
                trainer.step(
                    [
                        data.train.batch(part, backbone.pad, backbone.device)
                        for part in parts_of_batch
                    ]
                )
                tick()
        mine.adam |= _moments(optimizer, parts)
        changes = [
            (p.detach() - old).float().cpu().reshape(-1)
            for p, old in zip(parts.shared, before, strict=True)
        ]
        backbone.model.requires_grad_(False)
    return _spread(changes, backbone, shares)


def train_head(
    features: torch.Tensor,
    labels: "np.ndarray[Any, Any]",
    head: nn.Module,
    job: Job,
    *,
    noise_multiplier: float,
    records: int,
    noise: NoiseSource,
    tick: Tick,
) -> None:
    """Train the trainable end of a head alone on cached features of the frozen backbone, in place.

    The result is the mean of the iterates of the second half of the steps (Polyak and Juditsky
    1992; under DP-SGD De et al. 2204.13650, section 3): it only processes what the steps gave
    already, and averages their noise out.

    Args:
        features: (rows, in_features) what the head's end sees.
        labels: (rows,) positions in the label set.
    """
    settings = job.training
    head.requires_grad_(True)
    sampler = PoissonSampler(len(features), settings.head_sample_rate, noise)
    targets = torch.from_numpy(labels).to(features.device)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["features"]), batch["labels"], reduction="none")

    with DPSGD(
        head,
        torch.optim.Adam(head.parameters(), lr=settings.head_learning_rate),
        loss,
        noise_multiplier=noise_multiplier,
        max_grad_norm=settings.max_grad_norm,
        expected_batch_size=settings.head_sample_rate * records,
        physical_batch_size=4096,
        noise=noise,
    ) as engine:
        half, tail = settings.head_steps // 2, [torch.zeros_like(p) for p in head.parameters()]
        for step in range(settings.head_steps):
            drawn = torch.from_numpy(sampler.draw()).to(features.device)
            engine.step({"features": features[drawn], "labels": targets[drawn]})
            if step >= half:
                for total, p in zip(tail, head.parameters(), strict=True):
                    total.add_(p.detach())
            tick()
    head.requires_grad_(False)
    if settings.head_steps:
        for total, p in zip(tail, head.parameters(), strict=True):
            p.copy_(total / (settings.head_steps - half))


def fingerprint(
    means: "np.ndarray[Any, Any]",
    public: "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]",
    *,
    noise_multiplier: float,
    records: int,
    noise: NoiseSource,
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Release the mean over the records of their per-layer hidden states, one Gaussian mechanism
    for all layers.

    Args: means: (rows, depth, hidden); each record's values are centred and scaled by public
        constants, then scaled to
            joint norm 1 over all layers.
        public: Centre (depth, hidden) and scale (depth,) of public text, see
            `Backbone.layer_reference`.

    Returns:
        (depth, hidden); each value has noise of standard deviation ``noise_multiplier / records``.
    """
    rows, depth, hidden = means.shape
    centre, scale = public
    means = (means.astype(np.float64) - centre) / scale[:, None]
    released = gaussian_mean(
        means.reshape(rows, depth * hidden),
        max_norm=1.0,
        normalise=True,
        divisor=float(records),
        noise_multiplier=noise_multiplier,
        noise=noise,
    )
    return np.asarray(released, dtype=np.float64).reshape(depth, hidden)


def largest_change(job: Job, noise_multiplier: float, records: int, *, merge: bool) -> float:
    """Bound on one uploaded value, from public constants; rarer values are cut, which is
    post-processing.

    An uploaded gradient is at most the clipping norm times the batch over its expectation (taken as
    2) plus eight standard deviations of noise. A change under Adam is at most ``(1 - b1) / sqrt(1 -
    b2)`` learning rates a step (Kingma and Ba 2015, section 2.1).
    """
    settings = job.training
    if settings.local_steps == 1 and not merge:
        return settings.max_grad_norm * (
            2.0 + 8.0 * noise_multiplier / (settings.sample_rate * records)
        )
    steps = job.topology.warmup_steps if merge else settings.local_steps
    return 3.2 * settings.learning_rate * steps


def _optimizer(parts: Trainables, job: Job, *, upload_gradient: bool) -> SplitAdam:
    settings = job.training
    shared: dict[str, Any] = {"params": list(parts.shared), "lr": settings.learning_rate}
    if upload_gradient:
        shared |= {"plain": True, "lr": 1.0}
    groups = [
        shared,
        {"params": [p for _, p in parts.home], "lr": settings.learning_rate},
        {"params": [p for _, p in parts.light], "lr": settings.head_learning_rate},
    ]
    return SplitAdam([group for group in groups if group["params"]])


def _physical(drawn: "np.ndarray[Any, Any]", limit: int) -> Iterable["np.ndarray[Any, Any]"]:
    for start in range(0, len(drawn), limit):
        yield drawn[start : start + limit]


def _restore_moments(optimizer: SplitAdam, parts: Trainables, saved: dict[str, Floats]) -> None:
    for name, p in (*parts.home, *parts.light):
        if f"{name}/step" in saved:
            optimizer.state[p] = {
                "step": torch.from_numpy(saved[f"{name}/step"].copy()).reshape(()),
                "exp_avg": torch.from_numpy(saved[f"{name}/m"].copy()).to(p.device).view_as(p),
                "exp_avg_sq": torch.from_numpy(saved[f"{name}/v"].copy()).to(p.device).view_as(p),
            }


def _moments(optimizer: SplitAdam, parts: Trainables) -> dict[str, Floats]:
    saved: dict[str, Floats] = {}
    for name, p in (*parts.home, *parts.light):
        if state := optimizer.state.get(p):
            saved[f"{name}/step"] = state["step"].detach().float().cpu().reshape(1).numpy()
            saved[f"{name}/m"] = state["exp_avg"].detach().float().cpu().reshape(-1).numpy()
            saved[f"{name}/v"] = state["exp_avg_sq"].detach().float().cpu().reshape(-1).numpy()
    return saved


def _spread(changes: list[torch.Tensor], backbone: Backbone, shares: Sequence[bool]) -> Floats:
    layout = backbone.layout()
    out = np.zeros(layout.length, dtype=np.float32)
    flat, at = (torch.cat(changes).numpy() if changes else out[:0]), 0
    for (start, stop), uploaded in zip(layout.parts, shares, strict=True):
        if uploaded:
            out[start:stop] = flat[at : at + stop - start]
            at += stop - start
    return out
