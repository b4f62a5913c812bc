"""The frozen model: loaded once per process, shared by every client that is simulated in it.

A client's own values (experts, lam, head) are written into the shared module before its turn and
read back after it; `Seat` in `participant.py` does so. Nothing of one client may stay behind for
the next.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedtree_secure.client.data import ClientData, Table
from fedtree_secure.config import Job
from fedtree_secure.errors import BackboneError
from fedtree_secure.model.experts import CLUSTER, Experts, Layout

EVALUATION_BATCH = 64
PUBLIC_TEXTS = 256
FEATURE_NORM = 3.0  # of centred features: the head's gradients then outweigh those of its bias


class Centred(nn.Module):
    """A projection of features that were centred and scaled by public constants.

    A pretrained encoder's features share one large common direction, which would take most of a
    clipped gradient. The constants come from `Backbone.reference`, never from a client; they fold
    into an ordinary linear layer at delivery.

    Args: projection: (outputs, in_features); without bias the features are scaled but not centred,
        because there
            would be nothing to fold the centre into.
        reference: Mean (in_features,) and scale of public features.
    """

    def __init__(self, projection: nn.Linear, reference: tuple[torch.Tensor, float]) -> None:
        super().__init__()
        self.projection = projection
        mean, scale = reference
        self.register_buffer(
            "mean",
            mean if projection.bias is not None else torch.zeros_like(mean),
            persistent=False,
        )
        self.scale = scale

    mean: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits for features of shape (..., in_features)."""
        out: torch.Tensor = self.projection((x - self.mean) * self.scale)
        return out

    def folded(self) -> nn.Linear:
        """One linear layer with the same outputs."""
        inner = self.projection
        plain = nn.Linear(inner.in_features, inner.out_features, bias=inner.bias is not None)
        with torch.no_grad():
            weight = inner.weight.double() * self.scale
            plain.weight.copy_(weight)
            if inner.bias is not None:
                plain.bias.copy_(inner.bias.double() - weight @ self.mean.double())
        return plain


@dataclass(frozen=True)
class Observation:
    """What the frozen model makes of a client's rows. Private.

    Attributes: features: (rows, in_features) what the head's end sees, before centring; no columns
        without a head. means: (rows, depth, hidden) mean hidden state after every adapted layer.
    """

    features: torch.Tensor
    means: "np.ndarray[Any, np.dtype[np.float32]]"


