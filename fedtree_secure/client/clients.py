"""What must hold of a list of clients before any of their rows is looked at."""

from collections.abc import Sequence

from fedtree_dp import DPError
from fedtree_secure.agreed.graph import check_graph
from fedtree_secure.agreed.noise_plan import plan_noise
from fedtree_secure.client.data import Client
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError


def check_clients(job: Job, clients: Sequence[Client]) -> None:
    """Refuse a list of clients that no run could be made of.

    Raises:
        ConfigurationError: Too few, two with one name, or a budget that does not fit the records.
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
    for client in clients:
        budget = client.privacy or job.privacy
        if job.noise == "shared" and client.records not in (None, job.training.records):
            raise ConfigurationError(
                f'client {client.id}: it declares {client.records} records; with noise = "shared" '
                f"all have one divisor, training.records = {job.training.records}: leave out the "
                "client's own"
            )
        budget.check_records(client.records or job.training.records)
        try:  # on a data set of which nothing is spent: what fails there fails everywhere
            plan_noise(job, budget)
        except DPError as error:
            raise ConfigurationError(f"client {client.id}: {error}") from None
