"""One party, warm: it owns rows, model, key, store, policy and the runs that it takes part in.

`Site.handle` is all that a network reaches. It catches everything: what a request leads to is a
reply or silence, and an error's text stays in the site's own log. A run is admitted when its server
asks to join, if the operator approved the job and the policy allows it; from then on the
`Participant` answers, which checks, charges, computes and then answers.
"""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtree_dp import BudgetExceeded, Ledger, LedgerError, given_honest
from fedtree_secagg import Identity
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed import who
from fedtree_secure.agreed.envelope import open_request
from fedtree_secure.agreed.noise_plan import NoisePlan
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.client.data import Client, prepare, texts_of, units_of
from fedtree_secure.client.pacing import Pace
from fedtree_secure.client.participant import Participant
from fedtree_secure.client.party import Member, Workings
from fedtree_secure.client.state import initial_state
from fedtree_secure.client.step import Refusal
from fedtree_secure.client.store import Store, leave_run
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError, DataError, FedTreeError, StoreError
from fedtree_secure.key_file import read_identity
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.names import check_name
from fedtree_secure.report.manifest import NAME as MANIFEST
from fedtree_secure.report.statement import quick_epsilon
from fedtree_secure.roster_file import RosterFile, read_roster
from fedtree_secure.site.approval import APPROVED, Approval, plan_for, read_approvals
from fedtree_secure.site.deliveries import deliver_run
from fedtree_secure.site.policy import Policy, load_policy
from fedtree_secure.site.settings import SiteSettings, load_site
from fedtree_secure.storage import SecretBox, held, private_folder

log = logging.getLogger("fedtree_secure.site")


@dataclass(frozen=True)
class Run:
    """A run that this site takes part in.

    Attributes:
        approval: What the operator signed.
        roster: The roster that it is pinned to.
        participant: Answers its requests.
    """

    approval: Approval
    roster: RosterFile
    participant: Participant


