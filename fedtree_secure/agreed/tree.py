"""The tree of client groups: one merge tree, one cut of it for every layer (FedTreeLoRA,
"layer-wise cuts").

Input is a squared distance between every two clients in every layer, which is all that the server
ever learns of the clients' vectors. The computation is deterministic and public: each client
repeats it and refuses another result.

Three points where noise asks for more than the paper says:

- Squared distances are debiased by the noise that is known to be in them. A debiased value can be
  negative, so layers are averaged before the root is taken: the global distance is a root mean
  square instead of a mean.
- The score of one cluster (the paper's tau) is not a constant. A split is made when its silhouette
  exceeds a quantile of what clients *without* groups reach under the same noise and the same
  sketch, found by simulation.
- A cluster with fewer than `min_group` members is never summed: its members keep that layer to
  themselves. They count as 0 in a cut's score, so that a cut which breaks a group up must be worth
  what its members lose.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from fedtree_secure.config import Linkage
from fedtree_secure.config import Topology as Settings

Floats = np.ndarray[Any, np.dtype[np.float64]]
NULL_DRAWS = 200
DEAR = 200  # clients from which on distances without groups are drawn once for all cuts
NULL_LAYERS = 4  # simulated layers of a draw; more would only narrow the same quantile
_NULL_SEED = 0x7EE  # public: clients must be able to repeat the server's computation


@dataclass(frozen=True)
class Tree:
    """Which clients share which layer.

    Attributes:
        members: Client ids in roster order.
        labels: For each part (layers, then the groups' heads) the cluster number of each member.
        min_group: Clusters with fewer members are not released.
    """

    members: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    min_group: int

    @property
    def cuts(self) -> tuple[int, ...]:
        """Number of clusters of each part, c_l."""
        return tuple(len(set(row)) for row in self.labels)

    def clusters(self, part: int) -> tuple[tuple[str, ...], ...]:
        """All clusters of a part, largest first."""
        return self._clusters[part]

    def released(self, part: int) -> tuple[tuple[str, ...], ...]:
        """The clusters of a part whose sum is opened: those with at least `min_group` members."""
        return self._released[part]

    def group_of(self, name: str, part: int) -> tuple[str, ...] | None:
        """The released cluster that a client belongs to in a part, None where it keeps the part to
        itself.
        """
        return self._groups[part].get(name)

    def externals_of(self, name: str, part: int) -> tuple[tuple[str, ...], ...]:
        """The released clusters of a part that a client does not belong to."""
        return tuple(group for group in self.released(part) if name not in group)

    def nodes(
        self, parts: Sequence[tuple[int, int]]
    ) -> Mapping[tuple[str, ...], tuple[tuple[int, int], ...]]:
        """Map each released group of clients to the coordinate ranges in which it is a cluster.

        Args:
            parts: Half-open coordinate range of each part, consecutive (see `Layout.parts`).
        """
        ranges: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        for part, (start, stop) in enumerate(parts):
            for group in self.released(part):
                held = ranges.setdefault(group, [])
                if held and held[-1][1] == start:
                    held[-1] = (held[-1][0], stop)
                else:
                    held.append((start, stop))
        return {group: tuple(held) for group, held in ranges.items()}

    @cached_property
    def sharers(self) -> frozenset[str]:
        """Clients that belong to a released cluster of any part."""
        return frozenset(name for groups in self._groups for name in groups)

    # Every client asks for its own place in every part: what they look it up in is made once.

    @cached_property
    def _clusters(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        return tuple(_grouped(self.members, row) for row in self.labels)

    @cached_property
    def _released(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        return tuple(
            tuple(group for group in found if len(group) >= self.min_group)
            for found in self._clusters
        )

    @cached_property
    def _groups(self) -> tuple[dict[str, tuple[str, ...]], ...]:
        return tuple({name: group for group in part for name in group} for part in self._released)


def _grouped(members: Sequence[str], row: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    groups: dict[int, list[str]] = {}
    for name, label in zip(members, row, strict=True):
        groups.setdefault(label, []).append(name)
    return tuple(sorted(map(tuple, groups.values()), key=lambda g: (-len(g), g)))


@lru_cache(maxsize=8)
def tree_of(members: tuple[str, ...], labels: tuple[tuple[int, ...], ...], min_group: int) -> Tree:
    """Return the tree with these labels: one object for all clients of a process."""
    return Tree(members, labels, min_group)


@dataclass(frozen=True)
class TreeInputs:
    """What a tree is computed from.

    Attributes:
        squared: (layers, clients, clients) estimated squared distances, noise included.
        noise: (clients,) expected squared norm of the noise in one layer of a client's vector;
            zeros if unknown.
        dimension: Values of a layer's vector.
        sketch_size: Rows of the projection the estimates come from.
    """

    squared: Floats
    noise: Floats
    dimension: int
    sketch_size: int


def trivial_tree(members: Sequence[str], depth: int, source: str, min_group: int) -> Tree:
    """The tree of ``one_group`` (one cluster everywhere) or ``none`` (everyone for themselves)."""
    row = tuple(range(len(members))) if source == "none" else (0,) * len(members)
    return tree_of(tuple(members), (row,) * depth, min_group)


def with_heads(tree: Tree, groups: Sequence[Sequence[str]]) -> Tree:
    """Append a part for each group's head: its members share it, everybody else has no part in it.

    Args:
        groups: Disjoint groups of the tree's members.
    """
    rows = list(tree.labels)
    for group in groups:
        inside = set(group)
        rows.append(tuple(0 if n in inside else i + 1 for i, n in enumerate(tree.members)))
    return tree_of(tree.members, tuple(rows), tree.min_group)


def build_tree(
    members: Sequence[str], evidence: TreeInputs, settings: Settings, min_group: int
) -> Tree:
    """Cluster the clients and cut the merge tree layer by layer.

    Returns:
        A tree with one row of labels per layer; each row refines the one before it.
    """
    merges = merge_tree(evidence, settings.linkage)

    @lru_cache
    def threshold(clusters: int) -> float:
        return null_silhouette(clusters, evidence, settings, min_group)

    raw = _roots(evidence.squared)
    clean = _roots(_debias(evidence))
    labels, current = [], 1
    for layer in range(len(raw)):
        current = _cut(
            merges, raw[layer], clean[layer], current, threshold, settings.window, min_group
        )
        labels.append(tuple(int(v) for v in _labels(merges, current)))
    return Tree(tuple(members), tuple(labels), min_group)


def _cut(
    merges: Floats,
    raw: Floats,
    clean: Floats,
    current: int,
    threshold: Callable[[int], float],
    window: int,
    least: int,
) -> int:
    """Choose c_l from the window [c_(l-1), c_(l-1) + K - 1]; more clusters must be significant
    *and* score better.
    """
    best, best_score = (
        current,
        -np.inf if current == 1 else silhouette(clean, _labels(merges, current), least),
    )
    for count in range(max(current + 1, 2), min(current + window, len(raw))):
        found = _labels(merges, count)
        score = silhouette(clean, found, least)
        if score > best_score and silhouette(raw, found, least) > threshold(count):
            best, best_score = count, score
    return best


def _labels(merges: Floats, count: int) -> "np.ndarray[Any, Any]":
    """(clients,) clusters after the first merges, numbered by their first members.

    What scipy's `cut_tree` returns, whose work grows with the square of the clients.
    """
    total = len(merges) + 1
    first = merges[: total - count, :2].astype(np.int64)
    root = np.arange(total + len(first))
    for at in range(len(first) - 1, -1, -1):  # from the last merge down to the clients
        root[first[at]] = root[total + at]
    _, begins, found = np.unique(root[:total], return_index=True, return_inverse=True)
    labels: np.ndarray[Any, Any] = np.argsort(np.argsort(begins))[found]
    return labels


def merge_tree(evidence: TreeInputs, method: Linkage) -> Floats:
    """Return the agglomerative merge tree of debiased distances, averaged over the layers, as
    scipy's `linkage` does.
    """
    return _merge_tree(_debias(evidence), method)


def _merge_tree(debiased: Floats, method: Linkage) -> Floats:
    condensed = squareform(_roots(debiased.mean(axis=0)), checks=False)
    merges: Floats = linkage(condensed, method=method)
    return merges


def _debias(evidence: TreeInputs) -> Floats:
    noise = evidence.noise[:, None] + evidence.noise[None, :]
    np.fill_diagonal(noise, 0.0)
    debiased: Floats = evidence.squared - noise
    return debiased


def _roots(squared: Floats) -> Floats:
    roots: Floats = np.sqrt(np.maximum(squared, 0.0))
    return roots


def silhouette(distances: Floats, labels: "np.ndarray[Any, Any]", least: int = 2) -> float:
    """Mean silhouette coefficient (Rousseeuw 1987) of a clustering on a distance matrix.

    Args:
        distances: (n, n), symmetric with zero diagonal.
        labels: (n,) cluster numbers.
        least: Members of a cluster with fewer members than this (at least 2) score 0.
    """
    return _score(distances @ _one_hot(labels), labels, least)


def _one_hot(labels: "np.ndarray[Any, Any]") -> Floats:
    """(n, clusters) 1 where a member is of a cluster, clusters by number."""
    found: Floats = (labels[:, None] == np.unique(labels)[None, :]).astype(np.float64)
    return found


def _score(sums: Floats, labels: "np.ndarray[Any, Any]", least: int) -> float:
    """The mean silhouette from (n, clusters) sums of each member's distances to each cluster's."""
    one_hot = _one_hot(labels)
    sizes = one_hot.sum(axis=0)
    if len(sizes) < 2:
        return 0.0
    own = one_hot.astype(bool)
    within = sums[own] / np.maximum(sizes[one_hot.argmax(axis=1)] - 1, 1)
    between = np.where(own, np.inf, sums / sizes).min(axis=1)
    larger = np.maximum(within, between)
    score = np.divide(between - within, larger, out=np.zeros_like(larger), where=larger > 0)
    return float(np.where(sizes[one_hot.argmax(axis=1)] >= max(least, 2), score, 0.0).mean())


def null_silhouette(
    clusters: int, evidence: TreeInputs, settings: Settings, min_group: int
) -> float:
    """Return the silhouette that clients without groups exceed with chance ``1 -
    settings.significance``.

    Clients without groups differ by their noise alone; where its size is unknown all clients have
    the same (a silhouette does not depend on the scale).
    """
    count = len(evidence.noise)
    scale = np.sqrt(evidence.noise) if (evidence.noise > 0).all() else np.ones(count)
    key = tuple(float(v) for v in scale / scale.max())
    layers = len(evidence.squared)
    shown = min(layers, NULL_LAYERS)
    # `_cut` asks for one number of clusters after the other. Where drawing costs little, a few
    # neighbouring ones are scored at a time; else all that it can ever come to, in one pass.
    most = max(clusters, layers * (settings.window - 1) + 1)
    window = settings.window if count <= DEAR else most - 1
    begin = clusters - (clusters - 2) % window
    counts = tuple(range(begin, min(begin + window, count)))
    null = _Null(key, shown, evidence.dimension, evidence.sketch_size, settings.linkage)
    found = _null_scores(null, counts, min_group)[clusters - begin]
    return float(np.quantile(found, settings.significance))


@dataclass(frozen=True)
class _Null:
    """Clients without groups: what their distances are drawn from. Fields as in `Evidence`."""

    scale: tuple[float, ...]
    layers: int
    dimension: int
    sketch_size: int
    linkage: Linkage

    def draws(self) -> Iterator[Floats]:
        """Draw (layers, clients, clients) squared distances, the same ones at every call.

        They are drawn again rather than kept: those of 1,000 clients would fill gigabytes.
        """
        size, scale = len(self.scale), np.asarray(self.scale)
        sizes = (size, self.layers, self.dimension, self.sketch_size)
        rng = np.random.default_rng([_NULL_SEED, *sizes])
        for _ in range(NULL_DRAWS):
            yield np.stack(
                [
                    _null_distances(rng, scale, self.dimension, self.sketch_size)
                    for _ in range(self.layers)
                ]
            )


@lru_cache(maxsize=64)
def _null_scores(null: _Null, counts: tuple[int, ...], least: int) -> tuple[tuple[float, ...], ...]:
    """Silhouettes of all draws and layers, for each of some numbers of clusters."""
    scores: list[list[float]] = [[] for _ in counts]
    for squared in null.draws():
        merges, distances = _merge_tree(squared, null.linkage), _roots(squared)
        cuts = [_labels(merges, count) for count in counts]
        for layer in distances:
            if len(layer) <= DEAR:
                every = [silhouette(layer, labels, least) for labels in cuts]
            else:
                every = _nested_silhouettes(layer, cuts, least)
            for found, score in zip(scores, every, strict=True):
                found.append(score)
    return tuple(map(tuple, scores))


def _nested_silhouettes(
    distances: Floats, cuts: "Sequence[np.ndarray[Any, Any]]", least: int
) -> list[float]:
    """The silhouettes of nested cuts, coarsest first: the sums of the finest give all others'."""
    finest = cuts[-1]
    sums, firsts = distances @ _one_hot(finest), np.unique(finest, return_index=True)[1]
    return [_score(sums @ _one_hot(labels[firsts]), labels, least) for labels in cuts]


def _null_distances(rng: np.random.Generator, scale: Floats, dimension: int, sketch: int) -> Floats:
    """Draw estimated squared distances of clients that differ by noise only.

    The noise vectors' Gram matrix is a scaled Wishart matrix (drawn by Bartlett's decomposition);
    rows of a Gaussian projection are then independent normal vectors with that covariance, so no
    vector of length `dimension` is needed. With more clients than rows of the projection it is the
    projection whose Gram matrix is drawn: given it, clients are independent normal vectors.
    """
    count = len(scale)
    if count <= sketch:
        factor = _bartlett(rng, count, dimension)
        views = rng.normal(size=(sketch, count)) @ (scale[:, None] * factor / np.sqrt(dimension)).T
    else:
        rows = (
            _bartlett(rng, sketch, dimension)
            if sketch <= dimension
            else rng.normal(size=(sketch, dimension))
        )
        views = rows @ rng.normal(size=(rows.shape[1], count)) * (scale / np.sqrt(dimension))
    views /= np.sqrt(sketch)
    gram = views.T @ views
    norms = gram.diagonal().copy()
    gram *= -2.0
    gram += norms[:, None]
    gram += norms[None, :]
    squared: Floats = np.maximum(gram, 0.0, out=gram)
    return squared


def _bartlett(rng: np.random.Generator, size: int, degrees: int) -> Floats:
    """(size, size) factor of a Wishart matrix of independent normal vectors of length `degrees`."""
    factor: Floats = np.tril(rng.normal(size=(size, size)), -1)
    factor[np.diag_indices(size)] = np.sqrt(rng.chisquare(np.maximum(degrees - np.arange(size), 1)))
    return factor
