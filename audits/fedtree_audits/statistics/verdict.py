"""PASS, FAIL or INCONCLUSIVE: what an audit found, how much it could have seen, and the rule that
decides.

FAIL: a check contradicts the claim; a statistical one only with p < 1e-6, because an audit has many
tests and a correct protocol gave p = .04 once. INCONCLUSIVE: evidence is missing, a control was not
caught, or the smallest epsilon that would have been noticed in 9 of 10 runs is more than twice the
claim. PASS is everything else, and says its power.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
SIGNIFICANCE = 1e-6
POWER = 0.9
WORST_POWER_RATIO = 2.0


class Verdict(enum.StrEnum):
    """The three answers; each is equal to its name as text."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"

    @property
    def exit_code(self) -> int:
        """0, 1 and 2, in this order."""
        return list(Verdict).index(self)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what, in a few words.
        holds: False contradicts the claim.
        detail: the figures, in words.
        p_value: of the statistical test that decided, None for an exact comparison.
    """

    name: str
    holds: bool
    detail: str
    p_value: float | None = None

    @classmethod
    def test(cls, name: str, p_value: float, detail: str) -> Check:
        """Return a statistical check; it fails below `SIGNIFICANCE`, and when p is not a number."""
        return cls(name, bool(p_value >= SIGNIFICANCE), detail, float(p_value))


@dataclass(frozen=True)
class Power:
    """How much an audit could have seen.

    Attributes:
        claim: epsilon that is claimed.
        detected: smallest true epsilon that the audit would have noticed with 90% probability.
        how: how this was found.
        quantity: what claim and detected are, where not the epsilon of a whole run.
        limit: largest `detected` that is enough; twice the claim if None. Needed where the claim is
            0.
    """

    claim: float
    detected: float
    how: str
    quantity: str = "epsilon"
    limit: float | None = None

    @property
    def enough(self) -> bool:
        """Whether `detected` is at most the limit."""
        limit = WORST_POWER_RATIO * self.claim if self.limit is None else self.limit
        return math.isfinite(self.detected) and self.detected <= limit


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything one audit says.

    Attributes:
        audit, question: its name and what it answers.
        claim, adversary: what was claimed and whose view was taken.
        assumptions: what must be true for the verdict to mean anything.
        checks: what was looked at.
        missing: evidence that the run does not hold.
        power: None for exact comparisons, which have no sampling error.
        controls: broken variants run beside it, with whether each was caught.
        hashes: SHA-256 of the files that were read, by name.
        figures: numbers for the picture and for machines.
    """

    audit: str
    question: str
    claim: str
    adversary: str
    assumptions: Sequence[str]
    checks: Sequence[Check]
    missing: Sequence[str] = ()
    power: Power | None = None
    controls: Mapping[str, bool] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Decide; a contradiction counts even when other evidence is missing."""
        if any(not check.holds for check in self.checks):
            return Verdict.FAIL
        doubtful = self.missing or not self.checks or not all(self.controls.values())
        if doubtful or (self.power is not None and not self.power.enough):
            return Verdict.INCONCLUSIVE
        return Verdict.PASS

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: the JSON of schema version `SCHEMA` (``schemas/result-1.json``)."""
        found: dict[str, Any] = plain(
            {
                "schema": SCHEMA,
                "audit": self.audit,
                "verdict": self.verdict.value,
                "exit_code": self.verdict.exit_code,
                "question": self.question,
                "claim": self.claim,
                "adversary": self.adversary,
                "assumptions": list(self.assumptions),
                "checks": [vars(check) for check in self.checks],
                "missing": list(self.missing),
                "power": None
                if self.power is None
                else vars(self.power) | {"enough": self.power.enough},
                "controls": dict(self.controls),
                "hashes": dict(self.hashes),
                "figures": dict(self.figures),
            }
        )
        return found


def overall(results: Iterable[Result]) -> Verdict:
    """Return the verdict of several audits together: the worst one; none at all is inconclusive."""
    found = {result.verdict for result in results}
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        if verdict in found:
            return verdict
    return Verdict.PASS if found else Verdict.INCONCLUSIVE


def plain(value: Any) -> Any:
    """Return a value that JSON holds: numpy scalars as Python's, what is not finite as None, the
    rest as text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def holm(p_values: Mapping[str, float], level: float = 0.05) -> dict[str, bool]:
    """Say which hypotheses are rejected at a family-wise error of `level` (Holm 1979)."""
    return holm_by_level({name: lambda at, p=p: p <= at for name, p in p_values.items()}, level)  # type: ignore[misc]


def holm_by_level(
    rejects: Mapping[str, Callable[[float], bool]], level: float = 0.05
) -> dict[str, bool]:
    """Holm's procedure (1979) for tests that say whether they reject at a level, without a p-value.

    With k hypotheses left each is tested at level / k; those rejected leave, until none is. This is
    the step-down procedure on p-values, since a test that rejects at level / k also does at every
    larger level.

    Args:
        rejects: tests by name; each takes an error level and must be monotone in it.
        level: family-wise error.
    """
    left, rejected = dict(rejects), set[str]()
    while left:
        gone = {name for name, test in left.items() if test(level / len(left))}
        if not gone:
            break
        rejected |= gone
        left = {name: test for name, test in left.items() if name not in gone}
    return {name: name in rejected for name in rejects}