class Backbone:
    """A pretrained transformer with injected experts, a replaceable head, and its tokenizer.

    Attributes: model: The transformers model; frozen but for what a client trains. tokenizer: With
        a padding token set. experts: The two adapters, see `Experts`. digest: SHA-256 over the
        frozen weights and the initial experts; bound into every masking session.
    """

    def __init__(self, job: Job, device: str | None = None) -> None:
        _quiet()
        self.job = job
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer, self.model, self.fresh = _load(job)
        frozen = _weights_digest(self.model, skip=self.fresh)
        self.model.to(self.device).eval()
        self._head_name, self._head_template = _find_head(self.model, job)
        self.experts = Experts(self.model, job.lora, str(self.model.config.model_type), job.seed)
        for mix in self.experts.mixes:
            mix.to(self.device)
        self.reference, self.layer_reference = (torch.zeros(1), 1.0), (np.zeros(1), np.ones(1))
        self._measure_public_text()
        self.initial_expert = self.experts.read(CLUSTER)
        self.digest = hashlib.sha256(
            b"fedtree-secure/model/v1\n" + frozen + self.experts.initial_digest()
        ).digest()

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state."""
        return int(getattr(self.model.config, "hidden_size", 0) or self.model.config.dim)

    # --- the head ---------------------------------------------------------------------------------

    def new_head(self, outputs: int) -> nn.Module:
        """Return a head with ``outputs`` classes, its initial values drawn from the job's public
        seed.

        Only its last projection is ever trained; layers before it (RoBERTa has one) keep their
        initial values, because each trained value adds noise and random features serve as well.
        """
        assert self._head_template is not None
        head = copy.deepcopy(self._head_template)
        name, last = _last_linear(head)
        rng = np.random.default_rng([self.job.seed, 0xB])
        projection = nn.Linear(last.in_features, outputs, bias=last.bias is not None)
        with torch.no_grad():
            initial = rng.normal(scale=0.02, size=(outputs, last.in_features)).astype(np.float32)
            projection.weight.copy_(torch.from_numpy(initial))
            if projection.bias is not None:
                projection.bias.zero_()
        return _replace(head, name, Centred(projection, self.reference)).to(self.device)

    def delivered_head(self) -> nn.Module:
        """The head that is in place as the architecture's own class: the public centring folded
        into the projection.
        """
        assert self.head is not None
        head = copy.deepcopy(self.head).cpu()
        name = next(name for name, module in head.named_modules() if isinstance(module, Centred))
        return _replace(head, name, self.centred.folded())

    def set_head(self, head: nn.Module) -> None:
        """Put a head in place."""
        self.model.set_submodule(self._head_name, head.to(self.device))
        head.requires_grad_(False)

    @property
    def centred(self) -> Centred:
        """The trainable end of the head that is in place."""
        assert self.head is not None
        return next(module for module in self.head.modules() if isinstance(module, Centred))

    @property
    def head(self) -> nn.Module | None:
        """The head that is in place, None for language modelling."""
        return self.model.get_submodule(self._head_name) if self._head_name else None

    @property
    def head_name(self) -> str:
        """Name of the head inside the model, for example ``classifier``."""
        return self._head_name

    @property
    def projection(self) -> nn.Linear:
        """The last projection of the head that is in place."""
        assert self.head is not None
        return _last_linear(self.head)[1]

    # --- losses and passes ------------------------------------------------------------------------

    @property
    def pad(self) -> int:
        """Padding token id."""
        return int(self.tokenizer.pad_token_id)

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return one loss per record, shape (records,); records never meet in a mean (PRIVACY,
        token-mean coupling).
        """
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        logits = model(**inputs).logits.float()
        if self.job.task == "classification":
            return F.cross_entropy(logits, batch["labels"], reduction="none")
        return _sequence_nll(logits, batch)[0]

    @torch.no_grad()
    def evaluate(self, data: ClientData) -> dict[str, Any] | None:
        """Return ``{"name": "accuracy" or "perplexity", "value": ...}`` of what is in place on the
        test rows.
        """
        if data.test is None:
            return None
        right, nll, tokens = 0, 0.0, 0
        for _, batch in self._batches(data.test):
            logits = self.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits.float()
            if self.job.task == "classification":
                right += int((logits.argmax(-1) == batch["labels"]).sum())
            else:
                means, counts = _sequence_nll(logits, batch)
                nll, tokens = nll + float((means * counts).sum()), tokens + int(counts.sum())
        if self.job.task == "classification":
            return {"name": "accuracy", "value": right / len(data.test)}
        return {"name": "perplexity", "value": float(np.exp(min(nll / max(tokens, 1), 700.0)))}

    @torch.no_grad()
    def observe(self, table: Table) -> "Observation":
        """Pass all rows through the seated model once, and keep what the head sees and the hidden
        states' means.
        """
        seen: list[torch.Tensor] = []
        end = self._head_end()
        hook = (
            None
            if end is None
            else end.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        )
        width = 0 if end is None else _last_linear(end)[1].in_features
        features = torch.empty(len(table), width, device=self.device)
        means = np.empty((len(table), self.experts.depth, self.hidden_size), dtype=np.float32)
        after = [index + 1 for index in self.experts.indices]
        try:
            for rows, batch in self._batches(table):
                inputs = {
                    "input_ids": batch["input_ids"],
                    "attention_mask": batch["attention_mask"],
                }
                model = self.model if end is not None else self.model.base_model
                states = model(**inputs, output_hidden_states=True).hidden_states
                mask = batch["attention_mask"].unsqueeze(-1).float()
                layers = [(states[i].float() * mask).sum(1) / mask.sum(1) for i in after]
                means[rows] = torch.stack(layers, dim=1).cpu().numpy()
                if end is not None:
                    features[rows] = _last_token(seen.pop(), batch["attention_mask"]).float()
        finally:
            if hook is not None:
                hook.remove()
        return Observation(features, means)

    def _head_end(self) -> nn.Module | None:
        """The last part of the head that is in place: the centred projection of a client, or the
        checkpoint's own.
        """
        if self.head is None:
            return None
        return (
            next((m for m in self.head.modules() if isinstance(m, Centred)), None)
            or _last_linear(self.head)[1]
        )

    def _measure_public_text(self) -> None:
        """Take the centre and scale of features and hidden states from public text: random words of
        the vocabulary.
        """
        rng = np.random.default_rng([self.job.seed, 0xC])
        special = set(self.tokenizer.all_special_ids)
        words = [i for i in range(len(self.tokenizer)) if i not in special]
        texts = [
            self.tokenizer.decode(rng.choice(words, size=int(rng.integers(4, 24))))
            for _ in range(PUBLIC_TEXTS)
        ]
        table = Table(
            tuple(map(tuple, self.tokenizer(texts, truncation=True, max_length=64)["input_ids"])),
            None,
        )
        observed = self.observe(table)
        states = observed.means.astype(np.float64)
        centre = states.mean(axis=0)
        self.layer_reference = (centre, np.sqrt(((states - centre) ** 2).sum(axis=2).mean(axis=0)))
        if self._head_template is not None:
            features = observed.features
            mean = features.mean(dim=0)
            self.reference = (
                mean,
                float(FEATURE_NORM / (features - mean).square().sum(dim=1).mean().sqrt()),
            )

    def layout(self) -> Layout:
        """Where the layers (and a shared head that is in place) stand in the update vector."""
        if self.job.head != "shared":
            return Layout(self.experts.layers)
        start, size = (
            self.experts.layers[-1][1],
            sum(p.numel() for p in self.projection.parameters()),
        )
        return Layout(self.experts.layers, (start, start + size))

    def _batches(
        self, table: Table
    ) -> Iterator[tuple["np.ndarray[Any, Any]", dict[str, torch.Tensor]]]:
        # Rows of similar length go together: padding is most of the cost of short texts.
        order = np.argsort([len(row) for row in table.tokens], kind="stable")
        for start in range(0, len(table), EVALUATION_BATCH):
            rows = order[start : start + EVALUATION_BATCH]
            yield rows, table.batch(rows, self.pad, self.device)


