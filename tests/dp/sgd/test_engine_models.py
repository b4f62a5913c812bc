"""The ways adapters are set up in practice, on both engines: exact, or refused with the reason."""

from __future__ import annotations

import copy

import dp_models as m
import peft
import pytest
import torch
from opacus.grad_sample import GradSampleHooks
from peft import LoraConfig
from torch import nn

from fedtree_dp import DPSGD, ConfigurationError, NoiseSource, TrainingError, per_sequence_loss
from fedtree_dp.sgd import fused as fused_module


def clipped_sum(
    model,
    engine,
    loss=m.loss,
    data=None,
    kind="bert",
    bound=0.5,
    lr=1e-5,
    *,
    dummies=None,
    **settings,
):
    optimizer = m.recorder(model, lr)
    dummies = data if dummies is None else dummies
    with DPSGD(
        model,
        optimizer,
        loss,
        noise_multiplier=0.0,
        max_grad_norm=bound,
        expected_batch_size=1.0,
        noise=m.noise(),
        engine=engine,
        **settings,
    ) as t:
        t.rehearse(m.batch(kind) if dummies is None else dummies)
        t.step(m.batch(kind) if data is None else data)
    return optimizer.seen[0]


def exact(model, engine, loss=m.loss, data=None, kind="bert", bound=0.5, traces=()):
    data = m.batch(kind) if data is None else data
    expected = m.reference(model, loss, data, bound)
    assert (
        m.gap(clipped_sum(model, engine, loss, data, kind, bound, physical_batch_size=4), expected)
        < 1e-6
    )
    assert m.traces(model) == list(traces)


both = pytest.mark.parametrize("engine", ["fused", "hooks"])


@pytest.fixture
def whole_layers(monkeypatch):
    """Count the LoRA layers that run as one fused function."""
    seen = []
    original = fused_module._only_adapter
    monkeypatch.setattr(
        fused_module, "_only_adapter", lambda layer: seen.append(original(layer)) or seen[-1]
    )
    return seen


@both
@pytest.mark.parametrize(
    "settings", [{"use_rslora": True, "r": 8}, {"r": 1}, {"lora_bias": True}, {"bias": "lora_only"}]
)
def test_ranks_scalings_and_biases(engine, settings):
    exact(m.lora("bert", **settings), engine)


@both
@pytest.mark.parametrize("kind", m.KINDS)
def test_a_nan_in_a_transformer_stays_in_its_record(engine, kind):
    data = m.batch(kind)
    data["scale"] = torch.ones(7, dtype=torch.float64)
    scaled = lambda model, part: m.loss(model, part) * part["scale"]  # noqa: E731
    rest = {k: torch.cat([v[:2], v[3:]]) for k, v in data.items()}
    expected = clipped_sum(m.lora(kind), engine, scaled, rest)
    data["scale"][2] = torch.nan
    got = clipped_sum(m.lora(kind), engine, scaled, data, dummies=rest)
    assert m.gap(got, expected) < 1e-9


@both
@pytest.mark.parametrize("kind", m.KINDS)
def test_all_linear_layers_as_targets(engine, kind):
    exact(m.lora(kind, target_modules="all-linear"), engine, kind=kind)


@both
def test_only_some_layers_and_a_frozen(engine):
    model = m.lora("bert", layers_to_transform=[1])
    for name, p in model.named_parameters():
        if "lora_A" in name:
            p.requires_grad_(False)
    exact(model, engine)


def test_plain_lora_runs_as_one_function_a_layer(whole_layers):
    exact(m.lora("bert"), "fused")
    assert set(whole_layers) == {"default"}


@both
def test_several_adapters_some_frozen(engine, whole_layers):
    model = m.lora("bert", modules_to_save=None)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["query", "value"]))
    for name, p in model.named_parameters():
        if ".other." in name:
            p.data.normal_(std=0.1)
    model.to(torch.float64)
    model.base_model.set_adapter(["default", "other"])
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name and ".default." in name)
    exact(model, engine)
    assert set(whole_layers) <= {None}
    model.base_model.set_adapter("default")
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name and ".default." in name)
    exact(model, engine)
    assert engine == "hooks" or "default" in whole_layers


class Shared(nn.Module):
    """One layer used twice, as a mixing scalar shared by query and value is."""

    def __init__(self):
        super().__init__()
        self.layer, self.mix, self.norm = nn.Linear(6, 6), m.Mix(), nn.LayerNorm(6)

    def forward(self, x):
        once = self.mix(self.layer(x), x)
        return self.norm(self.mix(self.layer(torch.tanh(once)), once))


