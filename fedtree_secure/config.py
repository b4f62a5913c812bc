"""What a job is: frozen dataclasses; `job_file` reads them from TOML with the same names.

All values here are public: they are hashed into every masking session, so that a client that was
given another configuration derives other masks. No value is ever read from private data; in
particular the sample rate and the divisor of an averaged gradient are constants of the
configuration (PRIVACY: add/remove adjacency needs this).
"""

import dataclasses
import hashlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import rfc8785

from fedtree_dp import PrivacyBudget, PrivacyUnit
from fedtree_secure.budgets import Budgets, check_budgets
from fedtree_secure.checks import count, is_a, one_of, require
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.settings import (
    Cohort,
    Cut,
    GraphKind,
    HeadMode,
    HeadRelease,
    Linkage,
    Lora,
    Masking,
    Noise,
    Pacing,
    Pooling,
    Server,
    Source,
    Task,
    Topology,
    Training,
)

__all__ = [
    "Cohort",
    "Cut",
    "GraphKind",
    "HeadMode",
    "HeadRelease",
    "Job",
    "Linkage",
    "Lora",
    "Masking",
    "Noise",
    "Pacing",
    "Pooling",
    "Server",
    "Source",
    "Task",
    "Topology",
    "Training",
]

_PARTS: dict[str, type] = {
    "lora": Lora,
    "training": Training,
    "topology": Topology,
    "masking": Masking,
    "cohort": Cohort,
    "server": Server,
    "pacing": Pacing,
}
# Settings that came later, with the value that a job without them has.
_SINCE: dict[str, dict[str, Any]] = {
    "masking": {"graph": "auto", "dropouts": None},
    "training": {
        "head_release": "auto",
        "precision": "float32",
        "keep_activations": True,
        "activations_in_memory": 64,
    },
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """The public description of a federated job; equal on the server and on every client.

    Attributes:
        backbone: Local folder, GGUF file or hub id of the frozen model.
        privacy: Budget of each client, for its data set, over all jobs on the same ledger.
        rounds: Aggregation rounds.
        task: What the model learns.
        seed: Public seed of the initial adapter and head values. Never reaches noise, sampling or
            keys.
        lora, training, topology, masking, cohort, server, pacing: See there.
        unit: What is protected, where that is more than a row: the column that names each row's
            unit, such as ``patient_id``. All rows of a unit are sampled together, and one clip
            bounds them together, in every mechanism. Declared sizes (`Training.records`,
            `Client.records`) then count units. None protects single rows.
        max_per_unit: Rows of one unit that are trained on, at least 1; of a unit with more, the
            first of its file. Given together with ``unit``.
        noise: ``own``: each client's noise protects it whatever others do. ``shared``: in rounds,
            each member of a sum adds a part, so that the noise of the honest ones together is what
            epsilon asks for; then epsilon holds while at least ``masking.honest`` members of every
            opened sum are honest, and ``privacy.own_epsilon`` whatever they do (dp/SPEC.md, section
            10). All else that a client computes keeps its own full noise.
        budgets: Of clients that promise less than ``privacy``, by client id; at most ``privacy`` in
            every number. Public and agreed like all of the job (docs/budgets.md).
    """

    backbone: str
    privacy: PrivacyBudget
    rounds: int = 10
    task: Task = "classification"
    seed: int = 0
    lora: Lora = field(default_factory=Lora)
    training: Training = field(default_factory=Training)
    topology: Topology = field(default_factory=Topology)
    masking: Masking = field(default_factory=Masking)
    cohort: Cohort = field(default_factory=Cohort)
    server: Server = field(default_factory=Server)
    pacing: Pacing = field(default_factory=Pacing)
    unit: str | None = None
    max_per_unit: int | None = None
    noise: Noise = "own"
    budgets: Mapping[str, PrivacyBudget] = field(default_factory=lambda: Budgets({}))

    def __post_init__(self) -> None:
        place: object = self.backbone  # a caller may give a path, whatever the annotation says
        if isinstance(place, Path):
            object.__setattr__(self, "backbone", str(place))
        self._check_unit()
        require(
            isinstance(self.backbone, str) and bool(self.backbone),
            "backbone",
            self.backbone,
            "a local folder, a .gguf file or a hub id",
        )
        require(
            self.task in typing.get_args(Task),
            "task",
            self.task,
            " or ".join(typing.get_args(Task)),
        )
        is_a(PrivacyBudget, "privacy", self.privacy)
        for name, kind in _PARTS.items():
            is_a(kind, name, getattr(self, name))
        count("rounds", self.rounds, least=0)
        count("seed", self.seed, least=0)
        if self.task == "causal-lm":
            heads = ("auto", "frozen")
            require(
                self.training.head in heads,
                "training.head",
                self.training.head,
                "frozen for causal-lm",
            )
            require(
                self.training.head_release != "class_sums",
                "training.head_release",
                self.training.head_release,
                "auto or average for causal-lm, which has no head",
            )
        if self.training.head_release == "class_sums":
            require(
                self.topology.source != "lora_b",
                "training.head_release",
                self.training.head_release,
                'auto or average with topology.source = "lora_b", because its merge has a grid for '
                "trained changes",
            )

        if self.topology.cut == "noise_aware":
            require(
                self._has_gradients,
                "topology.cut",
                self.topology.cut,
                'auto or silhouette, unless topology.source is "fingerprint" and '
                "training.local_steps is 1",
            )
        require(
            not self.cohort.late or self.topology.source in ("fingerprint", "one_group"),
            "cohort.late",
            self.cohort.late,
            'false, unless topology.source is "fingerprint" or "one_group": a warm-up is merged '
            "once, before the first round",
        )
        one_of(Noise, "noise", self.noise)
        if self.noise == "shared":
            self._check_shared()
        budgets = Budgets(self.budgets)
        object.__setattr__(self, "budgets", budgets)
        check_budgets(budgets, self.privacy, shared=self.noise == "shared")

    def _check_shared(self) -> None:
        """Refuse what would show, or read, a client's part of the noise alone."""
        if self.privacy.own_epsilon is None:
            raise ConfigurationError(
                'privacy.own_epsilon is not given; with noise = "shared" say which epsilon each '
                "client's own noise must keep whatever all others do, at least epsilon "
                f"{self.privacy.epsilon:g}"
            )
        shared = 'with noise = "shared"'
        require(
            self.training.local_steps == 1,
            "training.local_steps",
            self.training.local_steps,
            f"1 {shared}, because a second step would read the client's own, weakly noised values",
        )
        require(
            self.topology.source in ("fingerprint", "one_group"),
            "topology.source",
            self.topology.source,
            f"fingerprint or one_group {shared}, because a warm-up takes local steps and without "
            "groups nobody shares noise",
        )
        require(
            self.topology.cut != "noise_aware",
            "topology.cut",
            self.topology.cut,
            f"auto or silhouette {shared}, because a sketch would show each client's gradient with "
            "its own part of the noise alone",
        )
        require(self.rounds > 0, "rounds", self.rounds, f"at least 1 {shared}, which is in rounds")

    def _check_unit(self) -> None:
        if self.unit is None and self.max_per_unit is None:
            return
        if self.unit is None or self.max_per_unit is None:
            missing = "unit" if self.unit is None else "max_per_unit"
            given = "max_per_unit" if self.unit is None else "unit"
            raise ConfigurationError(
                f"{given} is {getattr(self, given)!r} and {missing} is not given; give both, so "
                "that what is protected and its bound are agreed, or neither, which protects "
                "single rows"
            )
        PrivacyUnit(self.unit, self.max_per_unit)

    @property
    def privacy_unit(self) -> PrivacyUnit | None:
        """What is protected; None for single rows."""
        if self.unit is None or self.max_per_unit is None:
            return None
        return PrivacyUnit(self.unit, self.max_per_unit)

    def budget_of(self, client: str) -> PrivacyBudget:
        """What a client agreed to spend on its data set, over all jobs on the same ledger."""
        return self.budgets.get(client, self.privacy)

    def expected_rows(self, sample_rate: float, declared: int) -> float:
        """Rows that a step is laid out for, from public numbers: of a unit half its bound, as if
        all sizes up to the bound were equally frequent.
        """
        return sample_rate * declared * (1 + (self.max_per_unit or 1)) / 2

    @property
    def _has_gradients(self) -> bool:
        return self.topology.source == "fingerprint" and self.training.local_steps == 1

    @property
    def weighs_noise(self) -> bool:
        """Whether the tree is cut by bias and variance, on the first round's gradients; never where
        these hold a part of the noise alone.
        """
        wanted = self.topology.cut != "silhouette" and self.noise == "own"
        return wanted and self._has_gradients and self.rounds > 0

    @property
    def head(self) -> HeadMode:
        """The head mode that applies to this task."""
        if self.training.head != "auto":
            return self.training.head
        return "group" if self.task == "classification" else "frozen"

    @property
    def head_steps(self) -> int:
        """Steps of the head alone before the first round; a frozen head takes none."""
        return 0 if self.head == "frozen" else self.training.head_steps

    def to_dict(self) -> dict[str, Any]:
        """Return plain values under the names that the TOML file uses."""
        # A job without a unit, with own noise, a fixed cohort and one budget reads and hashes as it
        # did before there were others.
        plain: dict[str, Any] = {"unit": None, "max_per_unit": None, "noise": "own"}
        plain["cohort"] = dataclasses.asdict(Cohort())
        values = {**dataclasses.asdict(self), "budgets": Budgets(self.budgets).to_dict()}
        plain["budgets"] = {}
        given = {
            name: value
            for name, value in values.items()
            if name not in plain or value != plain[name]
        }
        given["privacy"] = self.privacy.to_dict()
        for part, usual in _SINCE.items():  # likewise
            given[part] = {
                name: value
                for name, value in given[part].items()
                if name not in usual or value != usual[name]
            }
        # asdict: msgspec keeps defaults out of the instance dictionary, which is all that it would
        # read here
        return typing.cast("dict[str, Any]", msgspec.json.decode(msgspec.json.encode(given)))

    def digest(self) -> bytes:
        """SHA-256 over the canonical JSON (RFC 8785) of all settings but the backbone's place.

        The same model may lie in another folder of every party; that it is the same model is
        compared by `ModelFacts.digest`.
        """
        settings = {name: value for name, value in self.to_dict().items() if name != "backbone"}
        return hashlib.sha256(b"fedtree-secure/job/v2\n" + rfc8785.dumps(settings)).digest()
