"""The frozen model: loaded once per process, shared by every client that is simulated in it.

A client's own values (experts, lam, head) are written into the shared module before its turn and
read back after it. Nothing of one client may stay behind for the next.
"""

import contextlib
import copy
import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedtree_dp import NoiseSource, per_sequence_loss
from fedtree_dp.sgd.shapes import Buckets, plan_slots
from fedtree_secure.config import Job
from fedtree_secure.model import metrics
from fedtree_secure.model.arithmetic import arithmetic, use_precision
from fedtree_secure.model.experts import CLUSTER, Experts
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.model.heads import Centred, find_head, last_linear, replace_part
from fedtree_secure.model.identity import model_digest
from fedtree_secure.model.layout import Layout
from fedtree_secure.model.loading import (
    check_causal,
    check_length,
    check_vocabulary,
    load_checkpoint,
)
from fedtree_secure.model.lower import STATES, LowerLayers, lower_layers
from fedtree_secure.model.rows import ClientData, Table

EVALUATION_BATCH = 33  # rows, the last a dummy
PUBLIC_TEXTS = 256
NO_LABEL = -100  # of `per_sequence_loss`: what is left out of a record's mean
PUBLIC_LENGTH = 64  # tokens
FEATURE_NORM = 3.0  # of centred features: the head's gradients then outweigh those of its bias


@dataclass(frozen=True)
class Observation:
    """What the frozen model makes of a client's rows. Private.

    Attributes:
        features: (rows, in_features) what the head's end sees, before centring; no columns
            without a head.
        means: (rows, depth, hidden) mean hidden state after every adapted layer.
    """

    features: torch.Tensor
    means: "np.ndarray[Any, np.dtype[np.float32]]"


