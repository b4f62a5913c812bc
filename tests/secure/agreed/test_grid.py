"""What a client uploads lies on a grid that is coarser than float32 and finer than the noise."""

import dataclasses

import numpy as np
import pytest
import torch
from small_jobs import make_job

from fedtree_secagg import Quantiser
from fedtree_secure import Topology, Training
from fedtree_secure.agreed.round_plan import grid_bits, largest_change

GROUPS = (3, 9, 300)


def grid_of(job, noise, records, group, *, merge=False):
    clip = largest_change(job, noise, records, merge=merge)
    return Quantiser(clip=clip, bits=grid_bits(job, clip, group, merge=merge), saturate=True)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    ("noise", "records"), [(0.6, 60), (1.0, 800), (4.0, 800), (0.8, 20_000), (9.0, 100_000)]
)
def test_an_uploaded_gradient(group, noise, records):
    """Every float32 number of the noise's size is many to a step; every step is a small part of the
    noise.
    """
    job = make_job("unused", training=Training(records=records, sample_rate=0.2))
    deviation = noise * job.training.max_grad_norm / (0.2 * records)
    step = grid_of(job, noise, records, group).step
    assert step <= deviation / (
        1000 if group < 300 else 400
    )  # 300 clients' sum leaves 23 bits for a value
    assert step >= 4 * np.spacing(np.float32(4 * deviation))


@pytest.mark.parametrize("group", GROUPS)
def test_a_change_under_adam(group):
    training = Training(records=800, local_steps=4, learning_rate=4e-3, head="local")
    job = make_job("unused", training=training, topology=Topology(source="lora_b"))
    for merge in (False, True):
        step = grid_of(job, 1.0, 800, group, merge=merge).step
        assert step <= job.training.learning_rate / 100
        assert step >= 4 * np.spacing(np.float32(0.5))  # factors are smaller than that


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("source", ["fingerprint", "lora_b"])
def test_a_head_that_is_merged(group, source):
    job = make_job("unused", training=Training(), topology=Topology(source=source))
    step = grid_of(job, 1.0, 800, group, merge=True).step
    assert step <= job.training.head_learning_rate / 90
    assert step >= 4 * np.spacing(np.float32(16.0))  # farther than a head ever goes


def test_the_sum_of_a_group_fits_into_32_bits():
    job = make_job("unused")
    for group in (2, 3, 9, 300, 60_000):
        clip = largest_change(job, 1.0, 60, merge=False)
        assert group * (2 ** (grid_bits(job, clip, group, merge=False) - 1) - 1) < 2**31


def test_a_bound_that_is_none_gets_the_widest_grid():
    job = make_job("unused")
    assert grid_bits(job, 2.0 * job.training.max_grad_norm, 3, merge=False) == 30


def test_low_bits_of_float32_survive_a_fine_grid_and_not_ours():
    """A constant signal under float32 noise: sums of two float32 numbers leave a pattern that a
    fine grid keeps.

    Multiples of float32's own spacing are counted. Chance gives a quarter of them; the false-alarm
    rate of each bound is below 1e-9 (20,000 values, 10 standard deviations and more).
    """
    job = make_job("unused", training=Training(records=60, sample_rate=0.5))
    deviation = 1.0 / 30
    noise = torch.from_numpy(np.random.default_rng(0).normal(scale=deviation, size=20_000)).float()
    values = (
        noise + torch.tensor(0.4)
    ).numpy()  # the sum lies on the lattice of numbers between 1/4 and 1/2: 2^-25
    ours = grid_of(job, 1.0, 60, 3)
    fine = dataclasses.replace(ours, bits=30)
    lattice = 2.0**-25

    def share_on_lattice(grid):
        released = grid.decode(grid.quantise(values, bytes(32)).astype(np.int64))
        off = np.abs(released / lattice - np.round(released / lattice))
        return float((off < 0.125).mean())

    assert share_on_lattice(fine) > 0.5
    assert share_on_lattice(ours) == pytest.approx(0.25, abs=0.05)
