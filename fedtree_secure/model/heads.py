"""Classification heads: the trainable end on centred features, found, put in and folded back."""

import copy

import torch
from torch import nn

from fedtree_secure.config import Job
from fedtree_secure.errors import BackboneError


class Centred(nn.Module):
    """A projection of features that were centred and scaled by public constants.

    A pretrained encoder's features share one large common direction, which would take most of a
    clipped gradient. The constants come from `Backbone.reference`, never from a client; they fold
    into an ordinary linear layer at delivery.

    Args:
        projection: (outputs, in_features); without bias the features are scaled but not centred,
            because there would be nothing to fold the centre into.
        reference: Mean (in_features,) and scale of public features.
    """

    def __init__(self, projection: nn.Linear, reference: tuple[torch.Tensor, float]) -> None:
        super().__init__()
        self.projection = projection
        mean, scale = reference
        self.register_buffer(
            "mean",
            mean if projection.bias is not None else torch.zeros_like(mean),
            persistent=False,
        )
        self.scale = scale

    mean: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits for features of shape (..., in_features)."""
        out: torch.Tensor = self.projection((x - self.mean) * self.scale)
        return out

    def folded(self) -> nn.Linear:
        """One linear layer with the same outputs."""
        inner = self.projection
        plain = nn.Linear(inner.in_features, inner.out_features, bias=inner.bias is not None)
        with torch.no_grad():
            weight = inner.weight.double() * self.scale
            plain.weight.copy_(weight)
            if inner.bias is not None:
                plain.bias.copy_(inner.bias.double() - weight @ self.mean.double())
        return plain


def find_head(model: nn.Module, job: Job) -> tuple[str, nn.Module | None]:
    """Return the name and a copy of the model's classification head; ``("", None)`` without one.

    Raises:
        BackboneError: The task needs a head and the model has none that is known.
    """
    if job.task == "causal-lm":
        return "", None
    for name in ("classifier", "score"):
        if hasattr(model, name):
            return name, copy.deepcopy(getattr(model, name))
    children = ", ".join(n for n, _ in model.named_children())
    raise BackboneError(
        f"no classification head found in {type(model).__name__}; its parts are {children}"
    )


def last_linear(head: nn.Module) -> tuple[str, nn.Linear]:
    """Return the last linear layer of a head and its name inside it."""
    found = [
        (name, module) for name, module in head.named_modules() if isinstance(module, nn.Linear)
    ]
    return found[-1]


def replace_part(head: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module in the place of a head's part; the empty name is the head itself."""
    if not name:
        return module
    head.set_submodule(name, module)
    return head
