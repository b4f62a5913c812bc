"""What a run's result advises: from public facts, or from what was measured at home.

Each advice has a key that stays the same from version to version. What was measured on test rows
is for their owner: it is printed and stands in the report, and never in events or metrics.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ONE_GROUP = "one-group"
TOO_FEW = "too-few-for-groups"
NOISE = "noise-drowns-adapters"
LABELS = "declare-labels"
FEATURES = "features-suffice"
HEAD = "head-alone"
UNTRAINED = "untrained-alone"

# Of the clipping norm, noise in the mean step of a group: adapters have paid below it alone. The
# evidence is in docs/trees.md.
PAYS = 0.45

TREES = {"fingerprint": "the fingerprint", "lora_b": "the warm-up"}  # sources that cost budget


@dataclass(frozen=True)
class Advice:
    """One piece of advice.

    Attributes:
        key: Its stable name.
        text: A sentence for people, without its full stop.
        public: Whether it follows from public facts alone.
    """

    key: str
    text: str
    public: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def advice_of(data: Mapping[str, Any]) -> list[Advice]:
    """Return what a summary advises, public advice first.

    Args:
        data: Content of ``summary.json``; ``job``, ``layers`` and ``clients`` by name are enough.
    """
    found = (_too_few(data), _one_group(data), _noise(data), _labels(data), _head(data))
    return sorted(filter(None, found), key=lambda advice: not advice.public)


def too_few(source: str, clients: int, min_group: int) -> str:
    """Say that no two groups can be made; empty where they can, or where nobody looks for them."""
    if source not in TREES or clients >= 2 * min_group:
        return ""
    return (
        f"{clients} clients cannot make two groups of {min_group}: "
        f'topology.source = "one_group" saves the budget of {TREES[source]}'
    )


def alike(ratios: Iterable[float]) -> float:
    """Return the noise that each client would have if all had the same and their mean had the noise
    that it has: the root mean square. One noisy member counts in a mean, and not in a median.

    Args:
        ratios: Of each client; see `drowned`.
    """
    return math.sqrt(statistics.fmean(ratio**2 for ratio in ratios))


def drowned(ratio: float, clients: int) -> bool:
    """Whether there is more noise in the mean step of a group than adapters have paid with.

    Args:
        ratio: Norm of the noise in a client's averaged step over the clipping norm.
        clients: In the group.
    """
    return ratio / math.sqrt(max(clients, 1)) > PAYS


def too_noisy(ratio: float, clients: int, *, head: bool) -> str:
    """Say how much noise there is, and what to do.

    Args:
        ratio, clients: As for `drowned`.
        head: Whether there is a head that could have the budget.
    """
    return (
        f"the noise of a step is {ratio / math.sqrt(max(clients, 1)):.2g} times the clipping norm "
        f"even among {clients} clients, and adapters have paid below {PAYS} alone "
        "(docs/trees.md): more records, fewer rounds, a smaller lora.r or fewer last_layers"
        + ("; or rounds = 0, the head alone" if head else "")
    )


def _source(data: Mapping[str, Any]) -> str:
    """Where the tree came from; no rounds, no tree."""
    job = data["job"]
    return str(job["topology"]["source"]) if job["rounds"] else "none"


def _too_few(data: Mapping[str, Any]) -> Advice | None:
    text = too_few(_source(data), len(data["clients"]), data["job"]["masking"]["min_group"])
    return Advice(TOO_FEW, text) if text else None


def _one_group(data: Mapping[str, Any]) -> Advice | None:
    """A tree was paid for, could have split, and did not."""
    whole = all(len(layer["clusters"]) == 1 for layer in data["layers"])
    if _source(data) not in TREES or not data["layers"] or not whole or _too_few(data):
        return None
    weighed = any(layer.get("why") for layer in data["layers"])
    why = "no split pays at this noise" if weighed else "no split is clear at this noise"
    saved = TREES[_source(data)]
    return Advice(
        ONE_GROUP,
        f"one group everywhere, because {why}: on data like these, topology.source = "
        f'"one_group" saves the budget of {saved}',
    )


def _noise(data: Mapping[str, Any]) -> Advice | None:
    ratios = [r["noise_to_clip"] for r in data["clients"].values() if r.get("noise_to_clip")]
    groups = [len(group) for layer in data["layers"] for group in layer["released"]]
    if not ratios or not groups:
        return None
    ratio, largest = alike(ratios), max(groups)
    if not drowned(ratio, largest):
        return None
    head = data["job"]["task"] != "causal-lm"
    return Advice(NOISE, too_noisy(ratio, largest, head=head))


def _labels(data: Mapping[str, Any]) -> Advice | None:
    clients = data["clients"]
    if data["job"]["training"]["head"] not in ("auto", "group"):
        return None
    shared = {name for group in data.get("heads", []) for name in group}
    silent = [
        name
        for name, report in clients.items()
        if name not in shared and report.get("labels") and not report["labels_declared"]
    ]
    if not silent:
        return None
    return Advice(
        LABELS,
        f"heads stay at home for {', '.join(silent)}: only declared label sets are compared "
        "(labels in the job file, or in Client)",
    )


def _head(data: Mapping[str, Any]) -> Advice | None:
    """Whether what was trained in the rounds shows on the clients' own test rows."""
    causal = data["job"]["task"] == "causal-lm"
    gaps = _gaps(data, causal=causal)
    found = interval(gaps)
    if found is None or found[0] > 0 or not data["job"]["rounds"]:
        return None
    mean = statistics.mean(gaps)
    shown = (
        f"over {len(gaps)} clients, {mean:+.3f} on average (95% of {found[0]:+.3f} to "
        f"{found[1]:+.3f})"
    )
    if causal:
        return Advice(
            UNTRAINED,
            "the untrained model is as good here, as far as these test rows tell: training lowers "
            f"perplexity by nothing that can be told from chance, {shown}",
            public=False,
        )
    return Advice(
        HEAD,
        "the head alone is as good here, as far as these test rows tell: adapters add nothing that "
        f"can be told from chance, {shown}; rounds = 0 gives the head the whole budget",
        public=False,
    )


def _gaps(data: Mapping[str, Any], *, causal: bool) -> list[float]:
    """By how much each client's model is better than without adapters.

    A simulation's reference was trained under the same epsilon, which is the fairer comparison;
    without one, the delivered model's own adapters are switched off.
    """
    references = data.get("references", {})
    trained = [references[key]["clients"] for key in ("head_group", "head") if key in references]
    rival: Mapping[str, Any] = trained[0] if trained else {}
    gaps = []
    for name, report in data["clients"].items():
        ours = report.get("metric")
        other = report.get("untrained" if causal else "without_adapters")
        if name in rival:
            other = rival[name]["metric"]
        if ours and other:
            gap = ours["value"] - other["value"]
            gaps.append(-gap if causal else gap)
    return gaps


def interval(gaps: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of a mean of paired differences (Student); None for fewer than three."""
    if len(gaps) < 3:
        return None
    from scipy.stats import t

    half = float(t.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return statistics.mean(gaps) - half, statistics.mean(gaps) + half
