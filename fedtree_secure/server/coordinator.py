"""The server of a job. It sees public settings, distances, masked vectors and the sums it opens;
nothing else.

It holds the experts of the nodes: one vector per group of clients. After each round it moves them
by the mean change of the group's survivors, and writes down its state, so that an interrupted run
goes on with the next round.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from fedtree_secagg import ProtocolError, Roster, SecAggError, sketch
from fedtree_secagg import server as masking
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.round_plan import (
    MERGE,
    compute_tree,
    evidence_of,
    fixed_tree,
    node_name,
    plan_of_round,
    sketch_context,
)
from fedtree_secure.agreed.transport import Transport
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.client.training import largest_change
from fedtree_secure.config import Job
from fedtree_secure.errors import RunStopped
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.storage import read_json, write_atomically, write_json

log = logging.getLogger("fedtree_secure.server.coordinator")
Floats = np.ndarray[Any, np.dtype[np.float32]]
S = TypeVar("S")


@dataclass
class RoundRecord:
    """What became of one round.

    Attributes:
        opened: Survivors of each opened node, by node name.
        closed: Nodes that were not opened.
        error: Why nothing was opened, if so.
    """

    round: int
    opened: dict[str, list[str]] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)
    error: str = ""


class Coordinator:
    """Runs a job over a transport.

    Args: job, roster: The public configuration and the pinned keys of all clients. backbone: Used
        for its digest, layout and initial experts only; no private text ever reaches it here.
        transport: Carries bytes. folder: Where the server's state is kept. stop: Asked between
        rounds; True ends the run in good order. on_round: Called after each round with its record.
    """

    def __init__(
        self,
        job: Job,
        roster: Roster,
        backbone: Backbone,
        transport: Transport,
        folder: Path,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_round: Callable[[RoundRecord], None] = lambda _: None,
    ) -> None:
        self.job, self.roster, self.backbone, self.transport, self.folder = (
            job,
            roster,
            backbone,
            transport,
            folder,
        )
        self.layout = backbone.layout()
        self.names = tuple(sorted(roster.names))
        self._stop, self._on_round = stop, on_round
        self.facts: dict[str, wire.Joined] = {}
        self.records: list[RoundRecord] = []
        self.failures: list[
            dict[str, str]
        ] = []  # filled in by who runs transport and server in one process
        self.tree: Tree | None = None
        self._announced: wire.Distances | None = None
        self._values: dict[tuple[str, ...], torch.nn.Parameter] = {}
        self._adam: torch.optim.Adam | None = None
        self._state: dict[str, Any] = {"starts": 0, "finished_round": -1}
        self._load()

    def run(self) -> None:
        """Run every stage that is not finished yet.

        Raises: RunStopped: Asked to stop, or no client is left; the state on disk is that after the
            last finished round.
        """
        self._state["starts"] += 1
        self._save()
        self._join()
        if self.tree is None:
            self._find_tree()
        self._exchange("prepare", dict.fromkeys(self.names, wire.Prepare()))
        first = MERGE if self.job.topology.source == "lora_b" and self.job.rounds else 1
        for number in range(max(first, self._state["finished_round"] + 1), self.job.rounds + 1):
            if self._stop():
                raise RunStopped(f"stopped after round {number - 1} of {self.job.rounds}, as asked")
            self._round(number)
        self._exchange(
            "finish", {name: wire.Finish(*self._experts_for(name)) for name in self.names}
        )

    # --- before the first round -------------------------------------------------------------------

    def _join(self) -> None:
        request = wire.Join(self.job.digest(), self.roster.hash)
        replies = self._exchange("join", dict.fromkeys(self.names, request))
        self.facts = {
            name: reply for name, reply in replies.items() if isinstance(reply, wire.Joined)
        }
        if len(self.facts) < self.job.masking.min_group:
            raise RunStopped(
                f"{len(self.facts)} of {len(self.names)} clients joined; at least min_group = "
                f"{self.job.masking.min_group} are needed, or nothing may be summed"
            )
        heads = {fact.outputs for fact in self.facts.values()}
        if self.job.head == "shared" and len(heads) > 1:
            raise RunStopped(
                f"the shared head needs one label set; the clients have heads of {sorted(heads)} "
                "outputs"
            )

    def _find_tree(self) -> None:
        if fixed := fixed_tree(self.job, self.names, self.backbone.experts.depth):
            self._adopt(fixed)
            return
        if self._announced is None:
            try:
                members, squared = self._distances()
            except SecAggError as error:
                raise RunStopped(f"no distances, and so no tree: {error}") from error
            noise = tuple(self._noise_energy(name) for name in members)
            draft = wire.Distances(members, noise, squared.astype("<f8").tobytes(), ())
            tree = self._computed(draft)
            # Kept before anyone hears of it: a client holds to the first tree that it accepts, and
            # sketches of another attempt can give another one.
            self._announced = wire.Distances(members, noise, draft.squared, tree.labels)
            self._save()
        accepted = self._exchange("tree", dict.fromkeys(self.names, self._announced))
        refused = [name for name, reply in accepted.items() if isinstance(reply, wire.Refused)]
        if refused:
            raise RunStopped(
                f"the tree was refused by {', '.join(refused)}: they computed another one"
            )
        self._adopt(self._computed(self._announced))

    def _computed(self, distances: wire.Distances) -> Tree:
        evidence = evidence_of(distances, self.job, self.backbone)
        return compute_tree(self.names, evidence, self.job, distances.members)

    def _distances(self) -> tuple[tuple[str, ...], "np.ndarray[Any, np.dtype[np.float64]]"]:
        attempt = self._state["starts"]
        context = sketch_context(self.job, self.backbone.digest, attempt)
        sketching: dict[str, Any] = {
            "roster": self.roster,
            "members": self.names,
            "context": context,
        }
        hello = wire.SketchHello(self.names, attempt)
        hellos = _payloads(self._exchange("sketch-hello", dict.fromkeys(self.names, hello)))
        broadcast = _accepted(
            "sketch-hello", lambda given: sketch.collect(hellos=given, **sketching), hellos
        )
        asked = {name: wire.SketchSeal(data) for name, data in broadcast.items()}
        sealed = _payloads(self._exchange("sketch-seal", asked))
        everyone = next(iter(broadcast.values()))
        routed = sketch.route(hellos=everyone, sealed=sealed, **sketching)
        asked_send = {
            name: wire.SketchSend(data) for name, data in routed.items() if name in sealed
        }
        sketches = _payloads(self._exchange("sketch", asked_send))
        found = _accepted(
            "sketch", lambda given: sketch.distances(given, hellos=everyone, **sketching), sketches
        )
        if len(found[0]) < self.job.masking.min_group:
            raise RunStopped(
                f"{len(found[0])} clients sent a sketch; min_group is {self.job.masking.min_group}"
            )
        return found

    def _noise_energy(self, name: str) -> float:
        fact = self.facts[name]
        return self.backbone.hidden_size * (fact.fingerprint_noise / fact.records) ** 2

    def _adopt(self, tree: Tree) -> None:
        self.tree = tree
        self._make_values()
        self._save()

    def _make_values(self) -> None:
        initial = self._initial()
        for group, ranges in self._require_tree().nodes(self.layout.parts).items():
            values = np.concatenate([initial[start:stop] for start, stop in ranges])
            self._values[group] = torch.nn.Parameter(torch.from_numpy(values))
        if self._values:
            self._adam = torch.optim.Adam(self._values.values(), lr=self.job.training.learning_rate)

    def _initial(self) -> Floats:
        """A fresh copy of the public initial expert, a shared head starting at zero."""
        initial = np.zeros(self.layout.length, dtype=np.float32)
        initial[: len(self.backbone.initial_expert)] = self.backbone.initial_expert
        return initial

    # --- a round ----------------------------------------------------------------------------------

    def _round(self, number: int) -> None:
        assert self.tree is not None
        record = RoundRecord(number)
        cohort = {name for group in self._values for name in group}
        outside = {
            name: wire.Alone(number, *self._experts_for(name))
            for name in self.names
            if name not in cohort
        }
        if outside and number != MERGE:
            self._exchange(f"round-{number}/alone", outside)
        if cohort:
            try:
                self._apply(self._summed(number, record), number)
            except (
                SecAggError
            ) as error:  # fail closed: nothing was opened, the ledgers keep the charge
                record.error = f"{type(error).__name__}: {error}"
                log.warning("round %d opened nothing: %s", number, record.error)
        self.records.append(record)
        self._state["finished_round"] = number
        self._save()
        self._on_round(record)

    def _summed(self, number: int, record: RoundRecord) -> dict[tuple[str, ...], Floats]:
        """Run the masking protocol once; return the mean change of each opened node."""
        clip, attempt = self._clip(merge=number == MERGE), self._state["starts"]
        plan = plan_of_round(
            self.job,
            self._require_tree(),
            self.layout,
            self.backbone.digest,
            self._evidence(),
            clip,
            merge=number == MERGE,
        )
        begun = masking.begin(self.roster, plan, round=number, attempt=attempt)
        asked: Mapping[str, Any] = {
            name: wire.Begin(number, attempt, number == MERGE, clip, *self._experts_for(name))
            for name in plan.cohort
        }
        step = _Steps(self, number)
        gathered, out = step("advertise", asked, masking.collect_adverts, begun)
        routed, out = step("share", _wrap(wire.Share, out), masking.route_shares, gathered)
        summed, out = step("mask", _wrap(wire.Mask, out), masking.collect_masked, routed)
        agreed, out = step("confirm", _wrap(wire.Confirm, out), masking.collect_votes, summed)
        sums = step("reveal", _wrap(wire.Reveal, out), masking.open_sums, agreed)
        groups = {node_name(group): group for group in self._values}
        record.opened = {name: list(node.members_summed) for name, node in sums.items()}
        record.closed = sorted(set(groups) - set(sums))
        return {groups[name]: node.mean().astype(np.float32) for name, node in sums.items()}

    def _apply(self, means: Mapping[tuple[str, ...], Floats], number: int) -> None:
        """Move the experts of the opened nodes; those that stayed closed keep their values."""
        by_gradient = self.job.training.local_steps == 1 and number != MERGE
        for group, value in self._values.items():
            value.grad = None
            if group in means:
                change = torch.from_numpy(means[group])
                if by_gradient:
                    value.grad = -change
                else:
                    value.data += change
        if by_gradient and self._adam is not None:
            self._adam.step()

    def _experts_for(self, name: str) -> tuple[bytes, bytes]:
        """A client's cluster and external expert: external is the mean over the members of other
        released clusters.
        """
        tree = self._require_tree()
        cluster, external = self._initial(), self._initial()
        for part, (start, stop) in enumerate(self.layout.parts):
            own, others = tree.group_of(name, part), tree.externals_of(name, part)
            if own is not None:
                cluster[start:stop] = self._part(own, start, stop)
            if others:
                weighted = [len(group) * self._part(group, start, stop) for group in others]
                external[start:stop] = np.sum(weighted, axis=0) / sum(map(len, others))
        return wire.pack(cluster), wire.pack(external)

    def _part(self, group: tuple[str, ...], start: int, stop: int) -> Floats:
        at = 0
        for first, last in self._require_tree().nodes(self.layout.parts)[group]:
            if first <= start and stop <= last:
                values: Floats = (
                    self._values[group].detach().numpy()[at + start - first : at + stop - first]
                )
                return values
            at += last - first
        raise AssertionError(f"part {start}:{stop} is not of {group}")

    def _clip(self, *, merge: bool) -> float:
        return max(
            largest_change(self.job, fact.noise_multiplier, fact.records, merge=merge)
            for fact in self.facts.values()
        )

    def _evidence(self) -> str:
        return "" if self._announced is None else wire.digest(self._announced)

    def _require_tree(self) -> Tree:
        if self.tree is None:
            raise AssertionError("there is no tree yet")
        return self.tree

    # --- exchanges and state ----------------------------------------------------------------------

    def _exchange(self, stage: str, requests: Mapping[str, wire.Message]) -> dict[str, wire.Reply]:
        """Send requests, decode replies; a reply that does not decode counts as none."""
        replies: dict[str, wire.Reply] = {}
        answered = self.transport.exchange(
            stage, {name: wire.encode(m) for name, m in requests.items()}
        )
        for name, data in answered.items():
            try:
                replies[name] = wire.decode_reply(data)
            except wire.WireError as error:
                log.warning("client %s sent no valid reply at stage %s: %s", name, stage, error)
        if requests and not replies:
            raise RunStopped(f"no client answered at stage {stage}")
        return replies

    def _save(self) -> None:
        state = dict(self._state)
        state["records"] = [vars(record) for record in self.records]
        state["announced"] = None if self._announced is None else wire.encode(self._announced).hex()
        if self.tree is not None:
            state["labels"] = [list(row) for row in self.tree.labels]
        tensors: dict[str, Any] = {}
        for group, value in self._values.items():
            tensors[f"{node_name(group)}/value"] = value.detach().numpy().copy()
            if self._adam is not None and (moments := self._adam.state.get(value)):
                tensors |= {
                    f"{node_name(group)}/{key}": moment.numpy().reshape(-1)
                    for key, moment in moments.items()
                }
        state["values"] = f"values-{state['starts']}-{state['finished_round']}.safetensors"
        write_atomically(self.folder / state["values"], lambda target: save_file(tensors, target))
        write_json(self.folder / "state.json", state)
        for old in self.folder.glob("values-*.safetensors"):
            if old.name != state["values"]:
                old.unlink()

    def _load(self) -> None:
        if not (self.folder / "state.json").exists():
            return
        self._state = read_json(self.folder / "state.json")
        tensors = load_file(self.folder / self._state.pop("values"))
        self.records = [RoundRecord(**record) for record in self._state.pop("records")]
        labels, announced = self._state.pop("labels", None), self._state.pop("announced", None)
        decoded = None if announced is None else wire.decode_request(bytes.fromhex(announced))
        self._announced = decoded if isinstance(decoded, wire.Distances) else None
        if labels is None:
            return
        self.tree = Tree(
            self.names, tuple(tuple(row) for row in labels), self.job.masking.min_group
        )
        self._make_values()
        for group, value in self._values.items():
            value.data = torch.from_numpy(tensors[f"{node_name(group)}/value"])
            if self._adam is not None and f"{node_name(group)}/step" in tensors:
                self._adam.state[value] = {
                    "step": torch.tensor(float(tensors[f"{node_name(group)}/step"][0])),
                    "exp_avg": torch.from_numpy(tensors[f"{node_name(group)}/exp_avg"]),
                    "exp_avg_sq": torch.from_numpy(tensors[f"{node_name(group)}/exp_avg_sq"]),
                }


class _Steps:
    """One exchange and one protocol step after it; messages that a step refuses are dropped, with
    who sent them.
    """

    def __init__(self, coordinator: Coordinator, number: int) -> None:
        self._coordinator, self._number = coordinator, number

    def __call__(
        self,
        stage: str,
        requests: Mapping[str, wire.Message],
        step: Callable[[Any, Any], S],
        state: Any,
    ) -> S:
        replies = self._coordinator._exchange(f"round-{self._number}/{stage}", requests)
        return _accepted(
            f"round {self._number}, {stage}",
            lambda incoming: step(state, incoming),
            _payloads(replies),
        )


def _accepted(what: str, step: Callable[[dict[str, bytes]], S], incoming: dict[str, bytes]) -> S:
    """Do a protocol step with what it accepts of the messages."""
    while True:
        try:
            return step(incoming)
        except ProtocolError as error:
            refused = error.sender
            if refused not in incoming:
                raise
            log.warning("%s: message of %s refused: %s", what, refused, error)
            incoming = {name: data for name, data in incoming.items() if name != refused}


def _payloads(replies: Mapping[str, wire.Reply]) -> dict[str, bytes]:
    return {
        name: reply.payload for name, reply in replies.items() if isinstance(reply, wire.Protocol)
    }


def _wrap(
    kind: Callable[[bytes], wire.Message], messages: Mapping[str, bytes]
) -> dict[str, wire.Message]:
    return {name: kind(data) for name, data in messages.items()}
