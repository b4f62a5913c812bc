"""What stands behind `fedtree-secure budget`: what a plan needs, what other choices would cost, and
the unknown one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from fedtree_dp import Event, Gaussian, PrivacyBudget
from fedtree_dp.account import shared
from fedtree_dp.account.planner import Axis, Plan, PlanRow, Unknown, plan_table, solve, sweep
from fedtree_dp.account.statements import condition
from fedtree_dp.account.unit import name_of
from fedtree_secure.agreed.noise_plan import events_of, part_of, plan_noise, stages
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.job_file import ClientFiles, load_job
from fedtree_secure.model.sizes import known_pooling, trained_values
from fedtree_secure.report.advice import Advice, alike
from fedtree_secure.report.expected import of_features, of_noise
from fedtree_secure.report.head_release import release_said

# Epsilon of a plan is solved for at a delta; the epsilon beside it is then not looked at.
_ANY_EPSILON = 1.0


def budget_table(
    epsilon: float,
    delta: float,
    records: int,
    batch: float,
    rounds: int,
    local_steps: int,
    trained_values: int,
) -> Table:
    """Price a plan and its neighbours: other epsilons, batches and rounds.

    Args:
        epsilon, delta: Budget of a client.
        records: Declared training records of a client.
        batch: Expected records in a step.
        rounds: Aggregation rounds.
        local_steps: DP-SGD steps in a round.
        trained_values: d; the noise column is sigma sqrt(d) / batch, the noise's norm over the
            clipping norm.

    Raises:
        ConfigurationError: A number is out of range, or delta too large for the records.
    """
    budget = PrivacyBudget(epsilon=epsilon, delta=delta)
    budget.check_records(records)
    plan = Plan(
        records=records,
        sample_rate=_rate(batch, records),
        rounds=rounds,
        steps_per_round=local_steps,
        parameters=trained_values,
    )
    rows = plan_table(plan, budget)
    table = _table(f"n = {records} records, d = {trained_values} trained values, δ = {delta:g}")
    for index, row in enumerate(rows):
        table.add_row(*_cells(row), style="bold" if index == 0 else "")
    table.caption = (
        "first row: your plan, calibrated by PLD; the others change one choice at a time"
    )
    return table


@dataclass(frozen=True)
class PricedPlan:
    """A plan whose unknown number was found, and what its neighbours cost.

    Attributes:
        title: Whose plan it is.
        unknown: What was solved for.
        row: The completed plan.
        stages: Noise multiplier of each stage by name, the rounds' among them.
        allowed: Epsilon of the budget; None where epsilon was the unknown.
        counted: What n counts: records, or the job's units.
        honest_others: Where noise is shared: epsilon by the number of honest others in every sum,
            from what `epsilon` counts on down to none; else empty.
        part: Where noise is shared: the noise multiplier that one member of a sum adds.
        advice: What follows for the job's adapters, where there is a job file.
        heads: How a job makes the heads of groups, and why; empty where it shares none.
    """

    title: str
    unknown: Unknown
    row: PlanRow
    stages: dict[str, float]
    allowed: float | None
    counted: str = "record"
    honest_others: tuple[shared.Assumed, ...] = ()
    part: float | None = None
    advice: tuple[Advice, ...] = ()
    heads: str = ""

    @property
    def epsilon(self) -> float:
        """Epsilon that the whole plan reaches."""
        return self.row.epsilon

    @property
    def noise_multiplier(self) -> float:
        """Noise multiplier of a step in the rounds."""
        return self.row.noise_multiplier

    @property
    def noise_to_clip(self) -> float:
        """Norm of the noise in an averaged step over the clipping norm; of one client's part, where
        noise is shared.
        """
        if self.part is None:
            return self.row.signal_ratio
        return self.row.signal_ratio * self.part / self.row.noise_multiplier

    def curves(
        self, factors: Iterable[float] = (0.25, 0.5, 1.0, 2.0, 4.0)
    ) -> Mapping[Axis, tuple[PlanRow, ...]]:
        """Rows in which only the rounds, the batch or the noise are others, as multiples of the
        plan's own.
        """
        budget = PrivacyBudget(_ANY_EPSILON, self.row.delta)
        return sweep(
            self.row.plan, budget, noise_multiplier=self.row.noise_multiplier, factors=factors
        )

    def table(self) -> Table:
        """The completed plan in bold, then epsilon against rounds, batch and noise."""
        plan = self.row.plan
        noises = ", ".join(f"{name} {value:.4g}" for name, value in self.stages.items())
        table = _table(
            f"{self.title}: n = {plan.records} {self.counted}s, d = {plan.parameters} trained "
            f"values, δ = {self.row.delta:g}"
        )
        table.add_row(*_cells(self.row), style="bold", end_section=True)
        for rows in self.curves().values():
            others = [
                row
                for row in rows
                if (row.plan, row.noise_multiplier) != (plan, self.row.noise_multiplier)
            ]
            for row in others:
                table.add_row(*_cells(row), end_section=row is others[-1])
        table.caption = (
            f"first row: {self.unknown} solved for, by PLD; noise multipliers by stage: {noises}"
        )
        if self.part is not None:
            found = ", ".join(f"{row.others}: {row.epsilon:.4g}" for row in self.honest_others)
            honest = self.honest_others[0].others + 1
            table.caption += (
                f". Noise is shared: each member adds {self.part:.4g}; epsilon holds while "
                f"{condition(honest)}. By number of honest others: {found}"
            )
        if self.heads:
            table.caption += f". Heads of groups: {self.heads}"
        for advice in self.advice:
            table.caption += f". Advice: {advice.text}"
        return table


def require_numbers(
    numbers: Mapping[str, float | None], solve: str | None, *, has_job: bool
) -> None:
    """Refuse options that do not go together, before any of them could be ignored.

    Raises:
        ConfigurationError: Numbers beside a job file that has them itself, or a plan without delta
            or records.
    """
    given = [name for name, value in numbers.items() if value is not None]
    if has_job:
        if twice := [name for name in given if name != "noise"]:
            raise ConfigurationError(
                f"the job file has its own {', '.join(twice)}; change the file, or plan without it"
            )
        return
    if solve is not None:
        raise ConfigurationError(
            "solve is for job files; without one, leave out the number to solve for"
        )
    if lacking := [name for name in ("delta", "records") if name not in given]:
        raise ConfigurationError(
            f"a plan needs {' and '.join(lacking)}; or give a job file with --job"
        )


def price_job_file(
    path: Path,
    *,
    noise_multiplier: float | None = None,
    unknown: Unknown = "noise",
    parameters: int | None = None,
) -> list[PricedPlan]:
    """Complete the plan of a job file for every group of clients with the same budget and declared
    size.

    Args:
        path: TOML job file. The clients' rows are not read.
        noise_multiplier: Of the rounds' steps; the other stages are scaled along. Needed unless it
            is the unknown.
        unknown: What to solve for in place of the job's own number.
        parameters: d, trained values of a client; None for what the job's adapters have on its
            backbone, whose configuration is read.

    Raises:
        BackboneError: The backbone is missing, and ``parameters`` with it.
        ConfigurationError: The job has no rounds, or noise is missing or given where it is asked
            for.
        fedtree_dp.BudgetExceeded: No value of the unknown keeps the budget.
    """
    job, clients = load_job(path)
    if not job.rounds:
        raise ConfigurationError(f"{path} has no rounds; there is nothing to plan")
    if job.noise == "shared" and (unknown != "noise" or noise_multiplier is not None):
        given = f"solve is {unknown!r}" if unknown != "noise" else f"noise is {noise_multiplier:g}"
        raise ConfigurationError(
            f'{given}; with noise = "shared" solve for the noise alone: all clients add the same '
            "part, which follows from the job's epsilon and own_epsilon"
        )
    features = None
    if parameters is None:
        parameters, features = trained_values(job), of_features(job, known_pooling(job))

    groups: dict[tuple[PrivacyBudget, int], list[ClientFiles]] = {}
    for client in clients:
        key = (job.budget_of(client.id), client.records or job.training.records)
        groups.setdefault(key, []).append(client)
    found = []
    for (budget, records), members in groups.items():
        if job.noise == "shared":
            title = ", ".join(client.id for client in members)
            found.append(_price_shared(job, budget, (), parameters, title))
            continue
        plan = plan_of_job(job, budget, records, parameters)
        title = ", ".join(client.id for client in members)
        priced = price(
            plan,
            budget,
            unknown=unknown,
            noise_multiplier=noise_multiplier,
            title=title,
            job=job,
        )
        found.append(priced)
    together = zip(found, groups.values(), strict=True)
    noise = of_noise(
        job, alike(p.noise_to_clip for p, members in together for _ in members), len(clients)
    )
    return [replace(p, advice=tuple(filter(None, (features, noise)))) for p in found]


def plan_of_job(job: Job, budget: PrivacyBudget, records: int, parameters: int = 1) -> Plan:
    """The plan of one client: the job's stages in the planner's words.

    The fingerprint's noise is what its share of ``budget`` asks for, whatever is solved for.
    """
    budget.check_records(records)
    relative = stages(job)
    relative.pop("rounds")
    released = plan_noise(job, budget).fingerprint
    return Plan(
        records=records,
        sample_rate=job.training.sample_rate,
        rounds=job.rounds,
        steps_per_round=job.training.local_steps,
        parameters=parameters,
        releases=(Gaussian(released),) if released else (),
        stages=tuple(relative.values()),
    )


def price_job(
    job: Job, records: int, spent: Sequence[Event] = (), client: str | None = None
) -> PricedPlan:
    """Price a job for one client of a declared size.

    Args:
        spent: Events that its ledger holds already; they leave less for the job.
        client: Whose budget it has, where budgets differ; the job's if None.

    Raises:
        ConfigurationError: The job has no rounds.
        fedtree_dp.BudgetExceeded: What is left allows no useful plan.
    """
    if not job.rounds:
        raise ConfigurationError("the job has no rounds; there is nothing to plan")
    budget = job.privacy if client is None else job.budget_of(client)
    if job.noise == "shared":
        return _price_shared(job, budget, spent, trained_values(job), "plan")
    plan = plan_of_job(job, budget, records, trained_values(job))
    if not spent:
        return price(plan, budget, unknown="noise", noise_multiplier=None, title="plan", job=job)
    noise = plan_noise(job, budget, spent).rounds
    return price(plan, budget, unknown="epsilon", noise_multiplier=noise, title="plan", job=job)


def _price_shared(
    job: Job, budget: PrivacyBudget, spent: Sequence[Event], parameters: int, title: str
) -> PricedPlan:
    """Price a job with shared noise: its noise is that of all clients, and what it assumes stands
    beside it.
    """
    noise = plan_noise(job, budget, spent, agreed=budget)
    released = (Gaussian(noise.fingerprint),) if noise.fingerprint else ()
    relative = {
        name: replace(step, noise_multiplier=getattr(noise, name) / noise.rounds)
        for name, step in stages(job).items()
    }
    relative.pop("rounds")
    plan = Plan(
        records=job.training.records,
        sample_rate=job.training.sample_rate,
        rounds=job.rounds,
        steps_per_round=1,
        parameters=parameters,
        releases=released,
        stages=tuple(relative.values()),
    )
    found = price(
        plan, budget, unknown="epsilon", noise_multiplier=noise.rounds, title=title, job=job
    )
    return replace(
        found,
        unknown="noise",
        allowed=budget.epsilon,
        honest_others=shared.table((*spent, *events_of(job, noise)), budget.delta),
        part=part_of(job, noise.rounds),
    )


def price_numbers(
    *,
    epsilon: float | None,
    noise_multiplier: float | None,
    rounds: int | None,
    batch: float | None,
    delta: float,
    records: int,
    local_steps: int = 1,
    parameters: int = 1,
) -> PricedPlan:
    """Complete a plan of rounds alone; exactly one of the first four arguments is None, and is
    solved for.

    Raises:
        ConfigurationError: None or several of them are missing, or a value is out of range.
        fedtree_dp.BudgetExceeded: No value of the unknown keeps the budget.
    """
    given = {"epsilon": epsilon, "noise": noise_multiplier, "rounds": rounds, "batch": batch}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) != 1:
        raise ConfigurationError(
            f"give three of epsilon, noise, rounds and batch, and leave out the one to solve for; "
            f"missing now: {', '.join(missing) or 'none'}"
        )
    budget = PrivacyBudget(epsilon=_ANY_EPSILON if epsilon is None else epsilon, delta=delta)
    plan = Plan(
        records=records,
        sample_rate=1.0 if batch is None else _rate(batch, records),
        rounds=1 if rounds is None else rounds,
        steps_per_round=local_steps,
        parameters=parameters,
    )
    (unknown,) = missing
    return price(plan, budget, unknown=unknown, noise_multiplier=noise_multiplier, title="plan")  # type: ignore[arg-type]


def _rate(batch: float, records: int) -> float:
    """The sample rate of an expected batch."""
    if not 0 < batch <= records:
        raise ConfigurationError(
            f"batch is {batch:g}; allowed: above 0 and at most the {records} records"
        )
    return batch / records


def price(
    plan: Plan,
    budget: PrivacyBudget,
    *,
    unknown: Unknown,
    noise_multiplier: float | None,
    title: str,
    job: Job | None = None,
) -> PricedPlan:
    """Solve for the unknown number of a plan and price the neighbours of what was found."""
    row = solve(unknown, plan, budget, noise_multiplier=noise_multiplier)
    sigma = row.noise_multiplier
    named = {"rounds": sigma}
    for name, event in {} if job is None else stages(job).items():
        named[name] = event.noise_multiplier * sigma
    if row.plan.releases:
        named["fingerprint"] = row.plan.releases[0].noise_multiplier
    return PricedPlan(
        title=title,
        unknown=unknown,
        row=row,
        stages=named,
        allowed=None if unknown == "epsilon" else budget.epsilon,
        counted=name_of(None if job is None else job.privacy_unit),
        heads="" if job is None else release_said(job),
    )


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in (
        "ε",
        "rounds",
        "steps",
        "batch",
        "sample rate",
        "noise multiplier σ",
        "noise/clip σ√d/batch",
    ):
        table.add_column(column, justify="right")
    return table


def _cells(row: PlanRow) -> Sequence[str]:
    plan = row.plan
    return (
        f"{row.epsilon:.3g}",
        str(plan.rounds),
        str(plan.steps),
        f"{plan.batch:g}",
        f"{plan.sample_rate:.4g}",
        f"{row.noise_multiplier:.4f}",
        f"{row.signal_ratio:.2f}",
    )
