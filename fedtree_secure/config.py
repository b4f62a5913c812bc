"""What a job is: frozen dataclasses; `job_file` reads them from TOML with the same names.

All values here are public: they are hashed into every masking session, so that a client that was
given another configuration derives other masks. No value is ever read from private data; in
particular the sample rate and the divisor of an averaged gradient are constants of the
configuration (PRIVACY: add/remove adjacency needs this).
"""

import dataclasses
import hashlib
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import rfc8785

from fedtree_dp import PrivacyBudget, PrivacyUnit
from fedtree_secure.errors import ConfigurationError

Task = Literal["classification", "causal-lm"]
HeadMode = Literal["auto", "group", "local", "frozen"]
Pooling = Literal["auto", "mean", "first", "last", "native"]
Source = Literal["fingerprint", "lora_b", "one_group", "none"]
Cut = Literal["auto", "noise_aware", "silhouette"]
Linkage = Literal["ward", "average", "complete", "single"]
Noise = Literal["own", "shared"]
GraphKind = Literal["auto", "complete", "sparse"]


def _require(holds: bool, name: str, given: object, allowed: str) -> None:
    if not holds:
        raise ConfigurationError(f"{name} is {given!r}; allowed: {allowed}")


def _is_number(given: object) -> bool:
    """Whether it is a finite number; text and truth values are none."""
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)


def _positive(name: str, given: float) -> None:
    _require(_is_number(given) and given > 0, name, given, "a finite number above 0")


def _count(name: str, given: int, least: int = 1) -> None:
    whole = isinstance(given, int) and not isinstance(given, bool)
    _require(whole and given >= least, name, given, f"a whole number of at least {least}")
    # Above this, JSON cannot say it exactly (RFC 8785), so no two parties could agree on it.
    _require(given < 2**53, name, given, f"a whole number of at most {2**53 - 1}")


def _one_of(kind: Any, name: str, given: object) -> None:
    allowed = typing.get_args(kind)
    _require(given in allowed, name, given, ", ".join(allowed))