@both
def test_a_module_that_is_used_twice(engine):
    torch.manual_seed(0)
    loss = lambda model, part: model(part["x"]).flatten(1).pow(3).sum(1)  # noqa: E731
    exact(Shared().double(), engine, loss, {"x": m.mixed_batch()["x"]})


@both
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_tied_and_trained_embeddings(engine, kind):
    """Tied: one parameter in two modules; both contributions must be in a record's gradient."""
    model = m.backbone(kind, tie_word_embeddings=kind == "llama")
    for name, p in model.named_parameters():
        p.requires_grad_("word_embeddings" in name or "embed_tokens" in name)
    if kind == "llama":
        assert model.lm_head.weight is model.model.embed_tokens.weight
    exact(model, engine, kind=kind)


@both
def test_llama_rms_norm_needs_its_own_grad_sampler(engine):
    model = m.backbone("llama").requires_grad_(False)
    model.model.norm.requires_grad_(True)
    with pytest.raises(ConfigurationError, match=r"model\.norm \(LlamaRMSNorm\)"):
        clipped_sum(model, engine, kind="llama")


@both
def test_embedding_adapters_and_dora_are_refused(engine):
    with pytest.raises(ConfigurationError, match="embeddings"):
        clipped_sum(m.lora("bert", target_modules=["word_embeddings"]), engine)
    with pytest.raises(ConfigurationError, match="use_dora=False"):
        clipped_sum(m.lora("bert", use_dora=True), engine)


@both
def test_trained_implicit_positions_are_refused(engine):
    model = m.backbone("bert").requires_grad_(False)
    model.bert.embeddings.position_embeddings.requires_grad_(True)
    with pytest.raises(TrainingError, match=r"position_embeddings.*one row for each record"):
        clipped_sum(model, engine)

    def explicit(model, part):
        ids = part["input_ids"]
        positions = torch.arange(ids.shape[1]).expand(len(ids), -1)
        logits = model(
            input_ids=ids, attention_mask=part["attention_mask"], position_ids=positions
        ).logits
        return per_sequence_loss(logits, part["labels"])

    exact(model, engine, explicit)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradient_checkpointing(kind, reentrant):
    model = m.lora(kind)
    expected = m.reference(model, m.loss, m.batch(kind), 0.5)
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    inner = next(
        module
        for name, module in model.named_modules()
        if name.endswith((".0.mlp", ".0.intermediate"))
    )
    inner.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    got = clipped_sum(model, "fused", kind=kind, lr=1e-9)
    assert m.gap(got, expected) < 1e-6
    assert len(calls) >= 4  # forward and recomputed, in the step and in its check
    if reentrant:
        assert m.gap(clipped_sum(model, "hooks", kind=kind), expected) < 1e-6
    else:
        with pytest.raises(ConfigurationError, match="use_reentrant=True"):
            clipped_sum(model, "hooks", kind=kind)
        assert [trace for trace in m.traces(model) if "hook" not in trace] == []


@both
def test_bfloat16_backbone_with_float32_adapter(engine):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model = m.quietly(peft.get_peft_model, m.backbone("llama", torch.bfloat16), config)
    m.fill_b(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    full = copy.deepcopy(model).double()
    expected = m.reference(full, m.loss, m.batch("llama"), 0.5)
    assert m.gap(clipped_sum(model, engine, kind="llama"), expected) < 0.05


@both
def test_autocast(engine):
    model = m.lora("bert", torch.float32)
    expected = m.reference(copy.deepcopy(model).double(), m.loss, m.batch("bert"), 0.5)

    def loss(model, part):
        with torch.autocast("cpu", torch.bfloat16):
            return m.loss(model, part)

    got = clipped_sum(model, engine, loss)
    assert {g.dtype for g in got} == {torch.float32}
    assert 1e-6 < m.gap(got, expected) < 0.05


@both
def test_steps_inside_autocast_see_the_weights_of_the_step_before(engine):
    """Torch keeps bfloat16 copies of weights until the outermost autocast ends: step two would use
    those of one.
    """
    data, losses = m.batch("bert"), []
    for outside in (False, True):
        model = m.lora("bert", torch.float32)
        adapters = [p for p in model.parameters() if p.requires_grad]

        def inside(model, part):
            with torch.autocast("cpu", torch.bfloat16):
                return m.loss(model, part)

        loss = m.loss if outside else inside
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=outside),
            DPSGD(
                model,
                torch.optim.SGD(adapters, lr=1.0),
                loss,
                noise_multiplier=0.0,
                max_grad_norm=1.0,
                expected_batch_size=1.0,
                noise=NoiseSource.from_os(),
                engine=engine,
            ) as trainer,
        ):
            trainer.rehearse(data)
            losses.append([trainer.step(data).mean_loss for _ in range(3)])
    assert losses[1] == pytest.approx(
        losses[0], rel=1e-2
    )  # the backward pass is in bfloat16 as well
    assert all(
        abs(after - before) > 0.05 for before, after in zip(losses[0], losses[0][1:], strict=False)
    )


