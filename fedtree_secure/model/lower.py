"""The frozen layers below the first adapter: run alone, or left out where their result is known.

No adapter sits below the first adapted layer, so what reaches it is a function of the record and
the pinned model, whoever trains and whatever a server sends. The model's own forward pass stays in
charge: it makes masks and positions, and finds the lower layers' result in place of the layers.
Whether that is the same model is tried on public tokens, bit by bit; an architecture that hands
more from layer to layer than one state is left as it is.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

STATES = "states"  # of a batch: what the lower layers make of its rows, (rows, width, hidden)


class _Reached(Exception):  # noqa: N818 - how a pass ends, not a fault
    """A pass has come to the first adapted layer."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


class LowerLayers:
    """The layers below the first adapted one.

    Args:
        model: The transformers model with its adapters.
        layers: Below the first adapted layer, in order; at least one.
        first: The first adapted layer.
        lengths: Of each layer's result: of how many values, the state first, or 0 where it is the
            state itself.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[nn.Module], first: nn.Module, lengths: list[int]
    ) -> None:
        self._model, self._layers, self._first, self._lengths = model, layers, first, lengths

    def __len__(self) -> int:
        return len(self._layers)

    @torch.no_grad()
    def states(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what reaches the first adapted layer, shape (rows, width, hidden).

        Args:
            batch: ``input_ids`` and ``attention_mask`` of shape (rows, width).
        """

        def stop(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else named["hidden_states"])

        handle = self._first.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        except _Reached as reached:
            return reached.states
        finally:
            handle.remove()
        raise LookupError("the first adapted layer takes no part in a pass")

    @contextlib.contextmanager
    def left_out(self, states: torch.Tensor) -> Iterator[None]:
        """Give the model these states in place of its lower layers' result."""
        for layer, length in zip(self._layers, self._lengths, strict=True):
            layer.forward = _known(states, length)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward


def _known(states: torch.Tensor, length: int) -> Any:
    """A layer's forward pass whose result is known."""
    result = (states, *[None] * (length - 1)) if length else states
    return lambda *_args, **_named: result


@torch.no_grad()
def lower_layers(model: Any, adapted: str, max_length: int) -> LowerLayers | None:
    """Find the layers below the first adapted one.

    Args:
        model: The transformers model with its adapters, in evaluation mode.
        adapted: Full name of a module in the first adapted layer.
        max_length: Tokens of the longest record.

    Returns:
        None where there are none, or where the model is not the same without them: it then has to
        run as a whole.
    """
    found = re.match(r"(.*?)\.(\d+)\.", adapted)
    if found is None or int(found[2]) == 0:
        return None
    stack, number = model.get_submodule(found[1]), int(found[2])
    layers = [stack[i] for i in range(number)]
    batch = _public(model, max_length)
    lengths: list[int] = []

    def note(_: nn.Module, __: Any, result: Any) -> None:
        lengths.append(len(result) if isinstance(result, tuple) else 0)

    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        whole = model(**batch).logits
    finally:
        for handle in handles:
            handle.remove()
    if len(lengths) != number:  # a layer is used twice, or not at all
        return None
    lower = LowerLayers(model, layers, stack[number], lengths)
    return lower if _same(lower, model, batch, whole) else None


def _same(lower: LowerLayers, model: Any, batch: dict[str, Any], whole: torch.Tensor) -> bool:
    """Whether a model that is given the lower layers' states computes what it did, bit for bit."""
    try:
        states = lower.states(batch)
        with lower.left_out(states):
            upper = model(**batch).logits
        # States that nothing reads would pass, too: other states must give other logits.
        with lower.left_out(states.flip(0)):
            swapped = model(**batch).logits
    except (TypeError, LookupError, AttributeError, RuntimeError):
        return False
    return torch.equal(upper, whole) and not torch.equal(swapped, whole)


def _public(model: Any, max_length: int) -> dict[str, torch.Tensor]:
    """Two records of public tokens, one of half the length, the other of all but one token."""
    known = model.get_input_embeddings().weight
    rng = np.random.default_rng(0xF0)
    ids = torch.from_numpy(rng.integers(len(known), size=(2, max_length)))
    mask = torch.ones_like(ids)
    mask[0, max_length - 1 :] = 0
    mask[0, 0] = 1
    mask[1, (max_length + 1) // 2 :] = 0
    return {"input_ids": ids.to(known.device), "attention_mask": mask.to(known.device)}
