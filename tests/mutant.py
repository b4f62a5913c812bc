"""One guard taken out: see `mutants.py`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    tests: str  # a pytest -k expression
    within: str  # the file of these tests, wherever it is
