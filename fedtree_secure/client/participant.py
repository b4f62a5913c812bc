"""A client of a job: bytes in, bytes out. The only code that touches private rows, and the only way
out of it.

Every stage that computes from private rows checks that the budget affords it, charges the ledger,
computes, writes down what will leave, and sends, in this order (`diary`).
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedtree_dp import DPSGD, BudgetExceeded, Gaussian, Ledger, NoiseSource, PoissonGaussian
from fedtree_secagg import Identity, Plan, Roster, sketch
from fedtree_secagg import client as masking
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.noise_plan import NoisePlan
from fedtree_secure.agreed.round_plan import (
    MERGE,
    check_tree,
    fixed_tree,
    plan_of_round,
    sketch_context,
)
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.client.data import Client, ClientData
from fedtree_secure.client.state import Floats, fresh_belongings, seated
from fedtree_secure.client.store import Diary
from fedtree_secure.client.training import (
    Engine,
    fingerprint,
    largest_change,
    train_head,
    train_round,
)
from fedtree_secure.config import Job
from fedtree_secure.model.backbone import Backbone, Observation

log = logging.getLogger("fedtree_secure.client.participant")
Tick = Callable[[str, str], None]
# of one charge: each shows a server with a colluding member `sketch_size` more functions of the
# vectors
SKETCHES = 3


class StageError(wire.WireError):
    """A request came out of order, twice, or for another job."""


class Participant:
    """One client's side of a job.

    Args: client, data: Its description and tokenised rows. job, roster: Its own copies of the
        public configuration and of the pinned keys; a coordinator that runs
            another job is refused.
        identity: Its signing key.
        backbone: The frozen model.
        ledger: Its data set's ledger, open.
        noise_plan: What its stages cost.
        folder: Where its state is kept; not shared with the server.
        job_id: Name of this run in the ledger.
        cache: Computed from rows once in a process (features, hidden states); never leaves it.
        tick: Called with the client's id and the stage after each step, for progress bars.
        randomness, engine: Replaced by audits alone: keys that can be repeated, DP-SGD with
            canaries in it.
    """

    def __init__(
        self,
        client: Client,
        data: ClientData,
        job: Job,
        roster: Roster,
        identity: Identity,
        backbone: Backbone,
        ledger: Ledger,
        noise_plan: NoisePlan,
        folder: Path,
        *,
        job_id: str,
        cache: dict[str, Any] | None = None,
        tick: Tick = lambda *_: None,
        randomness: Callable[[int], bytes] = os.urandom,
        engine: Engine = DPSGD,
    ) -> None:
        self.id = client.id
        self.data, self.job, self.roster, self.backbone = data, job, roster, backbone
        self.noise_plan = noise_plan
        self._identity, self._cache, self._tick = identity, {} if cache is None else cache, tick
        self._random, self._engine = randomness, engine
        self._records = client.records or job.training.records
        self._outputs = len(data.label_set)
        self._names = tuple(sorted(roster.names))
        self._session: Any = None
        self._stage = ""
        self._begin: wire.Begin | None = None
        self._diary = Diary(folder, ledger, job_id, fresh_belongings(backbone, self._outputs))
        self._journal, self._mine = self._diary.journal, self._diary.values

    @contextlib.contextmanager
    def at_backbone(self) -> Iterator[None]:
        """Seat this client at the shared model, for evaluation and saving at home."""
        with seated(self.backbone, self._mine, self._outputs, self._mixing()):
            yield

    # --- the message loop -------------------------------------------------------------------------

    def handle(self, request: bytes) -> bytes:
        """Answer one request.

        Raises: WireError, StageError: The request is malformed or out of order; state is unchanged.
            fedtree_secagg.ProtocolError: A protocol message was wrong; the round is over for this
            client.
        """
        message = wire.decode_request(request)
        answer: Callable[[Any], wire.Reply] = self._handlers()[type(message)]
        try:
            return wire.encode(answer(message))
        except BudgetExceeded as error:
            log.warning("%s does not take part: %s", self.id, error)
            return wire.encode(wire.Refused("budget"))

    def _handlers(self) -> Mapping[type, Callable[[Any], wire.Reply]]:
        return {
            wire.Join: self._join,
            wire.SketchHello: self._sketch_hello,
            wire.SketchSeal: self._sketch_seal,
            wire.SketchSend: self._sketch_send,
            wire.Distances: self._distances,
            wire.Prepare: self._prepare,
            wire.Begin: self._begin_round,
            wire.Alone: self._alone,
            wire.Share: self._share,
            wire.Mask: self._mask,
            wire.Confirm: self._confirm,
            wire.Reveal: self._reveal,
            wire.Finish: self._finish,
        }

    def _enter(self, expected: str, following: str) -> None:
        if self._stage != expected:
            raise StageError(
                f"{self.id}: this request belongs after stage {expected!r}; the stage is "
                f"{self._stage!r}"
            )
        self._stage = following

    # --- before the first round -------------------------------------------------------------------

    def _join(self, message: wire.Join) -> wire.Reply:
        if message.job != self.job.digest() or message.roster != self.roster.hash:
            return wire.Refused("mismatch")
        plan = self.noise_plan
        return wire.Joined(plan.rounds, self._records, plan.fingerprint, self._outputs)

    def _sketch_hello(self, message: wire.SketchHello) -> wire.Reply:
        if message.members != self._names:
            raise StageError(f"{self.id}: the sketch must be of the whole roster")
        if self._journal.tree is not None:
            raise StageError(f"{self.id}: a tree was accepted; no more sketches")
        context = sketch_context(self.job, self.backbone.digest, message.attempt)
        self._session, hello = sketch.hello(
            self._identity, self.id, self.roster, self._names, context, randomness=self._random(32)
        )
        self._stage = "hello"
        return wire.Protocol(hello)

    def _sketch_seal(self, message: wire.SketchSeal) -> wire.Reply:
        self._enter("hello", "seal")
        self._session, sealed = sketch.seal(
            self._session, message.hellos, randomness=self._random(32)
        )
        return wire.Protocol(sealed)

    def _sketch_send(self, message: wire.SketchSend) -> wire.Reply:
        self._enter("seal", "sketched")
        state = sketch.unseal(self._session, message.sealed)
        self._session = None
        stage = "fingerprint" if self.job.topology.source == "fingerprint" else "warm-up"
        if self._mine.sketched is None or self._journal.released.get(stage, 0) % SKETCHES == 0:
            self._mine.sketched = (
                self._fingerprint() if stage == "fingerprint" else np.stack(self._warm_up())
            )
        self._diary.release(stage)
        return wire.Protocol(
            sketch.encode(state, list(self._mine.sketched), size=self.job.topology.sketch_size)
        )

    def _fingerprint(self) -> "np.ndarray[Any, Any]":
        multiplier = self.noise_plan.fingerprint
        self._diary.charge("fingerprint", Gaussian(multiplier))
        means = self._observed().means
        self._tick(self.id, "fingerprint")
        return fingerprint(
            means,
            self.backbone.layer_reference,
            noise_multiplier=multiplier,
            records=self._records,
            noise=self._noise(),
        )

    def _warm_up(self) -> "list[np.ndarray[Any, Any]]":
        steps = self.job.topology.warmup_steps
        self._diary.charge("warm-up", self._event(self.noise_plan.warm_up, steps))
        shares = [True] * len(self.backbone.layout().parts)
        change = self._train(self.noise_plan.warm_up, shares, steps=steps, upload_gradient=False)
        with seated(self.backbone, self._mine, self._outputs, self._mixing()):
            vectors = self.backbone.experts.b_factors()
        self._mine.pending = change
        self._mine.own = self.backbone.initial_expert.copy()
        return vectors

    def _distances(self, message: wire.Distances) -> wire.Reply:
        tree = check_tree(message, self.job, self._names, self.backbone)
        if tree is None or (self._journal.tree is not None and tree.labels != self._tree().labels):
            return wire.Refused("tree")
        new, self._journal.tree = self._journal.tree is None, [list(row) for row in tree.labels]
        self._journal.evidence = wire.digest(message)
        self._mine.sketched = None
        if (
            new and (change := self._mine.pending) is not None
        ):  # what is not shared is the client's own at once
            for (start, stop), shared in zip(
                self.backbone.layout().parts, self._shares(), strict=True
            ):
                if not shared:
                    self._mine.own[start:stop] += change[start:stop]
        self._diary.save()
        return wire.Done()

    def _prepare(self, _: wire.Prepare) -> wire.Reply:
        steps = self.job.head_steps
        if steps and "head" not in self._journal.finished and self.data.train.labels is not None:
            event = PoissonGaussian(self.noise_plan.head, self.job.training.head_sample_rate, steps)
            self._diary.charge("head", event)
            features = self._observed().features
            with seated(self.backbone, self._mine, self._outputs, self._mixing()):
                train_head(
                    features,
                    self.data.train.labels,
                    self.backbone.centred,
                    self.job,
                    noise_multiplier=self.noise_plan.head,
                    records=self._records,
                    noise=self._noise(),
                    tick=lambda: self._tick(self.id, "head"),
                )
            self._journal.finished.append("head")
            self._diary.release("head")
        return wire.Done()

    # --- a round ----------------------------------------------------------------------------------

    def _begin_round(self, message: wire.Begin) -> wire.Reply:
        if (message.round, message.attempt) <= (self._journal.round, self._journal.attempt):
            raise StageError(
                f"{self.id}: round {message.round} attempt {message.attempt} is not after round "
                f"{self._journal.round} "
                f"attempt {self._journal.attempt}, which this client has answered"
            )
        if message.merge != (message.round == MERGE):
            raise StageError(
                f"{self.id}: round {MERGE} merges the warm-up, and no other; this one is "
                f"{message.round}"
            )
        least = largest_change(self.job, self.noise_plan.rounds, self._records, merge=message.merge)
        if not message.clip >= least:
            # It would also make the grid finer than float32, whose low bits tell about the value
            # under the noise.
            log.warning(
                "%s: the server's clip of %g would cut this client's updates at %g",
                self.id,
                message.clip,
                least,
            )
            return wire.Refused("clip")
        if message.merge and self._mine.pending is None:
            return wire.Refused("merge")
        self._receive(message.cluster, message.external)
        self._journal.round, self._journal.attempt = message.round, message.attempt
        self._diary.save()
        event = self._event(self.noise_plan.rounds, self.job.training.local_steps)
        if not message.merge and not self._diary.affords(self._stage_of(message.round), event):
            log.warning("%s stops: round %d would exceed its budget", self.id, message.round)
            return wire.Refused("budget")
        self._begin = message
        self._session, advert = masking.advertise(
            self._identity,
            self.id,
            self.roster,
            self._plan(message),
            round=message.round,
            attempt=message.attempt,
            randomness=self._random(32),
        )
        self._stage = "advertised"
        return wire.Protocol(advert)

    def _share(self, message: wire.Share) -> wire.Reply:
        self._enter("advertised", "shared")
        self._session, shares = masking.share(
            self._session, message.adverts, randomness=self._random(32)
        )
        return wire.Protocol(shares)

    def _mask(self, message: wire.Mask) -> wire.Reply:
        self._enter("shared", "masked")
        begin = self._begin
        assert begin is not None
        change = self._merge_change() if begin.merge else self._round_change(begin.round)
        self._session, masked = masking.mask(
            self._session, message.inbox, change.astype(np.float64), randomness=self._random(32)
        )
        return wire.Protocol(masked)

    def _confirm(self, message: wire.Confirm) -> wire.Reply:
        self._enter("masked", "confirmed")
        self._session, vote = masking.confirm(self._session, message.survivors)
        return wire.Protocol(vote)

    def _reveal(self, message: wire.Reveal) -> wire.Reply:
        self._enter("confirmed", "")
        shares = masking.reveal(self._session, message.votes)
        self._session = None
        return wire.Protocol(shares)

    def _alone(self, message: wire.Alone) -> wire.Reply:
        if message.round > self._journal.round:
            self._receive(message.cluster, message.external)
            self._journal.round = message.round
            self._round_change(message.round)
        return wire.Done()

    def _finish(self, message: wire.Finish) -> wire.Reply:
        self._receive(message.cluster, message.external)
        self._journal.finished.append("all")
        self._diary.save()
        return wire.Done()

    def _round_change(self, number: int) -> Floats:
        stage, steps = self._stage_of(number), self.job.training.local_steps
        self._diary.charge(stage, self._event(self.noise_plan.rounds, steps))
        change = self._train(
            self.noise_plan.rounds, self._shares(), steps=steps, upload_gradient=steps == 1
        )
        self._diary.release(stage)
        return change

    def _merge_change(self) -> Floats:
        """Return the change of the warm-up, already charged; it is uploaded once (secagg/SPEC.md,
        section 7).
        """
        change, self._mine.pending = self._mine.pending, None
        assert change is not None  # or the merge was refused at its beginning
        self._diary.save()
        return change

    # --- helpers ----------------------------------------------------------------------------------

    def _observed(self) -> Observation:
        """The frozen model's view of the rows: computed once in a process, with the initial
        experts.
        """
        if "observed" not in self._cache:
            initial = fresh_belongings(self.backbone, self._outputs)
            with seated(
                self.backbone,
                initial,
                self._outputs,
                np.zeros(self.backbone.experts.depth, dtype=bool),
            ):
                self._cache["observed"] = self.backbone.observe(self.data.train)
        found: Observation = self._cache["observed"]
        return found

    def _train(
        self, multiplier: float, shares: list[bool], *, steps: int, upload_gradient: bool
    ) -> Floats:
        return train_round(
            self.backbone,
            self.job,
            self.data,
            self._mine,
            shares=shares,
            mixing=self._mixing(),
            noise_multiplier=multiplier,
            records=self._records,
            steps=steps,
            upload_gradient=upload_gradient,
            noise=self._noise(),
            tick=lambda: self._tick(self.id, "step"),
            engine=self._engine,
        )

    def _receive(self, cluster: bytes, external: bytes) -> None:
        layout = self.backbone.layout()
        given = wire.unpack(cluster, layout.length)
        outside = wire.unpack(external, layout.length)
        for (start, stop), shared in zip(layout.layers, self._shares(), strict=False):
            if shared:
                self._mine.own[start:stop] = given[start:stop]
            self._mine.external[start:stop] = outside[start:stop]
        if layout.head and self._shares()[-1]:
            _write_head(self._mine.head, given[layout.head[0] : layout.head[1]])

    def _tree(self) -> Tree:
        if self._journal.tree is not None:
            labels = tuple(tuple(row) for row in self._journal.tree)
            return Tree(self._names, labels, self.job.masking.min_group)
        if fixed := fixed_tree(self.job, self._names, self.backbone.experts.depth):
            return fixed
        raise StageError(f"{self.id}: there is no accepted tree yet")

    def _shares(self) -> list[bool]:
        tree = self._tree()
        return [tree.group_of(self.id, part) is not None for part in range(len(tree.labels))]

    def _mixing(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        depth = self.backbone.experts.depth
        if self._journal.tree is None:
            return np.zeros(depth, dtype=bool)
        tree = self._tree()
        return np.array([bool(tree.externals_of(self.id, layer)) for layer in range(depth)])

    def _plan(self, begin: wire.Begin) -> Plan:
        return plan_of_round(
            self.job,
            self._tree(),
            self.backbone.layout(),
            self.backbone.digest,
            self._journal.evidence,
            begin.clip,
            merge=begin.merge,
        )

    def _event(self, multiplier: float, steps: int) -> PoissonGaussian:
        return PoissonGaussian(multiplier, self.job.training.sample_rate, steps)

    def _stage_of(self, number: int) -> str:
        return f"round {number}"

    def _noise(self) -> NoiseSource:
        return NoiseSource(self._random(32))


def _write_head(head: dict[str, Floats], flat: Floats) -> None:
    at = 0
    for name in [n for n in head if n.endswith(("weight", "bias"))][-2:]:
        size = head[name].size
        head[name] = flat[at : at + size].reshape(head[name].shape).copy()
        at += size
