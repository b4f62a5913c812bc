"""The README of a delivered adapter as a Hugging Face model card: front matter with a ``privacy:``
block, the page that was there, and what the privacy claim means.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from fedtree_secure.report.statement import ClientStatement, Statement

README = "README.md"
_FENCE = "---\n"
_TITLE = "## Privacy\n"
_TASKS = {"classification": "text-classification", "causal-lm": "text-generation"}


def write_model_card(folder: Path, statement: Statement, client: ClientStatement) -> Path:
    """Put front matter before the adapter's README and a section on privacy behind it.

    Args:
        folder: Of the adapter. What an earlier call put into its README is replaced.
        statement: Of the run.
        client: Whose adapter it is.
    """
    path = folder / README
    body = _body(path.read_text("utf-8")) if path.is_file() else "# Adapter\n"
    front = ModelCardData(**front_matter(statement, client)).to_yaml()
    text = f"{_FENCE}{front}\n{_FENCE}\n{body.strip()}\n\n{_privacy(statement, client)}"
    ModelCard(text).save(path)
    return path


def front_matter(statement: Statement, client: ClientStatement) -> dict[str, Any]:
    """Return the card's metadata: what the hub reads, and the privacy claim for machines."""
    return {
        "library_name": "peft",
        "base_model": statement.job["backbone"],
        "pipeline_tag": _TASKS[statement.job["task"]],
        "tags": ["lora", "differential-privacy", "federated-learning", "fedtree-secure"],
        "privacy": {
            "definition": "(epsilon, delta)-differential privacy",
            "unit": statement.guarantee["unit"],
            "adjacency": statement.guarantee["adjacency"],
            "epsilon": client.epsilon,
            "epsilon_without_amplification": client.epsilon_without_amplification,
            "delta": client.delta,
            "budget_epsilon": client.allowed,
            "accountant": statement.guarantee["accountant"],
            "sampling": statement.guarantee["sampling"],
            "releases": [dict(release) for release in client.releases],
            f"declared_{statement.counted}s": client.records,
            **_conditional(statement, client),
            "simulated": statement.simulated,
            "run": statement.run,
            "model_sha256": statement.model_sha256,
        },
    }


def _conditional(statement: Statement, client: ClientStatement) -> dict[str, Any]:
    """What epsilon assumes of others, where it assumes anything."""
    if statement.shared is None:
        return {}
    return {
        "condition": statement.shared["condition"],
        "own_epsilon": client.own_epsilon,
        "honest_others": [dict(row) for row in client.honest_others],
    }


def _body(text: str) -> str:
    """The page without what `write_model_card` adds."""
    if text.startswith(_FENCE) and (end := text.find(f"\n{_FENCE}", len(_FENCE))) > 0:
        text = text[end + 1 + len(_FENCE) :]
    return text.partition(f"\n{_TITLE}")[0]


def _privacy(statement: Statement, client: ClientStatement) -> str:
    simulated = (
        "\nThis run is a simulation: its ledger began empty and says nothing of what was spent on "
        "the data set elsewhere.\n"
        if statement.simulated
        else ""
    )
    if statement.shared is not None:
        simulated = (
            f"\nThis ε is conditional: it holds while {statement.shared['condition']}. Whatever "
            f"all others do, ε is at most {client.own_epsilon or client.epsilon:.4f}.\n{simulated}"
        )
    what = statement.unit or "row"
    return f"""{_TITLE}
Trained with differential privacy: ε = {client.epsilon:.4f} at δ = {client.delta:g}, of a budget of
{client.allowed:g}, for {statement.guarantee["unit"]} ({statement.guarantee["adjacency"]}).
It counts all jobs on the client's data set up to this one.
{simulated}
The claim bounds what one {what} changes. It does not hide what is true of all rows together, and it
does not cover test metrics, which are exact. `report.html` of the run shows the budget, the audits
and the limits; `fedtree-secure verify` checks the run's signatures.
"""
