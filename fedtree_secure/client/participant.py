"""A client of a run: bytes in, bytes out. The order in which anything happens stands here alone.

    check      the signature, the counter, and all that can be checked; nothing has changed yet
    note       the counter and the decision, with the charge, in one durable transaction
    compute    what was charged for; from here on no answer depends on rows
    keep       the client's new values, durably
    send

A request that fails a check leaves no trace. Once a request is noted it is answered, and how does
not depend on the rows but through the mechanism that was charged (HOSTILE rules: charged means
sent).
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedtree_dp import BudgetExceeded
from fedtree_secagg import SecAggError
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.envelope import Opened, open_request
from fedtree_secure.agreed.stages import COUNTER_WINDOW
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.client import (
    cohort_requests,
    gradient_requests,
    graph_requests,
    round_requests,
    tree_requests,
)
from fedtree_secure.client.pacing import Pace
from fedtree_secure.client.party import Member, Party, Workings
from fedtree_secure.client.sessions import Idle, Session
from fedtree_secure.client.state import loaded_into
from fedtree_secure.client.step import Refusal, Step
from fedtree_secure.client.store import Store
from fedtree_secure.model.backbone import Backbone, Observation

log = logging.getLogger("fedtree_secure.client")

# What checks each request. Private rows are read by none of these, only by the steps they return.
HANDLERS: Mapping[type, Callable[[Party, Session, Any], Step]] = {
    wire.Join: tree_requests.join,
    wire.SketchHello: tree_requests.sketch_hello,
    wire.GradientHello: gradient_requests.gradient_hello,
    wire.SketchSeal: tree_requests.sketch_seal,
    wire.SketchSend: tree_requests.sketch_send,
    wire.ProposeTree: tree_requests.propose_tree,
    wire.AdoptTree: tree_requests.adopt_tree,
    wire.ProposeChange: cohort_requests.propose_change,
    wire.Learn: cohort_requests.learn,
    wire.Prepare: tree_requests.prepare,
    wire.DrawCommit: graph_requests.draw_commit,
    wire.DrawOpen: graph_requests.draw_open,
    wire.DrawKeep: graph_requests.draw_keep,
    wire.Begin: round_requests.begin,
    wire.Alone: round_requests.alone,
    wire.Share: round_requests.share,
    wire.Mask: round_requests.mask,
    wire.Confirm: round_requests.confirm,
    wire.Reveal: round_requests.reveal,
    wire.Finish: round_requests.finish,
    wire.Deliver: round_requests.deliver,
}


class Participant:
    """One client's side of a run.

    Args:
        terms: Its own copies of job, roster, the server's key and the run's name.
        member: Who it is, its rows and its keys.
        backbone: The frozen model.
        store: Its memory of this run, in the store of its data set.
        workings: Randomness, engine and progress; replaced by audits.
        cache: Computed from rows once in a process; never leaves it.
        pace: When replies leave, see `pacing`; None sends at once.

    Raises:
        ConfigurationError: See `Party`, and `Party.keep_activations`.
    """

    def __init__(
        self,
        terms: Terms,
        member: Member,
        backbone: Backbone,
        store: Store,
        *,
        workings: Workings | None = None,
        cache: dict[str, Observation] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.party = Party(
            terms, member, backbone, store, workings or Workings(), {} if cache is None else cache
        )
        self._session: Session = Idle()
        self._pace = pace
        if not (self.delivered or store.record.leaving):
            self.party.keep_activations()

    @property
    def id(self) -> str:
        """The client's name in the roster."""
        return self.party.id

    @property
    def delivered(self) -> bool:
        """Whether the client keeps the last experts: nothing more will be asked of it."""
        return round_requests.KEPT in self.party.store.record.finished

    @contextlib.contextmanager
    def at_backbone(self) -> Iterator[None]:
        """Load this client into the shared model, for evaluation and saving at home."""
        party = self.party
        with loaded_into(party.backbone, party.store.state, party.outputs, party.mixing()):
            yield

    def handle(self, data: bytes) -> bytes:
        """Answer one request.

        Raises:
            WireError: The request is not signed by the server, malformed, repeated or out of order.
                Nothing was written down, charged or changed.
            StoreError, fedtree_dp.LedgerError: The store cannot be written. Nothing is sent.
        """
        party = self.party
        request = open_request(data, party.terms.server_key, party.terms.run, party.id)
        try:
            self._check_counter(request)
            if party.store.record.leaving:
                return self._carry_out(request.counter, cohort_requests.leave(party))
            check = HANDLERS[type(request.message)]
            step = check(party, self._session, request.message)
            return self._carry_out(request.counter, step)
        except Refusal as refusal:
            log.warning("%s refuses (%s): %s", party.id, refusal.reason, refusal)
            return wire.encode(wire.Refused(refusal.reason))
        except BudgetExceeded as error:
            log.warning("%s does not take part: %s", party.id, error)
            return wire.encode(wire.Refused("budget"))
        except SecAggError as error:
            raise wire.WireError(f"{type(error).__name__}: {error}") from error

    def leave(self) -> None:
        """Leave the run for good: from now on every request is answered with a signed farewell.

        Nothing more is computed or charged; what was uploaded stays in the sums. There is no way
        back into this run.

        Raises:
            StoreError, fedtree_dp.LedgerError: The store cannot be written.
        """
        with self.party.store.writing() as noted:
            noted.record.leaving = True
        self.close()

    def close(self) -> None:
        """Delete what was computed from rows to save time: this process is done with the run."""
        self.party.forget_activations()

    def _check_counter(self, request: Opened) -> None:
        last = self.party.store.record.counter
        if request.answered > last:
            raise Refusal("set-back", "this client answered requests that its store does not know")
        if not last < request.counter <= last + COUNTER_WINDOW:
            raise wire.WireError(f"request {request.counter} after {last}: repeated, or absurd")

    def _carry_out(self, counter: int, step: Step) -> bytes:
        """Note and charge; compute; keep; send. In this order, and here alone.

        What costs nothing is computed inside the transaction that notes it, so that both are
        durable at once; what was charged is computed after its charge is on the disk.
        """
        store, charge = self.party.store, step.charge
        began = self._pace.clock() if self._pace else 0.0
        with store.writing() as noted:
            noted.record.counter = counter
            if charge is None:
                step.write(noted.record)
                self._session, reply = step.answer(b"")
                if step.keeps:
                    noted.keep(store.state)
            else:
                seed = noted.charge(charge.purpose, charge.event, repeatable=charge.repeatable)
                step.write(noted.record)
                if step.takes is not None:
                    step.takes()
                    noted.keep(store.state)
        if charge is not None:
            self._session, reply = step.answer(seed)
            with store.writing() as noted:
                if charge.repeatable:
                    noted.finish(charge.purpose)
                noted.keep(store.state)
        if self._pace and step.paced:
            self._pace.wait(began)
        return wire.encode(reply)
