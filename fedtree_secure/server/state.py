"""What a server must not forget: written after each round, read when it starts again.

Nothing of a client is in it but what the server may see: distances, the tree, opened sums. The
files are its own; a server that loses them can cost budget, never privacy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.messages import Change, OpenedSum, ProposeTree
from fedtree_secure.agreed.moves import NodeValues
from fedtree_secure.errors import RunFolderError
from fedtree_secure.storage import (
    PRIVATE_FILE,
    private_folder,
    read_json,
    write_atomically,
    write_json,
)

FORMAT = 4


@dataclass
class Adopted:
    """A change of the cohort that a quorum signed.

    Attributes:
        change: The change.
        votes: Signatures over it, by name.
        first_round: The round before which it was adopted.
    """

    change: Change
    votes: dict[str, bytes]
    first_round: int


@dataclass
class RoundRecord:
    """What became of one round.

    Attributes:
        round: Its number.
        opened: Survivors of each opened node, by node name.
        closed: Nodes that were not opened.
        error: Why nothing was opened, if so.
    """

    round: int
    opened: dict[str, list[str]] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)
    error: str = ""


@dataclass
class ServerState:
    """Progress of a run.

    Attributes:
        starts: How often the server has started.
        finished_round: Last round that is over, -1 if none.
        clips: Clip by kind of round (``round``, ``merge``), fixed when the tree is.
        answered: Number of the last request that each client answered.
        records: One for each round.
        distances: Of fingerprints, where the tree waits for those of gradients; else None.
        proposal: The proposed tree; never another one once clients may have signed it.
        labels: Labels of the first tree, or None.
        votes: Signatures over the proposal, by name.
        changes: Changes of the cohort since, in order (`server.cohort`).
        change, change_votes: The next one, once clients may have signed it, and who did.
        gone: Who left, with its signature in hexadecimal; empty where it was declared gone.
        missed: Rounds that each member missed in a row.
        late_sketches, sketch_attempt: How many sketches late clients took, and the last attempt.
        tried: Who waited at the last of them.
        labels: Labels of the tree that is in force, or None.
        ceremonies: How many draws of a sparse graph were begun, by the tree they are for.
        beacons: What drew it, by the same, in hexadecimal.
    """

    starts: int = 0
    finished_round: int = -1
    clips: dict[str, float] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)
    records: list[RoundRecord] = field(default_factory=list)
    distances: ProposeTree | None = None
    proposal: ProposeTree | None = None
    labels: tuple[tuple[int, ...], ...] | None = None
    votes: dict[str, bytes] = field(default_factory=dict)
    changes: list[Adopted] = field(default_factory=list)
    change: Change | None = None
    change_votes: dict[str, bytes] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    late_sketches: int = 0
    sketch_attempt: int = 0
    tried: list[str] = field(default_factory=list)
    ceremonies: dict[str, int] = field(default_factory=dict)
    beacons: dict[str, str] = field(default_factory=dict)


class StateFolder:
    """Where a server's state is kept.

    Args:
        path: Made when missing, 0700.
    """

    def __init__(self, path: Path) -> None:
        self.path = private_folder(path)

    def load(self) -> ServerState:
        """Return the state that the last start left; a new one if there is none.

        Raises:
            RunFolderError: The files are damaged, or another version's.
        """
        if not (self.path / "state.json").exists():
            return ServerState()
        stored = read_json(self.path / "state.json")
        try:
            if stored.pop("format") != FORMAT:
                raise RunFolderError(
                    f"{self.path}: another version wrote this server's state; begin a new run"
                )
            distances, proposal = (_read(stored.pop(k)) for k in ("distances", "proposal"))
            labels = stored.pop("labels")
            records = [RoundRecord(**record) for record in stored.pop("records")]
            rows = None if labels is None else tuple(tuple(map(int, row)) for row in labels)
            stored |= _read_cohort(stored)
            return ServerState(
                **stored, records=records, distances=distances, proposal=proposal, labels=rows
            )
        except (KeyError, TypeError, ValueError, AttributeError, wire.WireError) as error:
            raise RunFolderError(f"{self.path / 'state.json'} is damaged: {error}") from None

    def load_values(self, finished: int) -> tuple[dict[str, NodeValues], list[OpenedSum]]:
        """Return the nodes' values after a round, and all sums opened until then."""
        path = self._values(finished)
        try:
            tensors = load_file(path)
            names = sorted({key.split("/")[0] for key in tensors})
            values = {name: _node_values(tensors, name) for name in names}
            opened: list[OpenedSum] = []
            for number in range(finished + 1):
                if (file := self._sums(number)).exists():
                    opened += _read_sums(number, load_file(file))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise RunFolderError(f"{path} or the sums beside it are damaged: {error}") from None
        return values, opened

    def save_round(
        self, state: ServerState, values: dict[str, NodeValues], opened: Sequence[OpenedSum]
    ) -> None:
        """Write the values after a round and its sums, then the state that points to them."""
        tensors: dict[str, np.ndarray[Any, Any]] = {}
        for name, node in values.items():
            tensors |= {
                f"{name}/values": node.values,
                f"{name}/first": node.first,
                f"{name}/second": node.second,
                f"{name}/steps": np.array([node.steps]),
            }
        number = state.finished_round
        self._write(self._values(number), tensors)
        if sums := [entry for entry in opened if entry.round == number]:
            self._write(self._sums(number), _sum_tensors(sums))
        self.save(state)
        for old in self.path.glob("values-*.safetensors"):
            if old != self._values(number):
                old.unlink()

    def save(self, state: ServerState) -> None:
        """Write the state."""
        stored = {
            "format": FORMAT,
            "starts": state.starts,
            "finished_round": state.finished_round,
            "clips": state.clips,
            "answered": state.answered,
            "records": [vars(record) for record in state.records],
            "distances": _written(state.distances),
            "proposal": _written(state.proposal),
            "labels": state.labels,
            "votes": _hex(state.votes),
            "changes": [
                [_written_change(a.change), _hex(a.votes), a.first_round] for a in state.changes
            ],
            "change": None if state.change is None else _written_change(state.change),
            "change_votes": _hex(state.change_votes),
            "gone": state.gone,
            "missed": state.missed,
            "late_sketches": state.late_sketches,
            "sketch_attempt": state.sketch_attempt,
            "tried": state.tried,
            "ceremonies": state.ceremonies,
            "beacons": state.beacons,
        }
        write_json(self.path / "state.json", stored, PRIVATE_FILE)

    def _values(self, number: int) -> Path:
        return self.path / f"values-{number}.safetensors"

    def _sums(self, number: int) -> Path:
        return self.path / f"sums-{number}.safetensors"

    @staticmethod
    def _write(path: Path, tensors: dict[str, "np.ndarray[Any, Any]"]) -> None:
        write_atomically(path, lambda target: save_file(tensors, target), PRIVATE_FILE)


