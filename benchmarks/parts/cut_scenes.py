"""Simulated federations whose true groups are known: gradients, fingerprints and their sketches.

Every layer's gradient has a part that all clients share, a part of the client's group, and a part
of its own; noise is that of the Gaussian mechanism at the cell's epsilon and number of records.
Squared distances go through a Gaussian sketch. Nothing of size `dimension` is drawn: noise outside
the few directions of the signal is a triangular factor of a Wishart matrix (Bartlett 1933), and so
is the sketch.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.optimize import brentq
from scipy.spatial.distance import squareform
from scipy.stats import norm

from fedtree_secure.agreed.cut_costs import GradientEvidence
from fedtree_secure.agreed.tree import TreeInputs

DELTA = 1e-5
DIMENSION, SKETCH = 3072, 2048  # values of a layer's B (rank 4, two 384 x 384 maps); sketch
# Norms of a client's mean gradient in the six layers of a small encoder, in clipping norms.
NORMS = np.array([0.020, 0.036, 0.051, 0.052, 0.082, 0.066])
# Fingerprints: squared distance of two groups in a layer (of a joint norm of 1), values, sketch,
# share of the budget as epsilon.
APART, HIDDEN, SMALL_SKETCH, FINGERPRINT_EPSILON = 0.04, 384, 256, 0.5


@dataclass(frozen=True)
class Scene:
    """One cell of the study.

    Attributes:
        epsilon: Of all rounds of a client together, at delta 1e-5.
        rows: Records of a client.
        clients: Number of clients.
        groups: True groups, of equal size or nearly.
        depth: First layer in which groups differ; 6 or more: in none.
        families: First layer in which two families of groups differ, if earlier than `depth`.
        between: Share of a layer's energy that is the group's (and the same for families).
        own: Share that is the client's own.
        unequal: Rows run from half to twice `rows`.
        rounds: Rounds of the plan; one release has their number times the noise of a release with
            the whole budget.
    """

    epsilon: float
    rows: int
    clients: int = 9
    groups: int = 3
    depth: int = 2
    families: int | None = None
    between: float = 0.35
    own: float = 0.05
    unequal: bool = False
    rounds: int = 10

    def planted(self, truly, layer):
        """(clients,) groups that differ in a layer."""
        if layer >= self.depth:
            return truly
        families = self.families is not None and layer >= self.families
        return truly * 2 // self.groups if families else 0 * truly

    def replace(self, **changes):
        """Copy with other values."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Draw:
    """What one federation is and what is seen of it.

    Attributes:
        truth: (layers, clients, values) true mean gradients, in coordinates of their span.
        truly: (clients,) the true groups.
        planted: (layers, clients) the groups whose gradients differ in a layer.
        evidence: What the first release says about gradients.
        fingerprints: What the fingerprints say.
        merges: Ward's tree of the debiased fingerprints.
    """

    truth: np.ndarray
    truly: np.ndarray
    planted: np.ndarray
    evidence: GradientEvidence
    fingerprints: TreeInputs
    merges: np.ndarray

    def error(self, labels):
        """Squared error of all clients in all layers over the signal's energy.

        A cluster's members are wrong by their distance from its mean and by the noise of the mean.
        """
        wrong = 0.0
        for truth, plan, row in zip(self.truth, self.evidence.plan_noise, labels, strict=True):
            for cluster in np.unique(row):
                inside = np.asarray(row) == cluster
                group = truth[inside]
                wrong += ((group - group.mean(axis=0)) ** 2).sum() + plan[inside].mean()
        return wrong / (self.truth**2).sum()


def one_release(epsilon):
    """Noise multiplier of one Gaussian release (Balle and Wang 2018, theorem 8)."""

    def delta(sigma):
        a, b = 0.5 / sigma, epsilon * sigma
        return norm.cdf(a - b) - np.exp(epsilon + norm.logcdf(-a - b)) - DELTA

    return brentq(delta, 0.05, 200.0)


def draw(scene, seed):
    """Draw a federation."""
    rng = np.random.default_rng([seed, scene.clients, scene.rows])
    truly = np.sort(np.arange(scene.clients) % scene.groups)
    rows = np.full(scene.clients, float(scene.rows))
    if scene.unequal:
        # The same clients are large in every draw: the silhouette's threshold is found once.
        order = np.random.default_rng(0).permutation(scene.clients)
        rows *= np.exp2(np.linspace(-1, 1, scene.clients))[order]
    truth = np.stack([_gradients(rng, scene, truly, layer) for layer in range(len(NORMS))])
    plan = np.tile(DIMENSION * (one_release(scene.epsilon) / rows) ** 2, (len(NORMS), 1))
    squared = np.stack([_seen(rng, g, scene.rounds * plan[0], DIMENSION, SKETCH) for g in truth])
    evidence = GradientEvidence(squared, scene.rounds * plan, plan, DIMENSION, SKETCH)
    noise = HIDDEN * (one_release(FINGERPRINT_EPSILON) / rows) ** 2
    shown = np.sqrt(APART / 2) * np.eye(scene.groups)[truly]
    prints = np.stack([_seen(rng, shown, noise, HIDDEN, SMALL_SKETCH) for _ in NORMS])
    fingerprints = TreeInputs(prints, noise, HIDDEN, SMALL_SKETCH)
    planted = np.stack([scene.planted(truly, layer) for layer in range(len(NORMS))])
    return Draw(truth, truly, planted, evidence, fingerprints, _merge_tree(fingerprints))


def _gradients(rng, scene, truly, layer):
    """(clients, values) true gradients of a layer, in orthogonal directions."""
    own = np.sqrt(scene.own) * np.eye(scene.clients)
    # The part of its own has the scene's energy on average, not exactly.
    own *= np.sqrt(rng.chisquare(8, scene.clients) / 8)[:, None]
    parts = [own]
    grouped, related = layer >= scene.depth, scene.families is not None and layer >= scene.families
    parts.append(np.sqrt(scene.between * grouped) * np.eye(scene.groups)[truly])
    parts.append(np.sqrt(scene.between * related) * np.eye(2)[truly * 2 // scene.groups])
    left = 1 - sum(float((part**2).sum(axis=1).mean()) for part in parts)
    parts.append(np.full((scene.clients, 1), np.sqrt(max(left, 0.0))))
    return NORMS[layer] * np.concatenate(parts, axis=1)


def _seen(rng, vectors, energy, dimension, sketch):
    """(clients, clients) squared distances after noise and sketch."""
    count, span = vectors.shape
    scale = np.sqrt(energy / dimension)[:, None]
    rest = _wishart(rng, count, dimension - span)
    noisy = np.concatenate([vectors + scale * rng.normal(size=vectors.shape), scale * rest], axis=1)
    views = noisy @ _wishart(rng, span + count, sketch) / np.sqrt(sketch)
    norms = (views**2).sum(axis=1)
    squared = np.maximum(norms[:, None] + norms[None, :] - 2 * views @ views.T, 0.0)
    np.fill_diagonal(squared, 0.0)
    return (squared + squared.T) / 2


def _wishart(rng, count, freedom):
    """(count, count) lower triangular factor of a Wishart matrix."""
    factor = np.tril(rng.normal(size=(count, count)), -1)
    factor[np.diag_indices(count)] = np.sqrt(rng.chisquare(freedom - np.arange(count)))
    return factor


def _merge_tree(prints):
    noise = prints.noise[:, None] + prints.noise[None, :]
    mean = prints.squared.mean(axis=0) - noise
    np.fill_diagonal(mean, 0.0)
    return linkage(squareform(np.sqrt(np.maximum(mean, 0.0)), checks=False), "ward")
