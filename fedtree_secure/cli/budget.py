"""`fedtree-secure budget`: what a plan costs, and the number that it lacks."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts
from cyclopts import Parameter

from fedtree_secure.cli.screen import console

if TYPE_CHECKING:
    from fedtree_secure.report.priced_plan import PricedPlan

budget_app = cyclopts.App(
    name="budget", help="What a plan costs, and the noise, epsilon, rounds or batch that it lacks."
)
TRAINED_VALUES = 9216  # of rank 4 on query and value of MiniLM-L6, A frozen
TrainedValues = Annotated[int, Parameter(help="Trained values d, for the noise column.")]
JobsTrainedValues = Annotated[
    int | None,
    Parameter(help="Trained values d, for the noise column; a job's own, or else 9216."),
]
Solved = Literal["noise", "epsilon", "rounds", "batch"]


@budget_app.default
def budget(
    *,
    epsilon: float,
    delta: float,
    records: int,
    batch: float,
    rounds: int,
    local_steps: int = 1,
    trained_values: TrainedValues = TRAINED_VALUES,
) -> int:
    """Show the noise multiplier that a plan needs, and what other choices would cost.

    Parameters
    ----------
    epsilon, delta
        Budget of each client.
    records
        Declared training records n of a client.
    batch
        Expected records in a step, q n.
    rounds
        Aggregation rounds.
    local_steps
        DP-SGD steps of a client in a round.
    """
    from fedtree_secure.report.priced_plan import budget_table

    console.print(budget_table(epsilon, delta, records, batch, rounds, local_steps, trained_values))
    return 0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers of a plan without a job file; each is an option of its own."""

    epsilon: Annotated[float | None, Parameter(help="Budget of each client.")] = None
    noise: Annotated[float | None, Parameter(help="Noise multiplier of a step in the rounds.")] = (
        None
    )
    rounds: Annotated[int | None, Parameter(help="Aggregation rounds.")] = None
    batch: Annotated[float | None, Parameter(help="Expected records in a step, q n.")] = None
    delta: Annotated[float | None, Parameter(help="Budget of each client.")] = None
    records: Annotated[int | None, Parameter(help="Declared training records n of a client.")] = (
        None
    )
    local_steps: Annotated[
        int | None, Parameter(help="DP-SGD steps of a client in a round; 1 if not given.")
    ] = None

    def by_name(self) -> dict[str, float | None]:
        """Return the numbers under the names of their options."""
        return {name.replace("_", "-"): value for name, value in vars(self).items()}


_NONE = Numbers()


@budget_app.command
def plan(
    numbers: Numbers = _NONE,
    *,
    job: Path | None = None,
    solve: Solved | None = None,
    trained_values: JobsTrainedValues = None,
    plot: Path | None = None,
) -> int:
    """Complete a plan by the one number that it lacks; show epsilon against rounds, batch and
    noise.

    Give three of --epsilon, --noise, --rounds and --batch together with --delta and --records, or a
    job file.

    Parameters
    ----------
    job
        TOML job file: its stages, clients and budgets are planned; solves for the noise unless
        --solve says otherwise.
    solve
        With --job: the number that is solved for; all but `noise` need --noise.
    plot
        PNG file for the three curves.
    """
    from fedtree_secure.report.priced_plan import require_numbers

    require_numbers(numbers.by_name(), solve, has_job=job is not None)
    found = _priced(numbers, job, solve or "noise", trained_values)
    if plot is not None:
        from fedtree_secure.report.plan_curves import draw_plans

        draw_plans(found, plot)
    for priced in found:
        console.print(priced.table())
    if plot is not None:
        console.print(f"Plot: {plot}", highlight=False)
    return 0


def _priced(
    numbers: Numbers, job: Path | None, unknown: Solved, trained_values: int | None
) -> "list[PricedPlan]":
    from fedtree_secure.report.priced_plan import price_job_file, price_numbers

    if job is not None:
        return price_job_file(
            job, noise_multiplier=numbers.noise, unknown=unknown, parameters=trained_values
        )
    assert numbers.delta is not None  # `require_numbers` refused a plan without
    assert numbers.records is not None
    return [
        price_numbers(
            epsilon=numbers.epsilon,
            noise_multiplier=numbers.noise,
            rounds=numbers.rounds,
            batch=numbers.batch,
            delta=numbers.delta,
            records=numbers.records,
            local_steps=numbers.local_steps or 1,
            parameters=trained_values or TRAINED_VALUES,
        )
    ]
