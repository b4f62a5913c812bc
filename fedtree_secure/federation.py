"""The main job: `Federation(...).run(clients, out=...)`.

A `Federation` has a `Job`, which is public, and runs it. This is the embedded form, in which one
process plays the server and every client (`fedtree_secure.embedded`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

from fedtree_dp import PrivacyBudget
from fedtree_secure.client.data import Client, load_clients
from fedtree_secure.config import (
    Cohort,
    Job,
    Lora,
    Masking,
    Noise,
    Pacing,
    Server,
    Task,
    Topology,
    Training,
)
from fedtree_secure.embedded.options import RunOptions
from fedtree_secure.embedded.progress import Observer
from fedtree_secure.embedded.run import run_job
from fedtree_secure.embedded.shared import Shared
from fedtree_secure.errors import ConfigurationError, suggest
from fedtree_secure.job_file import load_job
from fedtree_secure.report.priced_plan import PricedPlan, price_job
from fedtree_secure.report.summary import Result


class Settings(TypedDict, total=False):
    """Settings of a `Job` that have defaults; see there."""

    rounds: int
    task: Task
    seed: int
    lora: Lora
    training: Training
    topology: Topology
    masking: Masking
    cohort: Cohort
    server: Server
    pacing: Pacing
    unit: str | None
    max_per_unit: int | None
    noise: Noise
    budgets: Mapping[str, PrivacyBudget]


class Options(TypedDict, total=False):
    """Options of a run; see `RunOptions`."""

    resume: bool
    state: Path | str | None
    auditable: bool
    canaries: int
    progress: bool
    observer: Observer | None
    events: Path | str | None
    shared: Shared
    wrap_transport: Any


@dataclass(frozen=True)
class Federation:
    """A federated fine-tuning job, ready to be priced and run.

    Args:
        backbone: Local folder, GGUF file or hub id of the frozen model.
        privacy: Budget of each client, for its data set, over all jobs on it.
        settings: See `Job`.

    Attributes:
        job: What all parties agree on.

    Raises:
        ConfigurationError: A setting is missing, unknown or out of range.

    >>> from fedtree_secure import Federation, PrivacyBudget
    >>> budget = PrivacyBudget(epsilon=8, delta=1e-5)
    >>> Federation("path/or/id", budget, rounds=10).job.rounds
    10
    """

    job: Job

    def __init__(
        self, backbone: str | Path, privacy: PrivacyBudget, **settings: Unpack[Settings]
    ) -> None:
        known = {field.name for field in dataclasses.fields(Job)}
        if unknown := sorted(set(settings) - known):
            raise ConfigurationError(f"unknown setting {unknown[0]}{suggest(unknown[0], known)}")
        job = Job(backbone=str(backbone), privacy=privacy, **settings)
        object.__setattr__(self, "job", job)

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return the federation of a job."""
        made = cls.__new__(cls)
        object.__setattr__(made, "job", job)
        return made

    @classmethod
    def from_toml(cls, path: str | Path) -> tuple[Self, list[Client]]:
        """Read a job file and the clients' files that it names, relative to it.

        Raises:
            ConfigurationError, DataError: The file or a client's rows cannot be used.
        """
        job, entries = load_job(path)
        return cls.of(job), load_clients(entries, Path(path).expanduser().resolve().parent)

    def replace(
        self,
        *,
        epsilon: float | None = None,
        delta: float | None = None,
        own_epsilon: float | None = None,
        **settings: Unpack[Settings],
    ) -> Self:
        """Return the same job with other settings; this one stays as it is."""
        before = self.job.privacy
        budget = PrivacyBudget(
            epsilon=before.epsilon if epsilon is None else epsilon,
            delta=before.delta if delta is None else delta,
            own_epsilon=before.own_epsilon if own_epsilon is None else own_epsilon,
        )
        return type(self).of(dataclasses.replace(self.job, privacy=budget, **settings))

    def plan(
        self,
        records: int | None = None,
        spent: Sequence[Any] = (),
        *,
        client: str | None = None,
    ) -> PricedPlan:
        """Price the job for a client; nothing is read of its rows and nothing is spent.

        Args:
            records: Declared size of its training set; the job's own if None.
            spent: Events that its ledger holds already.
            client: Its name, where the job has a budget for it alone; the job's budget if None.

        Returns:
            Noise multipliers by stage, and ``noise_to_clip``, the norm of the noise in an averaged
            step over the clipping norm, which tells whether adapters can learn.

        Raises:
            fedtree_dp.BudgetExceeded: What is left allows no useful plan.
        """
        return price_job(self.job, records or self.job.training.records, spent, client)

    def run(self, clients: Sequence[Client], out: str | Path, **options: Unpack[Options]) -> Result:
        """Train, aggregate, stop at the budget, evaluate at home, and write the run folder.

        Args:
            clients: At least ``masking.min_group`` of them.
            out: Run folder; new, empty, or (with ``resume``) that of the same job.
            options: See `RunOptions`.

        Raises:
            FedTreeError: A setting, a row, a model, a folder or a store cannot be used; nothing was
                charged. `RunStopped` where the run was interrupted: ``resume=True`` continues it.
        """
        return run_job(self.job, clients, _folder(out), _options(options))

    def simulate(
        self, clients: Sequence[Client], out: str | Path, **options: Unpack[Options]
    ) -> Result:
        """Run the job for research: nothing is released, stores live in ``out``, and references are
        trained under the same epsilon. Arguments and errors as for `run`.
        """
        return run_job(self.job, clients, _folder(out), _options(options, simulate=True))


def _folder(out: str | Path) -> Path:
    if not isinstance(out, str | Path):
        raise ConfigurationError(f"out is {out!r}; allowed: the path of a folder")
    return Path(out).expanduser()


def _options(options: Options, *, simulate: bool = False) -> RunOptions:
    """What was asked for as `RunOptions`, refusing unknown names with a suggestion."""
    known = {field.name for field in dataclasses.fields(RunOptions)}
    if unknown := sorted(set(options) - known):
        raise ConfigurationError(f"unknown option {unknown[0]}{suggest(unknown[0], known)}")
    return RunOptions(simulate=simulate, **options)
