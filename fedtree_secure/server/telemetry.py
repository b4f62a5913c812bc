"""What a server tells its operator of each round: who dropped out and why, bytes, seconds.

Made of what the server sees anyhow: which replies came, how long they are, and what was opened.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedtree_secure.agreed.round_plan import weighed
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.server.coordinator import Coordinator
from fedtree_secure.server.state import RoundRecord

COUNTED = ("seconds", "bytes_out", "bytes_in", "messages")


class RoundMeter:
    """Adds up the exchanges of each round; one of `Events`' listeners."""

    def __init__(self) -> None:
        self._sums: dict[int, dict[str, float]] = {}
        self._missing: dict[int, dict[str, str]] = {}

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Count an exchange."""
        number = round_of(str(line.get("stage", "")))
        if line["event"] != "exchange" or number is None:
            return
        sums = self._sums.setdefault(number, dict.fromkeys(COUNTED, 0))
        for name in COUNTED:
            sums[name] += line[name]
        self.missed(str(line["stage"]), line["missing"])

    def missed(self, stage: str, reasons: Mapping[str, str]) -> None:
        """Note whose replies are missing or do not count.

        A client's first reason in a round stands: the transport knows best, and is heard first.
        """
        number = round_of(stage)
        if number is not None:
            known = self._missing.setdefault(number, {})
            known |= {name: reason for name, reason in reasons.items() if name not in known}

    def facts(self, record: RoundRecord) -> dict[str, Any]:
        """Return what is said of a round that is over, and forget it."""
        sums = self._sums.pop(record.round, dict.fromkeys(COUNTED, 0))
        return {
            "round": record.round,
            "opened": {node: len(names) for node, names in record.opened.items()},
            "closed": record.closed,
            "dropouts": dict(sorted(self._missing.pop(record.round, {}).items())),
            "error": record.error.partition(":")[0],  # its class; the text stays here
            **{name: round(value, 3) for name, value in sums.items()},
        }


def round_of(stage: str) -> int | None:
    """The number of a stage's round; None outside of the rounds."""
    before = stage.partition("/")[0]
    number = before.removeprefix("round-")
    return int(number) if before.startswith("round-") and number.isdecimal() else None


def layers_of(tree: Tree, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return sizes of the groups of each layer whose sums are opened, and how many keep it at home.

    Args:
        names: Of the layers.
    """
    found = []
    for at, name in enumerate(names):
        groups = sorted((len(group) for group in tree.released(at)), reverse=True)
        found.append({"layer": name, "groups": groups, "home": len(tree.members) - sum(groups)})
    return found


def reasons(coordinator: Coordinator) -> list[str]:
    """Why each layer is shared as it is, in sentences; none unless the noise was weighed."""
    proposal, facts = coordinator.state.proposal, coordinator.facts
    if proposal is None or proposal.gradients is None:
        return []
    cuts = weighed(coordinator.terms, facts, proposal)
    return [cut.describe(n) for n, cut in zip(facts.layer_names, cuts.layers, strict=True)]


def noise_to_clip(coordinator: Coordinator) -> dict[str, float]:
    """Norm of the noise in an averaged step of each client that joined, over the clipping norm.

    Made of public numbers: its noise multiplier, declared records, and the values that it trains.
    """
    job, values = coordinator.job, coordinator.facts.layout.length
    if not job.rounds:
        return {}
    return {
        name: reply.noise_multiplier
        * math.sqrt(values)
        / (job.training.sample_rate * reply.records)
        for name, reply in coordinator.joined.items()
    }
