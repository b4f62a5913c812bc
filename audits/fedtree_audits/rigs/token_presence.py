"""Which tokens were in a text, from the gradient of its LoRA factors: the span check.

A linear layer's gradient is a sum over tokens of (what comes back) times (what went in). So the row
space of the gradient of A holds the inputs x_t of the layer, and that of B holds A x_t (Balunovic
et al. 2202.08827 and Petrov et al. 2405.15586 for full weights). In the first layer of a model with
rotary positions x_t depends on the token alone: whoever knows the model tries every word of the
vocabulary. The check tells nothing where the space is full: for A when tokens fill the layer's
width, for B already when there are as many tokens as the rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.stats import t as student

from fedtree_audits.statistics import estimators as est
from fedtree_audits.statistics.scores import Floats
from fedtree_secure.testing import CLUSTER, Backbone

_NEGLIGIBLE = 1e-4  # singular values below this share of the largest are rounding of float32 sums


def candidates(backbone: Backbone, words: Sequence[int]) -> list[Floats]:
    """Return what each word puts into the first adapted layer, one array for each exchanged factor
    of that layer.

    Args:
        backbone: a Llama whose first layer is adapted; nothing needs to be loaded into it.
        words: token ids.

    Returns:
        In the order of the update: for A shape (words, d_in), for B (words, rank).
    """
    decoder = backbone.model.get_submodule("model")
    with torch.no_grad():
        inputs = decoder.layers[0].input_layernorm(decoder.embed_tokens(torch.tensor(list(words))))
    found = []
    for module in backbone.experts.by_layer[0]:
        seen = inputs.double().numpy()
        if not backbone.experts.lora.freeze_a:
            found.append(seen)
        found.append(seen @ module.lora_A[CLUSTER].weight.detach().double().numpy().T)
    return found


def first_layer(backbone: Backbone, update: Floats) -> list[Floats]:
    """Cut the first layer's factors out of an update, each as a matrix whose rows lie in the space
    of its inputs.
    """
    found, at = [], 0
    for factor in backbone.experts.factors(CLUSTER, 0):
        found.append(
            np.asarray(update[at : at + factor.numel()], dtype=np.float64).reshape(
                tuple(factor.shape)
            )
        )
        at += factor.numel()
    return found


def presence(gradients: Sequence[Floats], inputs: Sequence[Floats]) -> Floats:
    """Return a score for each word, larger for "was in the text", shape (words,).

    Over all factors the sum of the logarithms of the share of a word's input that lies outside the
    row space, negated. Where the space is full, which leaves no outside, the share of the
    gradient's energy along the input is taken.
    """
    total = np.zeros(len(inputs[0]))
    for rows, given in zip(gradients, inputs, strict=True):
        unit = given / np.linalg.norm(given, axis=1, keepdims=True)
        _, sizes, space = np.linalg.svd(rows, full_matrices=False)
        kept = sizes > _NEGLIGIBLE * max(float(sizes.max()), 1e-300)
        along = unit @ space[kept].T
        if kept.sum() < rows.shape[1]:
            total -= np.log(np.maximum(1 - (along**2).sum(axis=1), 1e-12))
        else:
            total += np.log(np.maximum((along**2) @ (sizes[kept] / sizes.max()) ** 2, 1e-12))
    return total


def token_auc(scores: Floats, words: Sequence[int], present: set[int]) -> float:
    """Return the chance that a word of the texts outscores one that is in none.

    Raises:
        ScoresError: every word or no word is present, or scores are not finite.
    """
    there = np.array([word in present for word in words])
    if np.ptp(scores) == 0:
        return 0.5  # the check said nothing about any word
    return est.area(est.scores(scores, there))


def mean_interval(values: Sequence[float], level: float) -> tuple[float, float, float]:
    """Return the mean of independent trials and its two-sided t interval, cut to [0, 1]."""
    given = np.asarray(values, dtype=np.float64)
    error = (
        float(given.std(ddof=1))
        / np.sqrt(len(given))
        * float(student.ppf((1 + level) / 2, len(given) - 1))
    )
    mean = float(given.mean())
    return mean, max(0.0, mean - error), min(1.0, mean + error)


def intervals(
    aucs: Mapping[str, Sequence[float]], level: float
) -> dict[str, tuple[float, float, float]]:
    """Return `mean_interval` of every entry."""
    return {name: mean_interval(values, level) for name, values in aucs.items()}
