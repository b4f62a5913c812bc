"""What must hold of a list of clients before any of their rows is looked at."""

from collections.abc import Mapping, Sequence

from fedtree_dp import DPError
from fedtree_secure.agreed.graph import check_graph
from fedtree_secure.agreed.noise_plan import plan_noise
from fedtree_secure.agreed.outliers import CLIP_OUTLIER, outliers
from fedtree_secure.agreed.round_plan import largest_change
from fedtree_secure.client.data import Client
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.job_budgets import check_known, with_own


def check_clients(job: Job, clients: Sequence[Client]) -> Job:
    """Refuse a list of clients that no run could be made of.

    Returns:
        The job with each client's own budget in it, where everybody sees it.

    Raises:
        ConfigurationError: Too few, two with one name, or a budget that does not fit the records,
            the job's, or what the job computes.
    """
    if not isinstance(clients, Sequence) or not all(isinstance(c, Client) for c in clients):
        raise ConfigurationError(
            f"clients is a {type(clients).__name__}; allowed: a list of Client(...)"
        )
    least = job.masking.min_group
    if len(clients) < least:
        raise ConfigurationError(
            f"{len(clients)} clients were given; at least masking.min_group = {least} are needed, "
            "because no sum over fewer is ever opened"
        )
    check_graph(job.masking, len(clients))
    named = (("id", [c.id for c in clients]), ("dataset", [c.dataset or c.id for c in clients]))
    for what, names in named:
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ConfigurationError(
                f"two clients have the {what} {min(twice)!r}; each needs its own"
            )
    check_known(job, [c.id for c in clients])
    job = with_own(job, {c.id: c.privacy for c in clients})
    bounds: dict[str, float] = {}
    for client in clients:
        budget = job.budget_of(client.id)
        if job.noise == "shared" and client.records not in (None, job.training.records):
            raise ConfigurationError(
                f'client {client.id}: it declares {client.records} records; with noise = "shared" '
                f"all have one divisor, training.records = {job.training.records}: leave out the "
                "client's own"
            )
        size = client.records or job.training.records
        budget.check_records(size)
        try:  # on a data set of which nothing is spent: what fails there fails everywhere
            plan = plan_noise(job, budget, agreed=budget)
        except DPError as error:
            raise ConfigurationError(f"client {client.id}: {error}") from None
        bounds[client.id] = largest_change(job, plan.rounds, size, merge=False)
    if job.rounds and job.noise == "own":
        _check_bounds(job, bounds)
    return job


def _check_bounds(job: Job, bounds: Mapping[str, float]) -> None:
    """Refuse a budget so small that the server would leave its client out of every round."""
    if far := min(outliers(bounds), default=None):
        raise ConfigurationError(
            f"client {far}: at epsilon {job.budget_of(far).epsilon:g} its noise needs a grid more "
            f"than {CLIP_OUTLIER:g} times as wide as most others', on which theirs would be lost, "
            "so the server would leave it out; give it a larger budget or more records, or train "
            "without it"
        )