def _written(proposal: ProposeTree | None) -> str | None:
    return None if proposal is None else wire.encode(proposal).hex()


def _read(stored: str | None) -> ProposeTree | None:
    if stored is None:
        return None
    found = wire.decode_request(bytes.fromhex(stored))
    if not isinstance(found, ProposeTree):
        raise ValueError("no proposal")
    return found


def _hex(votes: dict[str, bytes]) -> dict[str, str]:
    return {name: signature.hex() for name, signature in votes.items()}


def _unhex(votes: dict[str, str]) -> dict[str, bytes]:
    return {name: bytes.fromhex(signature) for name, signature in votes.items()}


def _written_change(change: Change) -> str:
    return wire.encode(wire.ProposeChange(change)).hex()


def _read_change(stored: str) -> Change:
    found = wire.decode_request(bytes.fromhex(stored))
    if not isinstance(found, wire.ProposeChange):
        raise ValueError("no change")
    return found.change


def _read_cohort(stored: dict[str, Any]) -> dict[str, Any]:
    changes = [Adopted(_read_change(c), _unhex(v), int(n)) for c, v, n in stored["changes"]]
    pending = stored["change"]
    return {
        "votes": _unhex(stored["votes"]),
        "changes": changes,
        "change": None if pending is None else _read_change(pending),
        "change_votes": _unhex(stored["change_votes"]),
    }


def _node_values(tensors: dict[str, Any], name: str) -> NodeValues:
    return NodeValues(
        tensors[f"{name}/values"],
        tensors[f"{name}/first"],
        tensors[f"{name}/second"],
        int(tensors[f"{name}/steps"][0]),
    )


def _sum_tensors(sums: Sequence[OpenedSum]) -> dict[str, "np.ndarray[Any, Any]"]:
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for entry in sums:
        tensors[f"{entry.node}/total"] = np.frombuffer(entry.total, dtype="<i4").copy()
        tensors[f"{entry.node}/survivors"] = np.array([entry.survivors])
        tensors[f"{entry.node}/clip"] = np.array([entry.clip])
        tensors[f"{entry.node}/era"] = np.array([entry.era])
    return tensors


def _read_sums(number: int, tensors: dict[str, Any]) -> list[OpenedSum]:
    return [
        OpenedSum(
            number,
            name,
            int(tensors[f"{name}/survivors"][0]),
            float(tensors[f"{name}/clip"][0]),
            np.ascontiguousarray(tensors[f"{name}/total"], dtype="<i4").tobytes(),
            int(tensors[f"{name}/era"][0]),
        )
        for name in sorted({key.split("/")[0] for key in tensors})
    ]
