"""A classifier on pooled hidden states, for encoders whose own classifier is not pretrained.

Sentence transformers were trained to be read by the mean of their last hidden states; the pooler
that transformers puts behind them was trained for something else, or not at all. Pooled features
have norm 1: their length says little about the text, and a record's gradient is as long as they.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from fedtree_secure.config import Pooling
from fedtree_secure.errors import BackboneError

Pooled = Literal["mean", "first", "last"]
# Of sentence-transformers' 1_Pooling/config.json, and what each is called here.
_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}


def pooled(states: torch.Tensor, mask: torch.Tensor, how: Pooled) -> torch.Tensor:
    """Return one vector of norm 1 for each record.

    Args:
        states: (records, tokens, hidden), the last hidden states.
        mask: (records, tokens), 1 at real tokens, which come first.
        how: Over which of a record's own tokens.
    """
    if how == "mean":
        weights = mask.unsqueeze(-1).to(states.dtype)
        vectors = (states * weights).sum(dim=1) / weights.sum(dim=1)
    elif how == "first":
        vectors = states[:, 0]
    else:
        vectors = states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]
    return nn.functional.normalize(vectors, dim=-1)


class PooledClassifier(nn.Module):
    """An encoder, a pooling, and a linear classifier, with the parts that transformers' have.

    Args:
        encoder: A transformers model without a head.
        how: See `pooled`.
    """

    base_model_prefix = "encoder"

    def __init__(self, encoder: Any, how: Pooled) -> None:
        super().__init__()
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # computed for nobody
        self.encoder, self.config, self.how = encoder, encoder.config, how
        width = int(getattr(encoder.config, "hidden_size", 0) or encoder.config.dim)
        self.classifier = nn.Linear(width, 2)

    @property
    def base_model(self) -> nn.Module:
        """The encoder, as transformers' models name it."""
        encoder: nn.Module = self.encoder
        return encoder

    def get_input_embeddings(self) -> nn.Module:
        """Return the encoder's embedding of tokens."""
        embeddings: nn.Module = self.encoder.get_input_embeddings()
        return embeddings

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        output_hidden_states: bool = False,
    ) -> SequenceClassifierOutput:
        """Return logits (records, outputs), and all hidden states where asked for."""
        found = self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
        )
        features = pooled(found.last_hidden_state, attention_mask, self.how)
        return SequenceClassifierOutput(
            logits=self.classifier(features), hidden_states=found.hidden_states
        )


def pooling_of(
    wanted: Pooling, folder: Path, model: Any, missing: tuple[str, ...]
) -> Pooled | Literal["native"]:
    """Decide what the head reads.

    Args:
        wanted: The job's choice.
        folder: Of the checkpoint.
        model: Its model with a classifier.
        missing: Parameters that the checkpoint lacks.

    Raises:
        BackboneError: The checkpoint was trained for a pooling that is not offered.
    """
    if wanted != "auto":
        return wanted
    trained = trained_pooling(folder)
    if trained is not None:
        return trained
    if hasattr(model, "score"):
        return "native"  # decoders classify by their last token
    ends = ("classifier.weight", "classifier.bias", "out_proj.weight", "out_proj.bias")
    fresh_layers = [name for name in missing if not name.endswith(ends)]
    return "mean" if fresh_layers else "native"


def trained_pooling(folder: Path) -> Pooled | None:
    """Return what a sentence transformer's own configuration says; None without one.

    Raises:
        BackboneError: It was trained for a pooling that is not offered.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text("utf-8"))
        on = sorted(key for key, value in settings.items() if value is True and "mode" in key)
    except (ValueError, OSError, AttributeError) as error:
        raise BackboneError(f"{path} cannot be read: {error}") from None
    if len(on) != 1 or on[0] not in _MODES:
        raise BackboneError(
            f"{path} asks for {', '.join(on) or 'no pooling'}; allowed: one of "
            f"{', '.join(_MODES)}. Set training.pooling to mean, first, last or native"
        )
    return _MODES[on[0]]  # type: ignore[return-value]