@both
def test_bfloat16_parameters_get_float32_sums(engine):
    model = m.mixed().bfloat16()
    data = {k: v.bfloat16() if v.is_floating_point() else v for k, v in m.mixed_batch().items()}
    loss = lambda model, part: m.mixed_loss(model, part).float()  # noqa: E731
    got = clipped_sum(model, engine, loss, data, physical_batch_size=1, lr=1.0)
    assert {g.dtype for g in got} == {torch.bfloat16}
    assert m.gap(got, m.reference(m.mixed(), m.mixed_loss, m.mixed_batch(), 0.5)) < 0.05


def test_fused_equals_hooks_in_float32():
    fused, hooks = (
        clipped_sum(m.lora("llama", torch.float32), e, kind="llama") for e in ("fused", "hooks")
    )
    assert m.gap(fused, hooks) < 1e-5


@both
def test_other_passes_through_the_model_while_it_is_open(engine):
    model, data = m.lora("bert"), m.batch("bert")
    optimizer = m.recorder(model, lr=0.0)
    with DPSGD(
        model,
        optimizer,
        m.loss,
        noise_multiplier=0,
        max_grad_norm=0.5,
        expected_batch_size=1,
        noise=m.noise(),
        engine=engine,
    ) as t:
        t.rehearse(data)
        t.step(data)
        with torch.no_grad():
            first = m.loss(model, data)
        t.step(data)
        torch.testing.assert_close(first, m.loss(model, data).detach())
    assert m.gap(optimizer.seen[1], optimizer.seen[0]) < 1e-12


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = m.Mix()

    def forward(self, x):
        return self.mix(c=x, e=x * 2)


def test_a_module_that_its_grad_sampler_cannot_see_is_refused():
    loss = lambda model, part: model(part["x"]).flatten(1).sum(1)  # noqa: E731
    with pytest.raises(TrainingError, match="positional tensors"):
        clipped_sum(Keyword().double(), "fused", loss, {"x": m.mixed_batch()["x"]})


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x) + self.layer(x[: len(x) // 2]).sum()


def test_a_module_that_sees_other_rows_the_second_time_is_refused():
    loss = lambda model, part: model(part["x"]).flatten(1).sum(1)  # noqa: E731
    with pytest.raises(TrainingError, match="different numbers of rows"):
        clipped_sum(Halves().double(), "fused", loss, {"x": m.mixed_batch()["x"]})


@both
def test_a_forward_of_the_callers_own_survives(engine):
    model = m.mixed()
    own = model.head.forward
    model.head.forward = lambda x: own(x) * 2
    mine = model.head.forward
    with pytest.raises(ConfigurationError, match="forward of its own"):
        clipped_sum(model, engine, m.mixed_loss, m.mixed_batch())
    assert model.head.forward is mine
    model.head.requires_grad_(False)
    exact(model, engine, m.mixed_loss, m.mixed_batch(), traces=["head.forward"])


def test_layers_that_are_not_plain_are_left_to_peft(whole_layers):
    model = m.lora("bert")
    layers = [module for module in model.modules() if type(module) is fused_module.LoraLinear]
    layers[0].base_layer.register_forward_hook(lambda module, inputs, out: out * 2)
    layers[1].lora_dropout["default"].p = 0.0
    own = layers[2].base_layer.forward
    layers[2].base_layer.forward = lambda x: own(x) * 2
    data = m.batch("bert")
    expected = m.reference(model, m.loss, data, 0.5)
    assert m.gap(clipped_sum(model, "fused"), expected) < 1e-6
    assert whole_layers[:4] == [None, "default", None, "default"]
    whole = layers[3].forward
    layers[3].forward = lambda x, *args, **more: whole(x, *args, **more) * 2
    expected = m.reference(model, m.loss, data, 0.5)
    assert m.gap(clipped_sum(model, "fused"), expected) < 1e-6


def test_unknown_engine():
    with pytest.raises(ConfigurationError, match="fused"):
        clipped_sum(m.mixed(), "ghost")


def test_grad_samplers_of_this_test_are_registered():
    assert m.Mix in GradSampleHooks.GRAD_SAMPLERS
