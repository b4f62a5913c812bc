"""The table behind `fedtree-secure budget`: what a plan needs, and what other choices would cost."""

from rich.table import Table

from fedtree_dp import PrivacyBudget
from fedtree_dp.planner import plan_table


def budget_table(
    epsilon: float, delta: float, records: int, batch: float, rounds: int, local_steps: int, trained_values: int
) -> Table:
    """Price a plan and its neighbours: other epsilons, batches and rounds.

    Args:
        records: Declared training records of a client.
        batch: Expected records in a step.
        local_steps: DP-SGD steps in a round.
        trained_values: d; the noise column is sigma sqrt(d) / batch, the noise's norm over the clipping norm.
    """
    budget = PrivacyBudget(epsilon=epsilon, delta=delta)
    budget.check_records(records)
    rows = plan_table(
        budget, records=records, rounds=rounds, batch=batch, steps_per_round=local_steps, parameters=trained_values
    )
    table = Table(
        title=f"n = {records} records, d = {trained_values} trained values, δ = {delta:g}", title_justify="left"
    )
    for title in ("ε", "rounds", "steps", "batch", "sample rate", "noise multiplier σ", "noise/clip σ√d/batch"):
        table.add_column(title, justify="right")
    for index, row in enumerate(rows):
        plan = row.plan
        table.add_row(
            f"{row.epsilon:.3g}", str(plan.rounds), str(plan.steps), f"{plan.batch:g}", f"{plan.sample_rate:.4g}",
            f"{row.noise_multiplier:.4f}", f"{row.signal_ratio:.2f}", style="bold" if index == 0 else "",
        )  # fmt: skip
    table.caption = "first row: your plan, calibrated by PLD; the others change one choice at a time"
    return table
