"""Run folders for self-tests: real settings, real noise plans and real ledgers, without a model
being trained.

What a test changes is given as arguments; nothing here is reachable from a job.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save_file

from fedtree_dp import Event, Gaussian, Ledger, PoissonGaussian, PrivacyBudget
from fedtree_dp.account.accounting import merge
from fedtree_secagg import Identity
from fedtree_secure.testing import (
    SERVER,
    Job,
    Masking,
    NoisePlan,
    Record,
    Topology,
    Training,
    Transcript,
    node_name,
    plan_noise,
    write_manifest,
)

CLIENTS = tuple(f"c{i}" for i in range(6))
Charge = tuple[Event, str]
RUN = "0123456789abcdef"


def specimen_job(**changes: Any) -> Job:
    """Return a small job."""
    given: dict[str, Any] = {
        "backbone": "specimen",
        "privacy": PrivacyBudget(epsilon=8, delta=1e-5),
        "rounds": 3,
        "training": Training(records=200, sample_rate=0.2, head_steps=10),
        "topology": Topology(source="lora_b", warmup_steps=4),
        "masking": Masking(min_group=3, colluders=1),
    }
    return Job(**{**given, **changes})


@functools.lru_cache(maxsize=1)
def _plan() -> NoisePlan:
    job = specimen_job()
    return plan_noise(job, job.privacy)


def charges(job: Job, plan: NoisePlan) -> list[Charge]:
    """Return what an honest client charges, in order."""
    training, found = job.training, list[Charge]()
    if job.topology.source == "fingerprint":
        found.append((Gaussian(plan.fingerprint), "fingerprint"))
    if job.topology.source == "lora_b":
        found.append(
            (
                PoissonGaussian(plan.warm_up, training.sample_rate, job.topology.warmup_steps),
                "warm-up",
            )
        )
    if job.head_steps:
        found.append(
            (PoissonGaussian(plan.head, training.head_sample_rate, job.head_steps), "head")
        )
    one = PoissonGaussian(plan.rounds, training.sample_rate, training.local_steps)
    return found + [(one, f"round {number}") for number in range(1, job.rounds + 1)]


def build_run(
    folder: Path,
    *,
    change: Callable[[list[Charge]], list[Charge]] = lambda found: found,
    groups: Sequence[Sequence[str]] = (CLIENTS,),
    records: Sequence[dict[str, Any]] | None = None,
    claimed: float | None = None,
    ledgers: bool = True,
    told: Mapping[str, Any] = MappingProxyType({}),
    journal_fits: bool = False,
) -> Path:
    """Write a run folder of six clients.

    Args:
        folder: new or empty.
        change: what the first client's program does to the charges it should make.
        groups: released groups of the one layer.
        records: the rounds' records; by default every group is opened with all members in every
            round.
        claimed: epsilon in the summary, where it shall not be the ledger's.
        ledgers: whether ledgers and what clients write are made at all; else only what the server
            knows.
        told: what else the summary says.
        journal_fits: whether the first client's journal says what was charged, not what was done.
    """
    job = specimen_job()
    plan = _plan() if ledgers else NoisePlan()
    opened = {node_name(sorted(group)): sorted(group) for group in groups}
    rounds = (
        records
        if records is not None
        else [
            {"round": number, "opened": opened, "closed": [], "error": ""}
            for number in range(job.rounds + 1)
        ]
    )
    (folder / "ledgers").mkdir(parents=True)
    reports: dict[str, Any] = {name: {"dataset": name} for name in CLIENTS}
    for name in CLIENTS if ledgers else ():
        honest = charges(job, plan)
        made = change(honest) if name == CLIENTS[0] else honest
        reports[name] = _charged(folder / "ledgers" / f"{name}.sqlite", name, job, made, claimed)
        _write(folder / "clients" / name / "noise.json", dataclasses.asdict(plan))
        released = {purpose: 1 for _, purpose in (made if journal_fits else honest)}
        record = Record(round=job.rounds, finished=["head", "all"], releases=released)
        _write(folder / "clients" / name / "journal.json", record.public())
    described = {name: {"dataset": name, "records": None} for name in CLIENTS}
    _write(
        folder / "job.json", {"format": 2, "run": RUN, "job": job.to_dict(), "clients": described}
    )
    keys = {name: identity(name).public_bytes.hex() for name in CLIENTS}
    _write(folder / "roster.json", {"clients": keys, "server": identity(SERVER).public_bytes.hex()})
    layers = [
        {"layer": 0, "clusters": [list(g) for g in groups], "released": [list(g) for g in groups]}
    ]
    _write(
        folder / "summary.json",
        {"job": job.to_dict(), "clients": reports, "layers": layers, "rounds": rounds, **told},
    )
    return folder


def identity(client: str) -> Identity:
    """The signing key of a client."""
    return Identity(hashlib.sha256(b"specimen " + client.encode()).digest())


def _signing_key(client: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(identity(client).to_private_bytes())


def deliver(folder: Path, seed: int = 0) -> None:
    """Add what a finished run delivers to a folder made by `build_run`: adapters, messages, roster,
    signed manifest.

    Args:
        folder: of the run.
        seed: of the adapters' values and of the bytes that stand for uploads.
    """
    rng = np.random.default_rng([seed, 23])
    for name in CLIENTS:
        place = folder / "adapters" / name
        place.mkdir(parents=True)
        save_file(
            {f"layer{i}.lora_B": rng.normal(size=(8, 2)) for i in range(2)},
            place / "adapter_model.safetensors",
        )
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    transcript = Transcript(folder / "transcript.txt", folder / "messages.bin")
    for record in summary["rounds"]:
        for name in sorted({name for survivors in record["opened"].values() for name in survivors}):
            transcript.record(SERVER, name, f"round-{record['round']}/mask", rng.bytes(16))
            transcript.record(name, SERVER, f"round-{record['round']}/mask", rng.bytes(64))
    transcript.close()
    write_manifest(folder, RUN, {name: identity(name) for name in CLIENTS})


def _charged(
    path: Path, name: str, job: Job, made: list[Charge], claimed: float | None
) -> dict[str, Any]:
    ledger, checkpoints, spent, events = _ledger(name, job.privacy, tuple(made))
    path.write_bytes(ledger)
    path.with_suffix(".checkpoints").write_bytes(checkpoints)
    return {
        "dataset": name,
        "epsilon_spent": spent if claimed is None else claimed,
        "events": list(events),
        "epsilon_allowed": job.privacy.epsilon,
        "delta": job.privacy.delta,
    }


@functools.lru_cache(maxsize=64)
def _ledger(
    name: str, budget: PrivacyBudget, made: tuple[Charge, ...]
) -> tuple[bytes, bytes, float, tuple[dict[str, Any], ...]]:
    """A real ledger's bytes, its checkpoint, epsilon and events: made once, because each charge
    waits for the disk.
    """
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"{name}.sqlite"
        with Ledger.open(path, dataset=name, budget=budget) as ledger:
            for event, purpose in made:
                ledger.charge(event, job=RUN, purpose=purpose)
            ledger.keep_checkpoint(path.with_suffix(".checkpoints"), _signing_key(name))
            spent, events = (
                ledger.spent(),
                tuple(event.to_dict() for event in merge(ledger.events())),
            )
        return path.read_bytes(), path.with_suffix(".checkpoints").read_bytes(), spent, events


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
