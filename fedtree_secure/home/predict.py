"""A delivered adapter used on a file of texts: labels with probabilities, or perplexities."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from fedtree_dp import per_sequence_loss
from fedtree_secure.client.files import read_rows
from fedtree_secure.errors import DataError, suggest
from fedtree_secure.model import metrics
from fedtree_secure.model.delivered import load_adapter, read_facts
from fedtree_secure.model.rows import tokenise_to

BATCH = 32
IGNORED = -100


@dataclass(frozen=True)
class Answer:
    """What the model says of one text.

    Attributes:
        answer: The label's name, or the text's perplexity.
        probability: Of the label; None for a language model.
    """

    answer: str
    probability: float | None


@dataclass(frozen=True)
class Answers:
    """What the model says of a file.

    Attributes:
        columns: The file's own, by name.
        answers: One for each row.
        metric: Where the file has labels that the model knows; else None.
        max_length: Tokens that texts were cut to, as in training.
    """

    columns: dict[str, list[Any]]
    answers: tuple[Answer, ...]
    metric: dict[str, Any] | None
    max_length: int

    def write(self, file: TextIO) -> None:
        """Write the file's rows as a CSV, with the answers behind them."""
        classifies = any(a.probability is not None for a in self.answers)
        added = ["predicted", "probability"] if classifies else ["perplexity"]
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*self.columns, *added])
        for row, answer in zip(zip(*self.columns.values(), strict=True), self.answers, strict=True):
            more = [] if answer.probability is None else [f"{answer.probability:.4f}"]
            writer.writerow([*row, answer.answer, *more])


def predict_file(
    adapter: Path, file: Path, *, text: str = "text", label: str = "", backbone: str | None = None
) -> Answers:
    """Answer every row of a file.

    Args:
        adapter: Folder of a delivered adapter.
        file: CSV, JSON, JSONL or Parquet.
        text: Name of the column with the texts.
        label: Name of the column with the true labels; empty for none.
        backbone: Where the backbone lies on this machine; where it lay during the run if None.

    Raises:
        BackboneError: There is no such adapter, or no such backbone.
        DataError: The file or a column of it cannot be used.
    """
    facts = read_facts(adapter)
    rows = read_rows(file, "predict")
    columns = {name: list(rows[name]) for name in rows.column_names}
    for name in (text, *([label] if label else [])):
        if name not in columns:
            raise DataError(f"{file} has no column {name!r}{suggest(name, columns)}")
    texts = columns[text]
    if not texts or not all(isinstance(value, str) and value.strip() for value in texts):
        raise DataError(f"{file}: every row needs a text in column {text!r}")
    model, tokenizer = load_adapter(adapter, backbone)
    causal, limit = facts["task"] == "causal-lm", int(facts["max_length"])
    tokens = tokenise_to(limit, texts, tokenizer, causal=causal)
    if causal:
        answers = tuple(
            Answer(f"{metrics.of_language_model(loss, 1)['value']:.3f}", None)
            for loss in _losses(model, tokenizer, tokens)
        )
        return Answers(columns, answers, None, limit)
    names = [str(name) for name in facts["labels"]]
    found = torch.cat(list(_probabilities(model, tokenizer, tokens)))
    best = found.argmax(dim=1).tolist()
    answers = tuple(Answer(names[at], float(row[at])) for at, row in zip(best, found, strict=True))
    metric = _metric(columns[label], best, names, file) if label else None
    return Answers(columns, answers, metric, limit)


def _metric(given: Sequence[Any], answered: list[int], names: list[str], file: Path) -> Any:
    known = {name: at for at, name in enumerate(names)}
    for at, value in enumerate(given):
        if str(value) not in known:
            raise DataError(
                f"{file}: row {at} has label {value!r}, which the adapter does not know; it knows "
                f"{', '.join(names)}"
            )
    return metrics.of_classifier([known[str(value)] for value in given], answered, len(names))


def _batches(tokenizer: Any, tokens: Sequence[Sequence[int]]) -> Iterator[dict[str, torch.Tensor]]:
    for at in range(0, len(tokens), BATCH):
        part = tokens[at : at + BATCH]
        width = max(map(len, part))
        ids = torch.full((len(part), width), int(tokenizer.pad_token_id))
        mask = torch.zeros((len(part), width), dtype=torch.int64)
        for row, own in enumerate(part):
            ids[row, : len(own)] = torch.tensor(own)
            mask[row, : len(own)] = 1
        yield {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def _probabilities(model: Any, tokenizer: Any, tokens: Any) -> Iterator[torch.Tensor]:
    for batch in _batches(tokenizer, tokens):
        yield model(**batch).logits.float().softmax(dim=-1)


@torch.no_grad()
def _losses(model: Any, tokenizer: Any, tokens: Any) -> Iterator[float]:
    """Mean negative log likelihood of each text's own next tokens."""
    for batch in _batches(tokenizer, tokens):
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        logits = model(**batch).logits.float()
        yield from per_sequence_loss(logits, labels, causal=True).tolist()
