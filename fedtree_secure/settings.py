"""The parts of a job: frozen dataclasses, each refusing what makes no sense by itself.

What parts ask of one another is checked by `config.Job`.
"""

from dataclasses import dataclass
from typing import Literal

from fedtree_secure.checks import count, is_number, one_of, positive, require

Task = Literal["classification", "causal-lm"]
HeadMode = Literal["auto", "group", "local", "frozen"]
HeadRelease = Literal["auto", "average", "class_sums"]
Pooling = Literal["auto", "mean", "first", "last", "native"]
Source = Literal["fingerprint", "lora_b", "one_group", "none"]
Cut = Literal["auto", "noise_aware", "silhouette"]
Linkage = Literal["ward", "average", "complete", "single"]
Noise = Literal["own", "shared"]
Precision = Literal["float32", "bfloat16"]
GraphKind = Literal["auto", "complete", "sparse"]


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
        require(listed, "lora.targets", names, 'a list of names, such as ["query", "value"]')
        object.__setattr__(self, "targets", tuple(names))
        count("lora.r", self.r)
        positive("lora.alpha", self.alpha)
        if self.last_layers is not None:
            count("lora.last_layers", self.last_layers)


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
        head_release: How the heads of groups are made: ``average`` of heads that are trained at
            home; ``class_sums``: from one release of sums of features and of numbers of records by
            class (`agreed.class_sums`), which costs what ``head_steps`` would; ``auto`` chooses
            from public numbers alone, today always the average (`agreed.head_release`).
        head_sample_rate: Poisson sampling rate of these steps.
        head_learning_rate: Of Adam on the head (and on lam).
        head_noise_ratio: Noise multiplier of the head's steps relative to that of the rounds.
        pooling: What of an encoder's last hidden states the head reads: their ``mean``, the
            ``first`` or ``last`` token's, or what the architecture's own classifier takes
            (``native``). ``auto`` reads the checkpoint's sentence-transformers configuration;
            without one it is ``native`` where that is pretrained, else ``mean``.
        max_length: Tokens a text is cut to.
        physical_batch_size: Records that are in memory at once; has no influence on the result.
        keep_activations: Whether a client computes what frozen layers below the first adapter make
            of its rows once, and keeps that for the run, where steps pass the rows often enough.
            Needs `Lora.last_layers`; the result is the same.
        precision: Arithmetic of the model in training steps. ``bfloat16`` is faster on processors
            that have it (others compute in float32); gradients are summed and noised in float32
            with either.
        activations_in_memory: Up to how many MiB a client keeps them in memory; more lies in a file
            of its run, which is encrypted and goes with the process.
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
    head_release: HeadRelease = "auto"
    pooling: Pooling = "auto"
    max_length: int = 64
    physical_batch_size: int = 64
    precision: Precision = "float32"
    keep_activations: bool = True
    activations_in_memory: int = 64

    def __post_init__(self) -> None:
        for name in ("records", "local_steps", "max_length", "physical_batch_size"):
            count(f"training.{name}", getattr(self, name))
        count("training.head_steps", self.head_steps, least=0)
        count("training.activations_in_memory", self.activations_in_memory, least=0)
        keep = self.keep_activations
        require(isinstance(keep, bool), "training.keep_activations", keep, "true or false")
        for name in ("max_grad_norm", "learning_rate", "head_learning_rate", "head_noise_ratio"):
            positive(f"training.{name}", getattr(self, name))
        for name in ("sample_rate", "head_sample_rate"):
            rate = getattr(self, name)
            holds = is_number(rate) and 0 < rate <= 1
            require(holds, f"training.{name}", rate, "above 0 and at most 1")
        one_of(HeadMode, "training.head", self.head)
        one_of(HeadRelease, "training.head_release", self.head_release)
        released = self.head in ("auto", "group") and self.head_steps > 0
        require(
            self.head_release != "class_sums" or released,
            "training.head_release",
            self.head_release,
            'auto or average, unless heads are shared (training.head = "group") and have a share '
            "of the budget (training.head_steps above 0)",
        )
        one_of(Pooling, "training.pooling", self.pooling)
        one_of(Precision, "training.precision", self.precision)


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
        one_of(Source, "topology.source", self.source)
        one_of(Linkage, "topology.linkage", self.linkage)
        one_of(Cut, "topology.cut", self.cut)
        for name in ("fingerprint_share", "mixing_weight"):
            share = getattr(self, name)
            require(
                is_number(share) and 0 < share < 1, f"topology.{name}", share, "between 0 and 1"
            )
        require(
            is_number(self.significance) and 0.5 <= self.significance < 1,
            "topology.significance",
            self.significance,
            "at least 0.5 and below 1",
        )
        for name in ("warmup_steps", "window"):
            count(f"topology.{name}", getattr(self, name))
        for name in ("sketch_size", "gradient_sketch_size"):
            count(f"topology.{name}", getattr(self, name), least=16)


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
        count("masking.min_group", self.min_group, least=3)
        count("masking.colluders", self.colluders, least=0)
        require(
            self.min_group >= self.colluders + 2,
            "masking.min_group",
            self.min_group,
            f"at least colluders + 2 = {self.colluders + 2}",
        )
        one_of(GraphKind, "masking.graph", self.graph)
        if self.dropouts is not None:
            count("masking.dropouts", self.dropouts, least=0)


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
        require(isinstance(self.late, bool), "cohort.late", self.late, "true or false")
        if self.gone_after is not None:
            count("cohort.gone_after", self.gone_after)
        part = is_number(self.share) and 0 < self.share <= 1
        require(part, "cohort.share", self.share, "above 0 and at most 1")


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
        require(digits, "server.key", self.key, "64 lower-case hexadecimal digits, or empty")


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
            holds = is_number(value) and value >= 0
            require(holds, f"pacing.{name}", value, "a finite number of at least 0")
        paced = self.interval > 0 or self.minimum == 0
        require(paced, "pacing.interval", self.interval, "above 0 where there is a minimum")