class Backbone:
    """A pretrained transformer with injected experts, a replaceable head, and its tokenizer.

    Attributes:
        model: The transformers model; frozen but for what a client trains.
        tokenizer: With a padding token set.
        fresh: Names of parameters that the checkpoint lacks.
        pooling: What the head reads, see `pooling_of`.
        bfloat16: Whether training steps are computed in bfloat16 here.
        experts: The two adapters, see `Experts`.
        frozen_digest: SHA-256 over the model alone (weights, configuration, tokenizer; see
            `identity`), the same in every job: what a site's policy names.
        digest: SHA-256 over ``frozen_digest`` and the initial experts; bound into every masking
            session.

    Raises:
        BackboneError: See `load_checkpoint`, `find_head` and `Experts`.
    """

    def __init__(self, job: Job, device: str | None = None) -> None:
        self.job = job
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        loaded = load_checkpoint(job)
        self.tokenizer, self.model, self.fresh = loaded.tokenizer, loaded.model, loaded.fresh
        self.pooling = loaded.pooling
        self.frozen_digest = model_digest(self.model, self.tokenizer, self.fresh)
        self.model.eval()
        check_vocabulary(self.tokenizer, self.model)
        check_length(self.tokenizer, self.model, job.training.max_length)
        self.model.to(self.device)
        self.bfloat16 = use_precision(job.training.precision, self.model, self.device)
        self._head_name, self._head_template = find_head(self.model, job)
        self.experts = Experts(self.model, job.lora, str(self.model.config.model_type), job.seed)
        for mix in self.experts.mixes:
            mix.to(self.device)
        if job.task == "causal-lm":
            check_causal(self.model, self.device)
        self.reference, self.layer_reference = (torch.zeros(1), 1.0), (np.zeros(1), np.ones(1))
        self._measure_public_text()
        self.initial_expert = self.experts.read(CLUSTER)
        experts = self.experts.initial_digest()
        pooling = self.pooling.encode()
        self.digest = hashlib.sha256(self.frozen_digest + pooling + experts).digest()

    def facts(self, heads: Sequence[int] = ()) -> ModelFacts:
        """Return what the server must know of this model.

        Args:
            heads: Classes of each group's head, see `Terms.outputs_of_heads`.
        """
        layout, initial = self.layout(heads), [self.initial_expert]
        for outputs in heads:
            end = last_linear(self.new_head(outputs))[1]
            initial += [p.detach().float().cpu().numpy().reshape(-1) for p in end.parameters()]
        return ModelFacts(
            digest=self.digest,
            layout=layout,
            hidden_size=self.hidden_size,
            b_values=sum(m.lora_B[CLUSTER].weight.numel() for m in self.experts.by_layer[0]),
            layer_names=self.experts.indices,
            initial=np.concatenate(initial).astype(np.float32),
        )

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state."""
        return int(getattr(self.model.config, "hidden_size", 0) or self.model.config.dim)

    # --- the head ---------------------------------------------------------------------------------

    def new_head(self, outputs: int) -> nn.Module:
        """Return a head with ``outputs`` classes and initial values from the job's public seed.

        Only its last projection is ever trained; layers before it (RoBERTa has one) keep their
        initial values, because each trained value adds noise and random features serve as well.
        """
        assert self._head_template is not None
        head = copy.deepcopy(self._head_template)
        name, last = last_linear(head)
        rng = np.random.default_rng([self.job.seed, 0xB])
        projection = nn.Linear(last.in_features, outputs, bias=last.bias is not None)
        with torch.no_grad():
            initial = rng.normal(scale=0.02, size=(outputs, last.in_features)).astype(np.float32)
            projection.weight.copy_(torch.from_numpy(initial))
            if projection.bias is not None:
                projection.bias.zero_()
        return replace_part(head, name, Centred(projection, self.reference)).to(self.device)

    def delivered_head(self) -> nn.Module:
        """The head in place as the architecture's own class, the public centring folded in."""
        assert self.head is not None
        head = copy.deepcopy(self.head).cpu()
        name = next(name for name, module in head.named_modules() if isinstance(module, Centred))
        return replace_part(head, name, self.centred.folded())

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
        return last_linear(self.head)[1]

    # --- losses and passes ------------------------------------------------------------------------

    @property
    def pad(self) -> int:
        """Padding token id."""
        return int(self.tokenizer.pad_token_id)

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return one loss per record, shape (records,).

        Records never meet in a mean (PRIVACY, token-mean coupling): a text's loss is the mean over
        its own next tokens. A batch that brings its `STATES` along passes the upper layers alone.
        """
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        states = batch.get(STATES)
        with contextlib.nullcontext() if states is None else self._above(states):
            logits = model(**inputs).logits.float()
        if self.job.task == "classification":
            return F.cross_entropy(logits, batch["labels"], reduction="none")
        return _next_token_loss(logits, batch)

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a training step's passes, see `Training.precision`."""
        return arithmetic(self.device, bfloat16=self.bfloat16)

    @functools.cached_property
    def lower(self) -> LowerLayers | None:
        """The frozen layers below the first adapter; None where a pass cannot begin above them."""
        first = str(self.experts.by_layer[0][0].place)
        return lower_layers(self.model, first, self.job.training.max_length)

    def _above(self, states: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        assert self.lower is not None
        return self.lower.left_out(states)

    @torch.no_grad()
    def evaluate(self, data: ClientData) -> dict[str, Any] | None:
        """Measure what is in place on the test rows; None without any.

        Returns:
            ``{"name": "accuracy" or "perplexity", "value": ...}`` and what `metrics` adds.
        """
        if data.test is None:
            return None
        nll, tokens = 0.0, 0
        given: list[int] = []
        answered: list[int] = []
        for _, batch in self._batches(data.test):
            logits = self.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits.float()
            present = batch["present"]
            if self.job.task == "classification":
                given += batch["labels"][present].tolist()
                answered += logits.argmax(-1)[present].tolist()
            else:
                counts = batch["attention_mask"][present, 1:].sum(1)
                means = _next_token_loss(logits, batch)[present]
                nll, tokens = nll + float((means * counts).sum()), tokens + int(counts.sum())
        if self.job.task == "classification":
            return metrics.of_classifier(given, answered, len(data.label_set))
        return metrics.of_language_model(nll, tokens)

    @torch.no_grad()
    def observe(self, table: Table) -> "Observation":
        """Pass all rows through the model once; keep the head's input and the states' means.

        What is kept of a row depends on that row alone.
        """
        seen: list[torch.Tensor] = []
        end = self._head_end()
        hook = (
            None
            if end is None
            else end.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        )
        width = 0 if end is None else last_linear(end)[1].in_features
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
                present = batch["present"]
                means[rows] = torch.stack(layers, dim=1)[present].cpu().numpy()
                if end is not None:
                    last = _last_token(seen.pop(), batch["attention_mask"])
                    features[rows] = last[present].float()
        finally:
            if hook is not None:
                hook.remove()
        return Observation(features, means)

    def _head_end(self) -> nn.Module | None:
        """The end of the head in place: a client's centred projection, or the checkpoint's."""
        if self.head is None:
            return None
        return (
            next((m for m in self.head.modules() if isinstance(m, Centred)), None)
            or last_linear(self.head)[1]
        )

    def _measure_public_text(self) -> None:
        """Take centre and scale of features and hidden states from random, public words."""
        rng = np.random.default_rng([self.job.seed, 0xC])
        special = set(self.tokenizer.all_special_ids)
        words = [i for i in range(len(self.tokenizer)) if i not in special]
        texts = [
            self.tokenizer.decode(rng.choice(words, size=int(rng.integers(4, 24))))
            for _ in range(PUBLIC_TEXTS)
        ]
        table = Table(
            tuple(
                map(
                    tuple,
                    self.tokenizer(texts, truncation=True, max_length=PUBLIC_LENGTH)["input_ids"],
                )
            ),
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

    def layout(self, heads: Sequence[int] = ()) -> Layout:
        """Where the layers and the groups' heads stand in the update vector.

        Args:
            heads: Classes of each group's head.
        """
        if not heads:
            return Layout(self.experts.layers)
        assert self._head_template is not None
        last = last_linear(self._head_template)[1]
        width = last.in_features + (last.bias is not None)
        ends = np.cumsum([self.experts.layers[-1][1], *(classes * width for classes in heads)])
        return Layout(self.experts.layers, tuple(itertools.pairwise(ends.tolist())))

    def _batches(
        self, table: Table
    ) -> Iterator[tuple["np.ndarray[Any, Any]", dict[str, torch.Tensor]]]:
        """Yield the indices of the rows that are present, and batches of fixed shapes."""
        known = (Buckets.up_to(n).widths for n in (self.job.training.max_length, PUBLIC_LENGTH))
        buckets = Buckets(tuple(sorted(set().union(*known))))
        lengths, source = [len(row) for row in table.tokens], NoiseSource.from_os()
        every = np.arange(len(table))
        for plan in plan_slots(lengths, every, buckets, EVALUATION_BATCH, source):
            rows = np.array(plan.rows)[plan.present]
            yield rows, table.batch(plan.rows, self.pad, self.device, width=plan.width)


def _last_token(seen: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each record's vector: decoders classify by the last real token, encoders have one."""
    return seen if seen.dim() == 2 else seen[torch.arange(len(seen)), mask.sum(1) - 1]


def _next_token_loss(logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean negative log likelihood of each record's own next tokens, (records,); 0 without any."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, NO_LABEL)
    return per_sequence_loss(logits, labels, causal=True)
