"""Masking and the ledger in a Flower app of your own: a mod for its ClientApp, a strategy for its
ServerApp.

    python examples/flower_blocks.py FOLDER

`Masked` charges a site's ledger before the app computes, and sends what the app returns under
masks; `MaskedMean` opens the sum and no more. The app itself stays an ordinary one, `train` below,
and must do what makes an upload private: clip each record and add noise, as much as it is charged
for. Five exchanges make a round, all of them Flower's "train" messages.

A mod keeps a round's keys in memory, where they belong. So it needs a process that lives longer
than a message: a node of one's own, such as `fedtree_secure.flower.fleet` has. A stock SuperNode
starts a new process for each message and cannot run it. The run here is in one process.
"""

import argparse
import hashlib
import logging
import secrets
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import FedAvg

from fedtree_dp import Event, Gaussian, Ledger, NoiseSource, PrivacyBudget, gaussian_mean
from fedtree_secagg import Identity, Node, Plan, Quantiser, Roster, client, server
from fedtree_secagg.journal import Journal

log = logging.getLogger("flower_blocks")
WIDTH, RECORDS, CLIP, SIGMA, ROUNDS, STEP = 3, 200, 1.0, 6.0, 8, 2.0
NAMES = ("ann", "bob", "cyd", "dot", "eve")
BUDGET = PrivacyBudget(epsilon=4, delta=1e-4)


# --- the blocks ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pinned:
    """What all parties agreed on before the first message."""

    roster: Roster
    plan: Plan


class Masked:
    """A mod: charges, lets the app compute, and uploads its arrays under masks.

    Args:
        name: Of this site, as the roster has it.
        identity: Its signing key.
        pinned: Its own copy of what was agreed on.
        ledger: Of its data set.
        event: What the app's arrays of one round cost.
        journal: So that a restarted site never answers twice.
    """

    def __init__(
        self,
        name: str,
        identity: Identity,
        pinned: Pinned,
        ledger: Ledger,
        event: Event,
        journal: Journal,
    ) -> None:
        self._name, self._identity, self._pinned = name, identity, pinned
        self._ledger, self._event, self._journal = ledger, event, journal
        self._state: Any = None  # its class is the stage; a step that does not fit is refused

    def __call__(
        self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        """Answer one exchange. What goes wrong is a reply without a word: Flower would send an
        error's text to the server, and that may quote rows.
        """
        try:
            out = self._answer(message, context, call_next)
        except Exception as error:
            log.warning("%s does not answer: %s", self._name, type(error).__name__)
            out = b""
        told = ConfigRecord({"name": self._name, "data": out})
        return Message(RecordDict({"masking": told}), reply_to=message)

    def _answer(
        self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> bytes:
        asked = message.content.config_records["masking"]
        stage, number, data = str(asked["stage"]), int(asked["round"]), bytes(asked["data"])
        fresh = secrets.token_bytes(32)
        if stage == "advertise":
            attempt = self._journal.begin(number, 0)
            roster, plan = self._pinned.roster, self._pinned.plan
            self._state, out = client.advertise(
                self._identity,
                self._name,
                roster,
                plan,
                round=number,
                attempt=attempt,
                randomness=fresh,
            )
            self._journal.record("advertised")
        elif stage == "share":
            self._state, out = client.share(self._state, data, randomness=fresh)
            self._journal.record("shared")
        elif stage == "mask":
            opened = client.receive(self._state, data)  # nothing that was sent is left to refuse
            self._ledger.charge(self._event, job="flower-blocks", purpose=f"round {number}")
            (arrays,) = call_next(message, context).content.array_records.values()
            update = np.concatenate([a.ravel() for a in arrays.to_numpy_ndarrays()])
            self._journal.record("masked", update=hashlib.sha256(update.tobytes()).digest())
            self._state, out = client.upload(opened, update, randomness=fresh)
        elif stage == "confirm":
            self._state, out = client.confirm(self._state, data)
            self._journal.record("confirmed")
        else:
            out = client.reveal(self._state, data)
            self._journal.record("revealed")
        return out


class MaskedMean(FedAvg):
    """A strategy: gradient descent on the mean of the sites' arrays, of which it sees sums alone.

    Args:
        pinned: What was agreed on.
        step: How far to go.
    """

    def __init__(self, pinned: Pinned, step: float) -> None:
        super().__init__(fraction_evaluate=0.0)
        self._pinned, self._step, self._names = pinned, step, dict[int, str]()

    def configure_train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,  # noqa: ARG002 - Flower's signature
        grid: Grid,
    ) -> Iterable[Message]:
        """Run the exchanges before the upload; return the messages that ask for it."""
        self._grid, self._round, self._arrays = grid, server_round, arrays
        state: Any = server.begin(
            self._pinned.roster, self._pinned.plan, round=server_round, attempt=0
        )
        told = self._exchange("advertise", dict.fromkeys(grid.get_node_ids(), b""))
        state, adverts = server.collect_adverts(state, told)
        told = self._exchange("share", self._by_node(adverts))
        self._routed, inboxes = server.route_shares(state, told)
        return self._messages("mask", self._by_node(inboxes), {"arrays": arrays})

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002 - Flower's signature
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, None]:
        """Open the sum of the uploads that came, and move by their mean."""
        state, survivors = server.collect_masked(self._routed, self._read(replies))
        told = self._exchange("confirm", self._by_node(survivors))
        state, votes = server.collect_votes(state, told)
        told = self._exchange("reveal", self._by_node(votes))
        (found,) = server.open_sums(state, told).values()
        mean = found.values() / len(found.members_summed)
        (weights,) = self._arrays.to_numpy_ndarrays()
        return ArrayRecord([weights - self._step * mean]), None

    def _exchange(self, stage: str, data: Mapping[int, bytes]) -> dict[str, bytes]:
        return self._read(self._grid.send_and_receive(self._messages(stage, data), timeout=60))

    def _messages(
        self, stage: str, data: Mapping[int, bytes], more: Mapping[str, Any] | None = None
    ) -> list[Message]:
        found = []
        for node, given in data.items():
            asked = ConfigRecord({"stage": stage, "round": self._round, "data": given})
            content = RecordDict({"masking": asked, **(more or {})})
            found.append(Message(content, dst_node_id=node, message_type=MessageType.TRAIN))
        return found

    def _read(self, replies: Iterable[Message]) -> dict[str, bytes]:
        """What sites answered. A node that takes another's name is refused: it cannot sign."""
        found = {}
        for reply in replies:
            if reply.has_error():
                continue
            told = reply.content.config_records["masking"]
            if told["data"]:
                found[str(told["name"])] = bytes(told["data"])
                self._names[reply.metadata.src_node_id] = str(told["name"])
        return found

    def _by_node(self, data: Mapping[str, bytes]) -> dict[int, bytes]:
        return {node: data[name] for node, name in self._names.items() if name in data}


