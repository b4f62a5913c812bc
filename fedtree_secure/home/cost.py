"""What a run will take: minutes, memory and bytes, from two private steps tried on made-up texts.

The texts are random tokens as long as the rows are, so the time is that of the rows and nothing is
computed on them.
"""

import resource
import sys
import time
from collections.abc import Sequence

import numpy as np

from fedtree_dp import NoiseSource
from fedtree_secure.agreed.head_release import answers_of_head
from fedtree_secure.client.kept import keep
from fedtree_secure.client.mechanism import Mechanism
from fedtree_secure.client.parts import LocalModel
from fedtree_secure.client.state import initial_state
from fedtree_secure.client.training import RoundTrainer
from fedtree_secure.config import Job
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.rows import ClientData, Table

TRIED = 64  # texts
RING_BYTES = 4  # of a masked value, at most
OVERHEAD, OVERHEAD_OF_A_PEER = 1500, 200  # bytes of a round: adverts, boxes, shares, confirmations
# Seconds of a run beside its steps: pricing, the report, and each message's keys and signatures.
FIXED, PER_CLIENT_AND_ROUND, PER_HEAD_STEP = 6.0, 0.15, 0.004


def estimate(job: Job, backbone: Backbone, data: Sequence[ClientData]) -> list[str]:
    """Return sentences on time, memory and bytes of a run of this job on this machine.

    Args:
        job: What would run.
        backbone: Its model.
        data: The clients' rows, of which only lengths are read.
    """
    public = _made_up(job, backbone, data[0])
    began = time.perf_counter()
    backbone.observe(public.train)
    row = (time.perf_counter() - began) / len(public.train)
    begin, record = _step_seconds(job, backbone, public)
    seconds = FIXED
    for client in data:
        rows = len(client.train) + (0 if client.test is None else len(client.test))
        batch = job.training.sample_rate * len(client.train)
        a_round = begin + PER_CLIENT_AND_ROUND + job.training.local_steps * batch * record
        seconds += rows * row + answers_of_head(job) * PER_HEAD_STEP + job.rounds * a_round
    where = f"on this machine ({backbone.device}), all clients one after another"
    return [
        f"time: about {_said(seconds)} {where}",
        f"memory: {_peak_mib():.0f} MiB so far, with a step of {job.training.max_length} tokens",
        f"bytes: about {_sent(job, backbone, len(data)) / 1e3:.0f} kB sent by a client",
    ]


def _made_up(job: Job, backbone: Backbone, like: ClientData) -> ClientData:
    rng = np.random.default_rng([job.seed, 0xF])
    lengths = [len(row) for row in like.train.tokens[:TRIED]]
    known = int(backbone.model.get_input_embeddings().weight.shape[0])
    tokens = tuple(tuple(rng.integers(known, size=n).tolist()) for n in lengths)
    outputs = len(like.label_set)
    labels = rng.integers(outputs, size=len(tokens)) if outputs else None
    units = like.train.units
    if units is not None:
        units = np.unique(units[:TRIED], return_inverse=True)[1]
    return ClientData(Table(tokens, labels, units), None, like.label_set, labels_declared=True)


def _step_seconds(job: Job, backbone: Backbone, public: ClientData) -> tuple[float, float]:
    """Seconds before a round's steps, and of one record in a step."""
    outputs, depth = len(public.label_set), backbone.experts.depth
    state = initial_state(backbone, outputs)
    model = LocalModel(outputs, (True,) * depth, np.zeros(depth, dtype=bool))
    members = public.train.members
    count = len(public.train) if members is None else len(members)
    kept = keep(backbone, job, public.train, count, None)
    trainer, took = RoundTrainer(backbone, job, kept=kept), []
    for steps in (1, 1, 2):  # the first is a warm-up of the process
        began = time.perf_counter()
        mechanism = Mechanism(1.0, count, steps)
        noise = NoiseSource.from_os()
        trainer.train(public, state, model, mechanism, noise, upload_gradient=False)
        took.append(time.perf_counter() - began)
    step = max(took[2] - took[1], 0.0)
    batch = max(job.training.sample_rate * len(public.train), 1.0)
    return max(took[1] - step, 0.0), step / batch


def _sent(job: Job, backbone: Backbone, clients: int) -> float:
    """Bytes that a client sends: masked values, adverts and shares of each round, and sketches."""
    values, rounds = backbone.layout().length, job.rounds + (job.head == "group")
    a_round = RING_BYTES * values + OVERHEAD + OVERHEAD_OF_A_PEER * clients
    sketches = 8 * job.topology.sketch_size if job.topology.source != "one_group" else 0
    if job.weighs_noise:
        sketches += 8 * job.topology.gradient_sketch_size * backbone.experts.depth
    return rounds * a_round + sketches


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _said(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
