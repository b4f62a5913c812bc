"""Small jobs under a server that lies: who takes part, with which rows, in which build."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedtree_audits.rigs import needle
from fedtree_audits.rigs.federated import two_clusters
from fedtree_audits.rigs.liar import Liar
from fedtree_audits.rigs.parties import Casting, Parties, ample, open_parties
from fedtree_dp import DPSGD
from fedtree_secure.testing import (
    Backbone,
    Job,
    Lora,
    Masking,
    NoisePlan,
    Participant,
    Topology,
    Training,
    Tree,
    Workings,
)

NAMES = ("c0", "c1", "c2", "c3", "c4", "c5")
GROUP = NAMES[:3]
VICTIM = NAMES[0]
RECORDS = 8
REFUSED, TREE = "refused: experts", "refused: tree"
ABSURD = 1e20  # a learning rate under which no value is out of reach


@dataclass(frozen=True)
class Setup:
    """What a build consists of.

    Attributes:
        participant: Class of the clients.
        engine: What takes their steps.
        opening: Entered around the audit; a self-test removes a guard here.
    """

    participant: type[Participant] = Participant
    engine: type[DPSGD] = DPSGD
    opening: Callable[[], contextlib.AbstractContextManager[None]] = field(
        default=contextlib.nullcontext
    )


@dataclass(frozen=True)
class Stage:
    """One model and one build, on which jobs are set up.

    Attributes:
        backbone: With a needle in its vocabulary.
        folder: Where stores are kept, each job's in a folder of its own.
        setup: The build.
        key: 32 bytes that all randomness comes from.
    """

    backbone: Backbone
    folder: Path
    setup: Setup
    key: bytes

    @contextlib.contextmanager
    def liar(
        self,
        job: Job,
        *,
        names: tuple[str, ...] = GROUP,
        target: bool = False,
        noise: NoisePlan | None = None,
        engine: type[DPSGD] | None = None,
        tree: Tree | None = None,
    ) -> Iterator[Liar]:
        """Give a lying server and its clients.

        Args:
            job: Settings.
            names: The clients.
            target: Whether the victim has the target among its records.
            noise: Of the clients' stages.
            engine: In place of the build's.
            tree: Given to all clients; the job's own if None.
        """
        number = sum(1 for _ in self.folder.iterdir())
        casting = Casting(
            rows={
                name: needle.rows(RECORDS, i, target=target and name == VICTIM)
                for i, name in enumerate(names)
            },
            noise=noise or NoisePlan(rounds=1.0),
            key=self.key,
            workings=lambda _, randomness: Workings(
                randomness=randomness, engine=engine or self.setup.engine
            ),
            participant=self.setup.participant,
        )
        with contextlib.ExitStack() as stack:
            place = self.folder / f"job-{number}"
            parties = open_parties(stack, job, self.backbone, place, casting)
            if tree is not None:
                parties.give_tree(tree)
            yield Liar(parties, tree or one_group(parties))


def base_job(model: Path, source: str, rounds: int, **training: float) -> Job:
    """Return a job whose batches hold nearly everything and whose gradients are all clipped."""
    given = Job(
        backbone=str(model),
        privacy=ample(1e-6),
        rounds=rounds,
        task="causal-lm",
        lora=Lora(r=needle.RANK, alpha=2.0 * needle.RANK, freeze_a=False),
        masking=Masking(min_group=3, colluders=1),
        topology=Topology(source="one_group", sketch_size=16, cut="silhouette"),
        training=Training(records=RECORDS, sample_rate=0.9, max_length=32, max_grad_norm=1e-4),
    )
    return dataclasses.replace(
        given,
        topology=dataclasses.replace(given.topology, source=source),  # type: ignore[arg-type]
        training=dataclasses.replace(given.training, **training),  # type: ignore[arg-type]
    )


def one_group(parties: Parties) -> Tree:
    """Return the tree in which all clients share everything."""
    depth = parties.backbone.experts.depth
    return two_clusters(parties.terms.names, depth, depth, 0, parties.terms.job.masking.min_group)


def halves(stage: Stage) -> Tree:
    """Two groups of three, which share no layer: each is the external expert of the other."""
    return two_clusters(NAMES, 0, stage.backbone.experts.depth, 3, 3)


def said(answers: Mapping[str, str]) -> str:
    """Return answers as a detail of a check."""
    return ", ".join(f"{name}: {kind}" for name, kind in answers.items())