def _load(job: Job) -> tuple[Any, Any, tuple[str, ...]]:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    kind = AutoModelForCausalLM if job.task == "causal-lm" else AutoModelForSequenceClassification
    place, extra = job.backbone, {}
    if place.endswith(".gguf"):
        extra = {"gguf_file": Path(place).name}
        place = str(Path(place).parent)
    looks_local = place.startswith((".", "/", "~")) or extra
    if looks_local and not Path(place).expanduser().is_dir():
        raise BackboneError(
            f"there is no model folder {place}; give a local folder, a .gguf file or a hub id"
        )
    try:
        torch.manual_seed(
            job.seed
            # the initial values of layers that the checkpoint lacks; public, and saved with the
            # adapter
        )
        tokenizer = AutoTokenizer.from_pretrained(place, **extra)
        model, info = kind.from_pretrained(
            place, output_loading_info=True, dtype=torch.float32, **extra
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise BackboneError(
            f"the backbone {job.backbone!r} cannot be loaded for {job.task}: {error}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model, tuple(sorted(info["missing_keys"]))


def _find_head(model: nn.Module, job: Job) -> tuple[str, nn.Module | None]:
    if job.task == "causal-lm":
        return "", None
    for name in ("classifier", "score"):
        if hasattr(model, name):
            return name, copy.deepcopy(getattr(model, name))
    children = ", ".join(n for n, _ in model.named_children())
    raise BackboneError(
        f"no classification head found in {type(model).__name__}; its parts are {children}"
    )


def _last_linear(head: nn.Module) -> tuple[str, nn.Linear]:
    found = [
        (name, module) for name, module in head.named_modules() if isinstance(module, nn.Linear)
    ]
    return found[-1]


def _replace(head: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module in the place of a head's part; the empty name is the head itself."""
    if not name:
        return module
    head.set_submodule(name, module)
    return head


def _last_token(seen: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Decoders project every position and classify by the last real token; encoders project one
    vector a record.
    """
    return seen if seen.dim() == 2 else seen[torch.arange(len(seen)), mask.sum(1) - 1]


def _sequence_nll(
    logits: torch.Tensor, batch: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean negative log likelihood of each record's own next tokens, and how many they are; both
    (records,).
    """
    targets, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:].float()
    nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none") * mask
    counts = mask.sum(1)
    return nll.sum(1) / counts.clamp(min=1), counts


def _weights_digest(model: nn.Module, skip: tuple[str, ...]) -> bytes:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name not in skip:
            digest.update(name.encode() + b"\0" + str(tuple(value.shape)).encode() + b"\0")
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


def _quiet() -> None:
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
