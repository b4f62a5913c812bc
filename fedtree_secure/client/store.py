"""What a client must not forget: its counters, its values, and which charged results may have left.

Order of every stage that computes from private rows: `charge` (durable), compute, `release`
(durable), send. A crash between two of these steps can cost budget, never hide a cost. A charge
whose result was lost before it was written down has released nothing and is used again on
resumption. An update that was written down may be in a sum, and is never uploaded again
(secagg/SPEC.md, section 7); the vectors behind a sketch are, until the tree is accepted.
"""

from dataclasses import dataclass, field
from pathlib import Path

from fedtree_dp import Event, Ledger
from fedtree_secure.client.state import Belongings
from fedtree_secure.storage import read_json, write_json


@dataclass
class Journal:
    """What is written before anything leaves.

    Attributes:
        round, attempt: Highest counters answered; neither goes back.
        released: How often the result of a charged stage may have left, by stage name.
        finished: Stages whose result is kept at home.
        tree: The accepted tree's labels, or None.
        evidence: SHA-256 of the distances that the tree was computed from.
    """

    round: int = -1
    attempt: int = -1
    released: dict[str, int] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    tree: list[list[int]] | None = None
    evidence: str = ""


class Diary:
    """A client's journal and values on the disk, and its charges of one job.

    Args:
        folder: Where they are kept; what lies there is read.
        ledger: Of the client's data set, open.
        job_id: Name of the run in the ledger.
        initial: The values of a client that has none yet.

    Attributes:
        journal, values: Changed by the owner and kept by `save`.
    """

    def __init__(self, folder: Path, ledger: Ledger, job_id: str, initial: Belongings) -> None:
        self._folder, self._ledger, self._job_id = folder, ledger, job_id
        self.journal, self.values = Journal(), initial
        path = folder / "journal.json"
        if path.exists():
            stored = read_json(path)
            self.values = Belongings.load(folder / stored.pop("values"))
            self.journal = Journal(**stored)

    def save(self) -> None:
        """Values first, under a new name; then the journal that points to them. A crash leaves the
        old pair.
        """
        generation = max(
            (int(p.stem.split("-")[1]) for p in self._folder.glob("values-*.safetensors")),
            default=0,
        )
        values = self._folder / f"values-{generation + 1}.safetensors"
        self.values.save(values)
        write_json(self._folder / "journal.json", {**vars(self.journal), "values": values.name})
        for old in self._folder.glob("values-*.safetensors"):
            if old != values:
                old.unlink()

    def affords(self, stage: str, event: Event) -> bool:
        """Say whether `charge` would be accepted now."""
        return self._unreleased(stage) or self._ledger.affords(event)

    def charge(self, stage: str, event: Event) -> None:
        """Charge a stage before it computes anything, unless a charge for it is there that released
        nothing.

        Raises:
            BudgetExceeded: See `fedtree_dp.Ledger.charge`.
        """
        if not self._unreleased(stage):
            self._ledger.charge(event, job=self._job_id, purpose=stage)

    def release(self, stage: str) -> None:
        """Write down that the result of a charged stage may leave from now on, together with what
        stays.
        """
        self.journal.released[stage] = self.journal.released.get(stage, 0) + 1
        self.save()

    def _unreleased(self, stage: str) -> bool:
        """Whether a charge for this stage exists whose result cannot have left (it was lost in a
        crash).
        """
        charged = sum(
            entry.job == self._job_id and entry.purpose == stage for entry in self._ledger.entries()
        )
        return charged > self.journal.released.get(stage, 0)