def _is_a(kind: type, name: str, given: object) -> None:
    if not isinstance(given, kind):
        raise ConfigurationError(
            f"{name} is {given!r} ({type(given).__name__}); allowed: a {kind.__name__}(...)"
        )


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Where adapters sit and how large they are.

    Attributes:
        r: Rank of each factor pair; A is (r, d_in), B is (d_out, r).
        alpha: The adapter's output is scaled by alpha / r.
        targets: Names of the linear modules that get an adapter; empty means query and value of the
            architecture.
        freeze_a: Keep A at its public initial value (FFA-LoRA). Halves what is trained, noised and
            uploaded.
        last_layers: Adapters sit in this many of the last transformer layers; None for all.
    """

    r: int = 4
    alpha: float = 64.0
    targets: tuple[str, ...] = ()
    freeze_a: bool = True
    last_layers: int | None = None

    def __post_init__(self) -> None:
        names = self.targets
        listed = isinstance(names, list | tuple) and all(isinstance(n, str) for n in names)
        _require(listed, "lora.targets", names, 'a list of names, such as ["query", "value"]')
        object.__setattr__(self, "targets", tuple(names))
        _count("lora.r", self.r)
        _positive("lora.alpha", self.alpha)
        if self.last_layers is not None:
            _count("lora.last_layers", self.last_layers)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a client trains in a round. All of it runs inside DP-SGD.

    Attributes:
        records: Declared size of a client's training set: a rounded public constant, never
            measured; it counts units where the job names one (`Job.unit`). The divisor of an
            averaged gradient is ``sample_rate * records``. A client can declare its own
            (`Client.records`).
        sample_rate: Poisson sampling rate of a local step, in (0, 1]. 1, every record in every
            step, has no amplification by sampling and still the least noise for a step's mean, and
            costs the most time.
        local_steps: DP-SGD steps a round. 1: the noisy gradient itself is uploaded and the server's
            Adam moves the expert. More: a local Adam moves it and the server averages the changes
            (FedAvg, the paper's form).
        max_grad_norm: Joint L2 clipping norm C over all trainable values of a client.
        learning_rate: Of Adam on the adapters (at the server if local_steps is 1, at the client
            otherwise).
        head: ``group``: clients that declared the same label set share their head, at least
            `Masking.min_group` of them or it stays at home; ``local``: every client's own;
            ``frozen``: not trained; ``auto`` is ``group`` for classification and ``frozen`` for
            language modelling.
        head_steps: DP-SGD steps of the head alone on cached features before the first round; 0 for
            none. Heads of a group are trained at home, then averaged once in a masked sum.
        head_sample_rate: Poisson sampling rate of these steps.
        head_learning_rate: Of Adam on the head (and on lam).
        head_noise_ratio: Noise multiplier of the head's steps relative to that of the rounds.
        pooling: What of an encoder's last hidden states the head reads: their ``mean``, the
            ``first`` or ``last`` token's, or what the architecture's own classifier takes
            (``native``). ``auto`` reads the checkpoint's sentence-transformers configuration;
            without one it is ``native`` where that is pretrained, else ``mean``.
        max_length: Tokens a text is cut to.
        physical_batch_size: Records that are in memory at once; has no influence on the result.
    """

    records: int = 1000
    sample_rate: float = 1.0
    local_steps: int = 1
    max_grad_norm: float = 1.0
    learning_rate: float = 4e-3
    head: HeadMode = "auto"
    head_steps: int = 100
    head_sample_rate: float = 1.0
    head_learning_rate: float = 5e-2
    head_noise_ratio: float = 2.0
    pooling: Pooling = "auto"
    max_length: int = 64
    physical_batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("records", "local_steps", "max_length", "physical_batch_size"):
            _count(f"training.{name}", getattr(self, name))
        _count("training.head_steps", self.head_steps, least=0)
        for name in ("max_grad_norm", "learning_rate", "head_learning_rate", "head_noise_ratio"):
            _positive(f"training.{name}", getattr(self, name))
        for name in ("sample_rate", "head_sample_rate"):
            rate = getattr(self, name)
            holds = _is_number(rate) and 0 < rate <= 1
            _require(holds, f"training.{name}", rate, "above 0 and at most 1")
        _one_of(HeadMode, "training.head", self.head)
        _one_of(Pooling, "training.pooling", self.pooling)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """How the tree of client groups is found (FedTreeLoRA, section "layer-wise cuts", and its
    private form).

    Attributes:
        source: ``fingerprint``: DP means of the frozen backbone's hidden states; ``lora_b``: the B
            factors after a private warm-up alone (the paper); ``one_group``: one group for every
            layer (FedIT); ``none``: no group.
        fingerprint_share: Share of epsilon that the fingerprint may cost by itself.
        warmup_steps: DP-SGD steps that each client trains alone before the distances are taken
            (``lora_b``).
        cut: Where the merge tree is cut in each layer. ``noise_aware``: a split is made where it
            saves more bias than the noise it adds (see `agreed.cuts`), judged on the gradients
            of the first round, which costs no further budget; needs distances of fingerprints and
            one step a round. ``silhouette``: the paper's score, with a threshold that the noise
            sets. ``auto``: the first where it can be.
        gradient_sketch_size: The same as `sketch_size` for these gradients.
        linkage: Of the agglomerative clustering on the distances averaged over the layers.
        window: K, by how many clusters a layer may exceed the layer below it, plus one.
        significance: A split is made when its silhouette exceeds this quantile of silhouettes that
            groups-free clients with the same noise reach.
        sketch_size: Rows k of the secret projection; the relative error of a squared distance is
            sqrt(2 / k).
        mixing_weight: Weight (lam in the paper) of a client's own cluster against the external
            expert before the first round, in (0, 1); each client trains it on. The paper's is .5,
            which halves what a step on the own expert can do, while the noise stays
            (docs/utility.md).
    """

    source: Source = "fingerprint"
    fingerprint_share: float = 0.1
    warmup_steps: int = 8
    linkage: Linkage = "ward"
    window: int = 3
    significance: float = 0.99
    sketch_size: int = 256
    cut: Cut = "auto"
    gradient_sketch_size: int = 2048
    mixing_weight: float = 0.9

    def __post_init__(self) -> None:
        _one_of(Source, "topology.source", self.source)
        _one_of(Linkage, "topology.linkage", self.linkage)
        _one_of(Cut, "topology.cut", self.cut)
        for name in ("fingerprint_share", "mixing_weight"):
            share = getattr(self, name)
            _require(
                _is_number(share) and 0 < share < 1, f"topology.{name}", share, "between 0 and 1"
            )
        _require(
            _is_number(self.significance) and 0.5 <= self.significance < 1,
            "topology.significance",
            self.significance,
            "at least 0.5 and below 1",
        )
        for name in ("warmup_steps", "window"):
            _count(f"topology.{name}", getattr(self, name))
        for name in ("sketch_size", "gradient_sketch_size"):
            _count(f"topology.{name}", getattr(self, name), least=16)


