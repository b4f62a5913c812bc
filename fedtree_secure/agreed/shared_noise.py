"""Noise that the members of a sum share: how much each adds, on which grid, and what it counts on.

Everything here follows from the terms alone, so every member computes the same, and a server can
change none of it. The smallest sum that opens has `Masking.min_group` survivors, and of at most
`Masking.colluders` of them, of one at least, an observer may know the noise: the others are counted
on, whatever size a group has or is said to have. The argument is dp/SPEC.md, section 10.
"""

import math
from dataclasses import dataclass

from fedtree_dp import SharedPoissonGaussian
from fedtree_dp.account.shared import deviation_for
from fedtree_secagg import Plan, Quantiser
from fedtree_secure.agreed.round_plan import ROOM_OF_A_MEAN, largest_change, quantiser_of
from fedtree_secure.agreed.terms import Terms


def shared_event(terms: Terms) -> SharedPoissonGaussian:
    """Return what a round is charged to a client that is in a sum."""
    assert terms.shared_noise is not None
    return SharedPoissonGaussian(
        terms.shared_noise, terms.job.training.sample_rate, 1, terms.job.masking.honest
    )


def shared_clip(terms: Terms) -> float:
    """Return the one clip of a round with shared noise. All members have one divisor and add the
    same noise, so there is nothing to choose.
    """
    assert terms.shared_noise is not None
    job = terms.job
    return largest_change(job, terms.shared_noise, job.training.records, merge=False)


@dataclass(frozen=True)
class Release:
    """How a member's gradient sum leaves it.

    Attributes:
        step: Size of a grid step, in the units of the clipped sum.
        deviation: Of its discrete Gaussian noise, in grid steps.
        limit: Largest magnitude of a value before its noise, in grid steps.
        at_home: Noise multiplier of what the same step leaves at home: that of all honest members
            together, and rounding.
    """

    step: float
    deviation: float
    limit: int
    at_home: float


def release_of(terms: Terms, plan: Plan) -> Release:
    """Return how a round of this plan releases.

    Rounding is paid for as if everybody uploaded the whole layout: members of other nodes would
    else add less noise than this one needs.

    Raises:
        fedtree_dp.ConfigurationError: The grid is too coarse.
    """
    return _release(terms, plan.quantiser, plan.length)


def check_grid(terms: Terms, values: int) -> None:
    """Refuse a job whose largest possible group would have too coarse a grid, before anything is
    charged.

    Args:
        terms: See there.
        values: Of the whole layout.

    Raises:
        fedtree_dp.ConfigurationError: See above.
    """
    everybody = len(terms.names)
    _release(terms, quantiser_of(terms.job, shared_clip(terms), everybody, merge=False), values)


def _release(terms: Terms, quantiser: Quantiser, values: int) -> Release:
    job, event = terms.job, shared_event(terms)
    expected = job.training.sample_rate * job.training.records
    step = quantiser.step * expected  # the quantiser speaks of means
    noise = deviation_for(event.noise_multiplier, job.training.max_grad_norm / step, values)
    limit = math.floor(ROOM_OF_A_MEAN * job.training.max_grad_norm / quantiser.step)
    at_home = event.together().noise_multiplier * (1.0 + noise.margin)
    return Release(step, noise.deviation, limit, at_home)


def honest_in(plan: Plan) -> int:
    """Return the honest members of the smallest sum that a plan can open.

    A node opens with `min_group` survivors, of whatever size it is; see `Masking.honest`.
    """
    return plan.min_group - max(plan.colluders, 1)