class Site:
    """One party of a deployment; make one with `Site.open`, which closes it.

    Args:
        settings: From ``site.toml``.
        identity: Its signing key.
        ledger: The store of its data set, open and held.
        client: Its rows.
        box: Encrypts secrets at rest.
    """

    def __init__(
        self,
        settings: SiteSettings,
        identity: Identity,
        ledger: Ledger,
        client: Client,
        box: SecretBox,
    ) -> None:
        self.settings, self.identity, self.ledger, self.client = settings, identity, ledger, client
        self._box = box
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._backbones: dict[bytes, Backbone] = {}  # the last job's; one is in memory at a time
        self._due: list[str] = []
        self._policy = _Reread(settings.policy, load_policy)
        self._roster = _Reread(settings.roster, read_roster)

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str | Path) -> Iterator["Site"]:
        """Open a site for this process alone: read rows and key, hold the store.

        Args:
            path: ``site.toml``, or the folder that holds it.

        Raises:
            FedTreeError: Something is missing, unreadable or in use, or the store was never made
                (``site init``). Nothing was charged.
        """
        settings, box = load_site(path), SecretBox.from_environment()
        identity = read_identity(settings.key, box)
        data_sets = settings.data_sets()
        if not (
            data_sets.store_of(settings.dataset).exists()
            or data_sets.head_of(settings.dataset).exists()
        ):
            raise StoreError(
                f"the data set {settings.dataset!r} has no store at "
                f"{data_sets.store_of(settings.dataset)}; make it once, with its budget: "
                f"fedtree-secure site init {settings.folder} --epsilon E --delta D"
            )
        rows = settings.client(None)
        with (
            held(private_folder(settings.runs)),
            data_sets.opened(settings.dataset, None, texts_of(rows), create=False) as ledger,
        ):
            ledger.budget.check_records(settings.file.records)
            client = dataclasses.replace(rows, privacy=ledger.budget)
            site = cls(settings, identity, ledger, client, box)
            roster, policy = site._roster.value(), site._policy.value()
            site.check_place(roster, policy)
            try:
                yield site
            finally:
                for found in site._runs.values():
                    found.participant.close()

    @property
    def name(self) -> str:
        """The site's name in the roster."""
        return self.settings.name

    def check_place(self, roster: RosterFile, policy: Policy) -> None:
        """Refuse a roster in which this site does not stand with this key.

        Raises:
            ConfigurationError: It does not, or the policy names another roster.
        """
        card = roster.clients.get(self.name)
        if card is None or card.key != self.identity.public_bytes.hex():
            raise ConfigurationError(
                f"version {roster.version} of the roster does not name {self.name!r} with the key "
                f"of {self.settings.key}; ask its keeper for a version that does"
            )
        self.settings.check_labels(card)
        if roster.digest != policy.roster:
            raise ConfigurationError(
                f"the roster {self.settings.roster} has the digest {roster.digest}, the policy "
                f"names {policy.roster}; compare with the other sites which one is right"
            )

    # --- what a network reaches -----------------------------------------------------------------

    def who(self, data: bytes, node: str) -> bytes | None:
        """Answer which site is behind a node of the network; None where the question is not ours
        to answer. Never raises.
        """
        try:
            key = self._policy.value().server_key
            return who.answer(data, key, self.name, self.identity, node)
        except Exception as error:  # nothing of it may reach the network
            log.warning("a question was not answered: %s", error)
            return None

    def handle(self, run: str, request: bytes) -> bytes | None:
        """Answer a request of a run; None is silence. Never raises, and tells the network nothing
        but what the protocols say.
        """
        with self._lock:
            try:
                return self._answer(run, request)
            except wire.WireError as error:
                log.warning("a request of run %.64r is not answered: %s", run, error)
            except (StoreError, LedgerError, OSError) as error:
                log.error("the store cannot be used, nothing was sent: %s", error)
            except FedTreeError as error:
                log.error("a request of run %.64r is not answered: %s", run, error)
            except Exception as error:
                log.exception("a request of run %.64r broke down: %s", run, type(error).__name__)
            return None

    def budget(self) -> dict[str, Any]:
        """What is spent of the data set, by all jobs on it, for who watches this site.

        Returns:
            ``dataset``, ``epsilon_spent`` (off the coarse grid, which only overstates),
            ``epsilon_allowed`` and ``delta``.
        """
        with self._lock:
            allowed, events = self.ledger.budget, given_honest(self.ledger.events())
            return {
                "dataset": self.settings.dataset,
                "epsilon_spent": round(quick_epsilon(events, allowed.delta), 4),
                "epsilon_allowed": allowed.epsilon,
                "delta": allowed.delta,
            }

    def leave(self, run: str) -> None:
        """Leave a run for good: its requests are answered with a signed farewell from now on.

        Nothing more is computed or charged for it; what was uploaded stays in the sums.

        Raises:
            ConfigurationError: No run of this name was joined here.
            StoreError, LedgerError: The store cannot be written.
        """
        with self._lock:
            if run not in self.admitted:
                raise ConfigurationError(
                    f"no run {run!r} was joined here; joined: {', '.join(self.admitted) or 'none'}"
                )
            leave_run(self.ledger, run)
            self._drop(run)  # the next request reads the store again

    def settle(self) -> None:
        """Write down what finished runs delivered: adapter and report. Call it between requests.

        Never raises; what failed is tried again when the server delivers again.
        """
        with self._lock:
            while self._due:
                run = self._due.pop()
                try:
                    found = self._runs[run]
                    found.participant.close()
                    place = private_folder(self.settings.runs / run)
                    deliver_run(place, found.participant, found.approval, found.roster, self.ledger)
                    log.info("run %s is finished; its adapter and report are in %s", run, place)
                except Exception:
                    log.exception("run %s is finished, but cannot be delivered", run)

    # --- inside -----------------------------------------------------------------------------------

    def _answer(self, run: str, request: bytes) -> bytes:
        try:
            known = self._runs.get(run) or self._admit(run, request)
            self._check_policy(known.approval, known.roster, known.participant.party.backbone)
        except Refusal as refusal:
            self._drop(run)
            # Only the server that the policy names is told anything.
            open_request(request, self._policy.value().server_key, run, self.name)
            log.warning("run %s is refused (%s): %s", run, refusal.reason, refusal)
            return wire.encode(wire.Refused(refusal.reason))
        except BudgetExceeded as error:
            log.warning("run %s is refused (budget): %s", run, error)
            return wire.encode(wire.Refused("budget"))
        reply = known.participant.handle(request)
        if known.participant.delivered and not (self.settings.runs / run / MANIFEST).exists():
            self._due = sorted({*self._due, run})
        return reply

    def _drop(self, run: str) -> None:
        """Forget a run in this process; what is in the store stays."""
        if found := self._runs.pop(run, None):
            found.participant.close()

    def _admit(self, run: str, request: bytes) -> Run:
        """Let a run in that its server asks to join, or that was let in by an earlier process.

        Raises:
            WireError: Not signed by the pinned server, or no run that this site knows.
            Refusal: Not approved, against the policy, or of another model.
            BudgetExceeded: Too little is left of the data set.
        """
        if not _is_name(run):
            raise wire.WireError("a run's name that cannot be part of a path")
        policy, roster = self._rules()
        opened = open_request(request, policy.server_key, run, self.name)
        bound = self.ledger.get(APPROVED, run)
        if bound is None and not isinstance(opened.message, wire.Join):
            raise wire.WireError("a request of a run that this site never joined")
        approvals = read_approvals(self.settings.approvals, self.identity)
        if bound is not None:
            approval = approvals.get(bound.decode())
            if approval is None:
                raise Refusal("policy", f"its approval {bound.decode()} was removed")
        else:
            assert isinstance(opened.message, wire.Join)
            approval = self._approval_of(run, opened.message, approvals, roster)
        job, terms = approval.settings(), approval.terms(roster, run)
        backbone = self._backbone(job)
        self._check_policy(approval, roster, backbone)
        self._agree_on_unit(job)
        plan = self._plan(run, approval, job)
        participant = self._participant(terms, backbone, plan)
        self._bind(run, approval, plan)
        self._runs[run] = Run(approval, roster, participant)
        log.info("run %s of job %s is admitted", run, job.digest().hex()[:16])
        return self._runs[run]

    def _approval_of(
        self, run: str, join: wire.Join, approvals: dict[str, Approval], roster: RosterFile
    ) -> Approval:
        """The approval that a new run may take: of these very terms, and not taken by another."""
        fits = [a for a in approvals.values() if a.terms(roster, run).digest == join.terms]
        if not fits:
            raise Refusal(
                "policy",
                "its server asks for a job that was not approved here; if it should run, look at "
                f"it and approve it: fedtree-secure site approve {self.settings.folder} JOB",
            )
        taken = {(self.ledger.get(APPROVED, name) or b"").decode(): name for name in self.admitted}
        free = [approval for approval in fits if approval.id not in taken]
        if not free:
            raise Refusal(
                "policy",
                f"its job was approved for run {taken[fits[0].id]}; another run of it needs "
                "another approval",
            )
        return free[0]

    @property
    def admitted(self) -> tuple[str, ...]:
        """Names of all runs that this site ever joined, by the store."""
        return tuple(self.ledger.names(APPROVED))

    def _rules(self) -> tuple[Policy, RosterFile]:
        try:
            return self._policy.value(), self._roster.value()
        except (FedTreeError, OSError) as error:
            raise Refusal("policy", str(error)) from None

    def _check_policy(self, approval: Approval, roster: RosterFile, backbone: Backbone) -> None:
        policy, _ = self._rules()
        broken = policy.against(self.name, approval.settings(), roster)
        broken += policy.against_model(backbone.frozen_digest)
        if approval.roster != roster.digest:
            broken.append("it was approved with another version of the roster")
        if broken:
            raise Refusal("policy", "; ".join(broken))

    def _backbone(self, job: Job) -> Backbone:
        digest = job.digest()
        if digest not in self._backbones:
            self._backbones.clear()
            try:
                folder = self.settings.model(job.backbone)
                self._backbones[digest] = Backbone(dataclasses.replace(job, backbone=str(folder)))
            except (FedTreeError, OSError) as error:
                raise Refusal("mismatch", f"its model cannot be used: {error}") from None
        return self._backbones[digest]

    def _agree_on_unit(self, job: Job) -> None:
        """Say what this run's charges protect.

        Raises:
            Refusal: The data set, or the site's rows, have another unit.
        """
        try:
            units_of(self.client, job)
            self.ledger.use_unit(job.privacy_unit)
        except (DataError, LedgerError) as error:
            raise Refusal("policy", str(error)) from None

    def _plan(self, run: str, approval: Approval, job: Job) -> NoisePlan:
        """The noise of a run: what its approval planned, or anew where more was spent since."""
        stored = self.ledger.get(run, "plan")
        if stored is not None:
            return NoisePlan.from_bytes(stored)
        same = approval.charges == len(self.ledger.events())
        return approval.plan if same else plan_for(self.name, job, self.ledger)

    def _bind(self, run: str, approval: Approval, plan: NoisePlan) -> None:
        """Note which approval a run took, and its noise plan, before anything is charged."""
        if self.ledger.get(run, "plan") is None:
            with self.ledger.transaction() as transaction:
                transaction.put(APPROVED, run, approval.id.encode())
                transaction.put(run, "plan", plan.to_bytes())

    def _participant(self, terms: Terms, backbone: Backbone, plan: NoisePlan) -> Participant:
        job = terms.job
        data = prepare(self.client, job, backbone.tokenizer)
        initial = initial_state(backbone, len(data.label_set))
        pacing = job.pacing
        try:
            return Participant(
                terms,
                Member(self.client, data, self.identity, plan),
                backbone,
                Store(self.ledger, terms.run, self._box, initial),
                workings=Workings(place=self.settings.runs / terms.run),
                pace=Pace(pacing.minimum, pacing.interval) if pacing.interval else None,
            )
        except ConfigurationError as error:  # other labels or divisor than the others', a full disk
            raise Refusal("policy", str(error)) from None


class _Reread:
    """A file that is read again when it changed."""

    def __init__(self, path: Path, read: Callable[[Path], Any]) -> None:
        self._path, self._read = path, read
        self._seen: tuple[int, int, int] | None = None
        self._value: Any = None

    def value(self) -> Any:
        """What the file says now; raises what reading it raises."""
        try:
            found = self._path.stat()
        except OSError as error:
            raise ConfigurationError(
                f"{self._path} cannot be read: {error.strerror}; put it back"
            ) from None
        seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        if seen != self._seen:
            self._value, self._seen = self._read(self._path), seen
        return self._value


def _is_name(run: str) -> bool:
    try:
        return bool(check_name("the run's name", run))
    except ConfigurationError:
        return False