@dataclass(frozen=True, kw_only=True)
class Masking:
    """What secure aggregation must withstand.

    Attributes:
        min_group: m: no sum over fewer clients is ever opened; at least 3.
        colluders: c: clients that may work with the server. Needs ``min_group >= colluders + 2``.
        graph: Who shares masks with whom. ``complete``: every two members of a sum. ``sparse``:
            each with a few, drawn by all clients together (`agreed.graph`), so that a client's
            work hardly grows with their number; it withstands `colluders`, and no more, but with a
            probability that the statement names. ``auto``: ``sparse`` from 100 clients on, where
            `colluders` is at least one client in 20 and all are there to draw; else ``complete``.
        dropouts: Clients that may drop out of a round that still opens; None for one in 20 where
            the graph is sparse, and for as many as the threshold leaves where it is complete.
    """

    min_group: int = 3
    colluders: int = 1
    graph: GraphKind = "auto"
    dropouts: int | None = None

    @property
    def honest(self) -> int:
        """Members of the smallest sum that opens whose noise no observer knows. One at least is
        taken off: a curious member knows its own.
        """
        return self.min_group - max(self.colluders, 1)

    def __post_init__(self) -> None:
        _count("masking.min_group", self.min_group, least=3)
        _count("masking.colluders", self.colluders, least=0)
        _require(
            self.min_group >= self.colluders + 2,
            "masking.min_group",
            self.min_group,
            f"at least colluders + 2 = {self.colluders + 2}",
        )
        _one_of(GraphKind, "masking.graph", self.graph)
        if self.dropouts is not None:
            _count("masking.dropouts", self.dropouts, least=0)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Who may take part when (docs/cohort.md).

    Attributes:
        late: Whether clients of the roster that missed the set-up are taken in between rounds, in
            batches of at least ``masking.min_group``, by distances of fingerprints. Needs
            ``topology.source = "fingerprint"``; with ``one_group`` the whole roster belongs to the
            group from the beginning.
        gone_after: Rounds that a client misses in a row before the server declares it gone for
            good; None never does. A client can also say that it leaves.
        share: Share of the roster that a round asks from the second on, drawn in public
            (`agreed.schedule`). It saves work and budget; no amplification is claimed.
    """

    late: bool = False
    gone_after: int | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        _require(isinstance(self.late, bool), "cohort.late", self.late, "true or false")
        if self.gone_after is not None:
            _count("cohort.gone_after", self.gone_after)
        part = _is_number(self.share) and 0 < self.share <= 1
        _require(part, "cohort.share", self.share, "above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Server:
    """Who may ask the clients for anything.

    Attributes:
        key: Its Ed25519 public key, 64 hexadecimal digits, pinned like the roster. Empty only in
            the embedded form, where the run makes the key.
    """

    key: str = ""

    def __post_init__(self) -> None:
        text = isinstance(self.key, str) and len(self.key) in (0, 64)
        digits = text and all(c in "0123456789abcdef" for c in self.key)
        _require(digits, "server.key", self.key, "64 lower-case hexadecimal digits, or empty")


@dataclass(frozen=True, kw_only=True)
class Pacing:
    """When the replies to private steps leave a client (`client.pacing`).

    Attributes:
        minimum: Seconds that such a reply takes at least.
        interval: After that, it leaves at multiples of so many seconds; 0 sends it at once, which
            shows how long the step took.
    """

    minimum: float = 0.0
    interval: float = 0.0

    def __post_init__(self) -> None:
        for name in ("minimum", "interval"):
            value = getattr(self, name)
            holds = _is_number(value) and value >= 0
            _require(holds, f"pacing.{name}", value, "a finite number of at least 0")
        paced = self.interval > 0 or self.minimum == 0
        _require(paced, "pacing.interval", self.interval, "above 0 where there is a minimum")


_PARTS: dict[str, type] = {
    "lora": Lora,
    "training": Training,
    "topology": Topology,
    "masking": Masking,
    "cohort": Cohort,
    "server": Server,
    "pacing": Pacing,
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

    def __post_init__(self) -> None:
        place: object = self.backbone  # a caller may give a path, whatever the annotation says
        if isinstance(place, Path):
            object.__setattr__(self, "backbone", str(place))
        self._check_unit()
        _require(
            isinstance(self.backbone, str) and bool(self.backbone),
            "backbone",
            self.backbone,
            "a local folder, a .gguf file or a hub id",
        )
        _require(
            self.task in typing.get_args(Task),
            "task",
            self.task,
            " or ".join(typing.get_args(Task)),
        )
        _is_a(PrivacyBudget, "privacy", self.privacy)
        for name, kind in _PARTS.items():
            _is_a(kind, name, getattr(self, name))
        _count("rounds", self.rounds, least=0)
        _count("seed", self.seed, least=0)
        if self.task == "causal-lm":
            heads = ("auto", "frozen")
            _require(
                self.training.head in heads,
                "training.head",
                self.training.head,
                "frozen for causal-lm",
            )

        if self.topology.cut == "noise_aware":
            _require(
                self._has_gradients,
                "topology.cut",
                self.topology.cut,
                'auto or silhouette, unless topology.source is "fingerprint" and '
                "training.local_steps is 1",
            )
        _require(
            not self.cohort.late or self.topology.source in ("fingerprint", "one_group"),
            "cohort.late",
            self.cohort.late,
            'false, unless topology.source is "fingerprint" or "one_group": a warm-up is merged '
            "once, before the first round",
        )
        _one_of(Noise, "noise", self.noise)
        if self.noise == "shared":
            self._check_shared()

    def _check_shared(self) -> None:
        """Refuse what would show, or read, a client's part of the noise alone."""
        if self.privacy.own_epsilon is None:
            raise ConfigurationError(
                'privacy.own_epsilon is not given; with noise = "shared" say which epsilon each '
                "client's own noise must keep whatever all others do, at least epsilon "
                f"{self.privacy.epsilon:g}"
            )
        shared = 'with noise = "shared"'
        _require(
            self.training.local_steps == 1,
            "training.local_steps",
            self.training.local_steps,
            f"1 {shared}, because a second step would read the client's own, weakly noised values",
        )
        _require(
            self.topology.source in ("fingerprint", "one_group"),
            "topology.source",
            self.topology.source,
            f"fingerprint or one_group {shared}, because a warm-up takes local steps and without "
            "groups nobody shares noise",
        )
        _require(
            self.topology.cut != "noise_aware",
            "topology.cut",
            self.topology.cut,
            f"auto or silhouette {shared}, because a sketch would show each client's gradient with "
            "its own part of the noise alone",
        )
        _require(self.rounds > 0, "rounds", self.rounds, f"at least 1 {shared}, which is in rounds")

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
        # A job without a unit, with own noise and a fixed cohort reads and hashes as it did before
        # there were others.
        plain: dict[str, Any] = {"unit": None, "max_per_unit": None, "noise": "own"}
        plain["cohort"] = dataclasses.asdict(Cohort())
        given = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in plain or value != plain[name]
        }
        given["privacy"] = self.privacy.to_dict()
        usual = {"graph": "auto", "dropouts": None}  # likewise
        given["masking"] = {
            name: value
            for name, value in given["masking"].items()
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
