"""Writes the example's six CSV files: invented messages to three clinics, by how urgent they are.

    python examples/make_clinics.py

All text is put together from the phrases below by a seeded generator; no real person wrote or is in
any of it. Each clinic has words of its own, and all three sort by the same labels.
"""

import csv
import random
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "clinics"
TRAIN, TEST = 80, 40
LABELS = ("routine", "soon", "urgent")
WHEN = {
    "routine": ("at my next check-up", "whenever there is a free slot", "some time next month"),
    "soon": ("within a few days", "before the weekend", "since Monday, and it is not better"),
    "urgent": ("right now", "suddenly, an hour ago", "and it gets worse by the minute"),
}
CLINICS = {
    "heart": {
        "routine": ("renew my blood pressure tablets", "a copy of my last ECG", "check my pulse"),
        "soon": ("swollen ankles", "palpitations after the stairs", "dizzy when I stand up"),
        "urgent": ("crushing chest pain", "pain down my left arm", "I fainted and cannot breathe"),
    },
    "bones": {
        "routine": ("new insoles", "the exercises for my knee", "a date to take the screws out"),
        "soon": ("my cast feels too tight", "a stiff shoulder", "my hip hurts at night"),
        "urgent": (
            "the bone is through the skin",
            "my foot is cold and blue",
            "I cannot feel my leg",
        ),
    },
    "skin": {
        "routine": ("more of the hand cream", "a look at my moles", "advice on sun lotion"),
        "soon": ("an itching rash", "a mole that changed colour", "blisters on both hands"),
        "urgent": ("my face and tongue swell", "a burn over my whole arm", "hives and no air"),
    },
}
MORE = {  # two more clinics, for `make demo-flower`, which has five sites
    "eyes": {
        "routine": ("new reading glasses", "a copy of my prescription", "a test for driving"),
        "soon": ("itching eyes", "a sore eyelid for a week", "blurred letters when I read"),
        "urgent": ("flashes and a dark curtain", "bleach in my eye", "I suddenly see nothing"),
    },
    "lungs": {
        "routine": ("another inhaler", "advice to stop smoking", "my last breathing test"),
        "soon": ("a cough with green phlegm", "wheezing at night", "short breath on the stairs"),
        "urgent": ("I cannot finish a sentence", "coughing up blood", "my lips turn blue"),
    },
}
OPENINGS = ("Hello,", "Dear team,", "Please call me:", "A question:", "Good morning,")


def messages(clinic: str) -> list[tuple[str, str]]:
    """All messages of a clinic with their labels, each once, shuffled."""
    found = [
        (f"{opening} {what}, {when}.", label)
        for label in LABELS
        for opening in OPENINGS
        for what in {**CLINICS, **MORE}[clinic][label]
        for when in WHEN[label]
    ]
    random.Random(clinic).shuffle(found)  # noqa: S311 - public toy text
    return found


def write(folder: Path, clinics: Iterable[str]) -> None:
    """Write the files of some clinics; the same ones each time."""
    folder.mkdir(exist_ok=True)
    for clinic in clinics:
        rows = messages(clinic)
        parts = {"train": rows[:TRAIN], "test": rows[TRAIN : TRAIN + TEST]}
        for split, part in parts.items():
            with (folder / f"{clinic}-{split}.csv").open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(("text", "label"))
                writer.writerows(part)


def main() -> None:
    """Write the example's files."""
    write(FOLDER, CLINICS)


if __name__ == "__main__":
    main()