# --- an ordinary app, and a run of it in one process --------------------------------------------


def client_app(mod: Masked, rows: tuple[np.ndarray, np.ndarray]) -> ClientApp:
    """An app that returns a clipped, noised gradient of least squares."""
    app = ClientApp(mods=[mod])

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        (weights,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        x, y = rows
        gradient = gaussian_mean(
            (x @ weights - y)[:, None] * x,
            max_norm=CLIP,
            divisor=RECORDS,  # declared, never counted
            noise_multiplier=SIGMA,
            noise=NoiseSource.from_os(),
        )
        return Message(RecordDict({"arrays": ArrayRecord([gradient])}), reply_to=message)

    return app


def pinned_by(identities: Mapping[str, Identity]) -> Pinned:
    """What these sites agree on: one sum over all of them."""
    names = tuple(sorted(identities))
    return Pinned(
        Roster({name: identity.public_bytes for name, identity in identities.items()}),
        Plan(
            length=WIDTH,
            nodes=(Node("all", names, ((0, WIDTH),)),),
            threshold=Plan.full_threshold(len(names)),
            quantiser=Quantiser(clip=2 * CLIP, bits=24),
            context=hashlib.sha256(b"least squares, clip 1, noise 6").digest(),
        ),
    )


def site_of(name: str, identity: Identity, pinned: Pinned, folder: Path) -> ClientApp:
    """A site with rows, a ledger and a journal of its own."""
    rng = np.random.default_rng([NAMES.index(name), 7])
    x = rng.normal(size=(RECORDS, WIDTH)) / np.sqrt(WIDTH)
    rows = x, x @ np.array([1.0, -2.0, 0.5])
    place = folder / name
    place.mkdir(mode=0o700)
    ledger = Ledger.open(place / "ledger.sqlite", dataset=name, budget=BUDGET)
    journal = Journal.open(place / "journal")
    return client_app(Masked(name, identity, pinned, ledger, Gaussian(SIGMA), journal), rows)


class Nodes(Grid):
    """Warm nodes of this process; ``lose`` says which replies never come."""

    def __init__(
        self, apps: Sequence[ClientApp], lose: Callable[[Message], bool] = lambda _: False
    ) -> None:
        from flwr.supercore.task_identity import TaskIdentity

        # messages can be made in a ServerApp's process alone; this one passes for one
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self._apps, self._lose = dict(enumerate(apps, start=1)), lose
        self.seen: list[Message] = []

    def get_node_ids(self) -> list[int]:
        """Numbers of the nodes."""
        return list(self._apps)

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002 - Flower's signature
    ) -> list[Message]:
        """Let each node answer, in memory."""
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            context = Context(1, node, {}, RecordDict(), {})
            reply = self._apps[node](message, context)
            reply.metadata.__dict__["_src_node_id"] = node
            if not self._lose(message):
                replies.append(reply)
        self.seen += replies
        return replies

    create_message = push_messages = pull_messages = set_run = run = None


def main(folder: Path) -> np.ndarray:
    """Run it; return the weights."""
    identities = {name: Identity.generate(secrets.token_bytes(32)) for name in NAMES}
    pinned = pinned_by(identities)
    nodes = Nodes([site_of(name, identities[name], pinned, folder) for name in NAMES])
    start = ArrayRecord([np.zeros(WIDTH)])
    result = MaskedMean(pinned, STEP).start(nodes, start, num_rounds=ROUNDS)
    (weights,) = result.arrays.to_numpy_ndarrays()
    return weights


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    given = parser.parse_args().folder
    place = given or Path(tempfile.mkdtemp())
    place.mkdir(exist_ok=True)
    print("weights:", main(place).round(2), "after", ROUNDS, "rounds; truth: [1, -2, 0.5]")
    for name in NAMES:
        with Ledger.inspect(place / name / "ledger.sqlite") as ledger:
            print(f"{name}: epsilon {ledger.spent():.3f} of {BUDGET.epsilon:g}")
