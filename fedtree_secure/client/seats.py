"""What every private step checks and says of units, and the shape of its physical batches."""

import torch

from fedtree_dp.account.unit import name_of
from fedtree_dp.sgd.shapes import PhysicalBatch, slots_for
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError


def check_units(job: Job, units: object) -> None:
    """Refuse rows whose units the job does not protect, or that have none where it does.

    Raises:
        ConfigurationError: They are or have not.
    """
    if (job.privacy_unit is None) != (units is None):
        raise ConfigurationError(
            f"the job protects {name_of(job.privacy_unit)}s, and the rows have "
            f"{'no' if units is None else ''} units; prepare them for this job"
        )


def slots_of(job: Job, records: int) -> int:
    """Rows of a physical batch of a round's steps, from public numbers alone.

    Args:
        records: Declared size of the training set.
    """
    settings = job.training
    expected = job.expected_rows(settings.sample_rate, records)
    return slots_for(expected, settings.physical_batch_size)


def marks_of(plan: PhysicalBatch, device: "torch.device | str") -> dict[str, torch.Tensor]:
    """What tells the engine which rows belong together; nothing where each row is by itself."""
    if not plan.units:
        return {}
    unit, last = torch.tensor(plan.units), torch.tensor(plan.last)
    return {"unit": unit.to(device), "last": last.to(device)}
