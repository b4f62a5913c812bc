"""What an audit leaves behind: one JSON file, one Markdown page and one picture, under the audit's
name.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from fedtree_audits.report.curves import draw
from fedtree_audits.statistics.verdict import SIGNIFICANCE, Check, Power, Result, Verdict

_COLOURS = {Verdict.PASS: "#588157", Verdict.FAIL: "#c8553d", Verdict.INCONCLUSIVE: "#d4a373"}
_DEEPEST = 20.0


def write(result: Result, folder: Path) -> tuple[Path, Path, Path]:
    """Write the three files and return their paths; earlier ones of the same audit are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    made = (
        folder / f"{result.audit}.json",
        folder / f"{result.audit}.md",
        folder / f"{result.audit}.png",
    )
    made[0].write_text(
        json.dumps(result.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
    )
    made[1].write_text(markdown(result), "utf-8")
    (draw if "curves" in result.figures else picture)(result, made[2])
    return made


def markdown(result: Result) -> str:
    """Return the page."""
    lines = [f"# {result.audit}: {result.verdict.value}", "", result.question, ""]
    lines += [f"- Claim: {result.claim}", f"- Adversary: {result.adversary}"]
    lines += [f"- Assumed: {text}" for text in result.assumptions]
    lines += [f"- Missing: {text}" for text in result.missing]
    if result.power is not None:
        lines.append(f"- Power: {power_in_words(result.power)} ({result.power.how})")
    lines += ["", "| Check | Holds | p | Figures |", "|---|---|---|---|"]
    lines += [_row(check) for check in result.checks]
    if result.controls:
        lines += [
            "",
            "Broken variants run beside it: "
            + ", ".join(map(_control, result.controls.items()))
            + ".",
        ]
    if result.hashes:
        lines += ["", "SHA-256 of what was read:", ""]
        lines += [f"- `{name}` `{digest}`" for name, digest in result.hashes.items()]
    return "\n".join(lines) + "\n"


def power_in_words(power: Power) -> str:
    """Return what would have been noticed, against what is claimed."""
    article = "an" if power.quantity[0] in "aeiou" else "a"
    return (
        f"{article} {power.quantity} of {power.detected:.3g} would have been noticed with 90% "
        f"probability, against a claim of {power.claim:.3g}"
    )


def picture(result: Result, path: Path) -> None:
    """Draw every check as a bar: how improbable its figure is if the claim holds, against the line
    that decides.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    checks = list(result.checks)
    figure = Figure(
        figsize=(8.0, max(2.4, 0.32 * len(checks) + 1.4)), dpi=120, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = [_COLOURS[Verdict.PASS if check.holds else Verdict.FAIL] for check in checks]
    axes.barh(range(len(checks)), [_depth(check) for check in checks], color=colours)
    axes.set_yticks(range(len(checks)), [check.name for check in checks], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(-math.log10(SIGNIFICANCE), color="#444444", linewidth=1, linestyle="--")
    axes.set_xlim(0, _DEEPEST)
    axes.set_xlabel(
        "-log10 p if the claim holds (exact comparisons: 0 or full); dashed: the line that decides"
    )
    axes.set_title(
        f"{result.audit}: {result.verdict.value}", loc="left", color=_COLOURS[result.verdict]
    )
    figure.savefig(path)


def _depth(check: Check) -> float:
    if check.p_value is None:
        return 0.0 if check.holds else _DEEPEST
    return (
        min(_DEEPEST, -math.log10(max(check.p_value, 10.0**-_DEEPEST)))
        if check.p_value == check.p_value
        else _DEEPEST
    )


def _row(check: Check) -> str:
    p_value = "exact" if check.p_value is None else f"{check.p_value:.2g}"
    holds, detail = "yes" if check.holds else "NO", check.detail.replace("|", "/")
    return f"| {check.name} | {holds} | {p_value} | {detail} |"


def _control(item: tuple[str, bool]) -> str:
    return f"{item[0]} ({'caught' if item[1] else 'NOT caught'})"
