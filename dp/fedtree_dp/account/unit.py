"""What one privacy claim protects, where that is more than a record: a patient, a customer.

A unit is everything that belongs to one value of a column. Neighbouring data sets differ by one
whole unit; of each unit a mechanism takes `at_most` records, so what a unit moves is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtree_dp import checks

RECORD = "one record (one training example) of one client"
RECORD_NEIGHBOURS = "add or remove one record"


@dataclass(frozen=True, slots=True)
class PrivacyUnit:
    """A unit of protection that holds several records.

    Attributes:
        name: of the column that names each record's unit, such as "patient_id"; printable.
        at_most: records of one unit that a mechanism takes, at least 1; of a unit with more, others
            are left out.

    Raises:
        ConfigurationError: a value outside these ranges.

    >>> PrivacyUnit("patient_id", 20).neighbours
    'add or remove one patient_id (at most 20 records)'
    """

    name: str
    at_most: int

    def __post_init__(self) -> None:
        checks.label("unit", self.name)
        checks.count("max_per_unit", self.at_most, at_most=1_000_000)

    @property
    def text(self) -> str:
        """What is protected."""
        return f"one {self.name} (all its records, of which at most {self.at_most}) of one client"

    @property
    def neighbours(self) -> str:
        """The neighbouring relation."""
        return f"add or remove one {self.name} (at most {self.at_most} records)"

    def to_dict(self) -> dict[str, str | int]:
        """Return `{"at_most": ..., "name": ...}`."""
        return {"at_most": self.at_most, "name": self.name}


def text_of(unit: PrivacyUnit | None) -> str:
    """Return what is protected: a unit, or a record where none is named."""
    return RECORD if unit is None else unit.text


def name_of(unit: PrivacyUnit | None) -> str:
    """Return what is counted: the unit's name, or "record"."""
    return "record" if unit is None else unit.name
