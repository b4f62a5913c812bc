"""Activations of frozen layers: a step with them is the step without, nobody else gets at them, and
nothing of them is left.
"""

import errno
import logging
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_jobs import make_clients, make_job, scripted

from fedtree_dp import DPSGD, Ledger, NoiseSource
from fedtree_secure import Federation, Lora, Topology, Training
from fedtree_secure.client.data import prepare
from fedtree_secure.client.kept import FOLDER, Kept, keep
from fedtree_secure.client.mechanism import Mechanism
from fedtree_secure.client.parts import LocalModel
from fedtree_secure.client.seats import slots_of
from fedtree_secure.client.state import initial_state
from fedtree_secure.client.training import RoundTrainer
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.model import arithmetic
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.rows import Table

RECORDS, WIDTHS = 40, (16, 20)
TRAINING = Training(records=RECORDS, max_length=WIDTHS[-1], head_steps=4)
SEED = b"s" * 32


def job_of(model, task="classification", **training):
    return make_job(
        model,
        task=task,
        lora=Lora(r=2, alpha=4.0, last_layers=2),
        topology=Topology(source="one_group", sketch_size=64),
        training=replace(TRAINING, **training),
    )


@pytest.fixture(scope="module", params=["bert", "llama", "bert in bfloat16"])
def backbone(request, bert, rounded, tiny_llama):
    if request.param == "llama":
        return Backbone(job_of(tiny_llama, task="causal-lm"))
    return bert if request.param == "bert" else rounded


@pytest.fixture(scope="module")
def bert(deep_bert):
    return Backbone(job_of(deep_bert))


@pytest.fixture(scope="module")
def rounded(deep_bert):
    """The same with steps in bfloat16, whatever this processor has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "computes_bfloat16", lambda _: True)
        return Backbone(job_of(deep_bert, precision="bfloat16"))


def data_of(backbone, number=0):
    """Rows of both widths."""
    client = make_clients(count=RECORDS)[number]
    data = prepare(client, backbone.job, backbone.tokenizer)
    tokens = tuple(
        (row * 5)[: 20 if i % 4 == 0 else len(row)] for i, row in enumerate(data.train.tokens)
    )
    return replace(data, train=replace(data.train, tokens=tokens))


def kept_of(backbone, data, place, *, on_disk, **training):
    settings = replace(
        backbone.job.training, activations_in_memory=0 if on_disk else 64, **training
    )
    job = replace(backbone.job, training=settings)
    return keep(backbone, job, data.train, RECORDS, place)


def trained(backbone, data, kept, values=1.0, steps=2):
    """What a client uploads after some noisy steps of one seed."""
    outputs, depth = len(data.label_set), backbone.experts.depth
    state = initial_state(backbone, outputs)
    rng = np.random.default_rng(1)
    state.own = (values * rng.normal(size=state.own.size)).astype(np.float32)
    model = LocalModel(outputs, (True,) * depth, np.zeros(depth, dtype=bool))
    engine = {"engine": Unguarded} if values != 1.0 else {}
    trainer = RoundTrainer(backbone, backbone.job, kept=kept, **engine)
    mechanism, noise = Mechanism(0.5, RECORDS, steps), NoiseSource(SEED)
    return trainer.train(data, state, model, mechanism, noise, upload_gradient=False)


def Unguarded(*given, **settings):
    """The engine without its rehearsal, which would refuse damaged weights."""
    engine = DPSGD(*given, **settings)
    engine.rehearse = lambda _: setattr(engine, "_rehearsed", True)
    return engine


@pytest.fixture(scope="module")
def exact():
    """What steps without kept activations give; computed once for the same steps."""
    known = {}

    def of(backbone, data, values=1.0):
        what = (backbone.digest, backbone.bfloat16, data.train.tokens, values)
        if what not in known:
            known[what] = bits(trained(backbone, data, None, values))
        return known[what]

    return of


def bits(values):
    return values.view(np.uint32).tolist()


def contents(kept):
    """Activations by row."""
    kept._fill()
    return [kept._shelf.get(row) for row in range(len(kept._table))]


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("values", [1.0, 1e8])
def test_a_step_with_kept_activations_is_the_step_without(
    backbone, tmp_path, exact, on_disk, values
):
    """To the last bit, also under weights that a server damaged."""
    data = data_of(backbone)
    kept = kept_of(backbone, data, tmp_path, on_disk=on_disk)
    found = trained(backbone, data, kept, values)
    assert kept._filled
    assert not kept._over
    assert bits(found) == exact(backbone, data, values)
    assert bits(trained(backbone, data, kept, values)) == bits(found)
    kept.close()


def test_frozen_layers_run_once_for_all_steps(bert):
    data, shapes = data_of(bert), []
    kept, slots = kept_of(bert, data, None, on_disk=False), slots_of(bert.job, RECORDS)
    lowest = bert.model.base_model.encoder.layer[0].attention
    handle = lowest.register_forward_hook(lambda _, given, __: shapes.append(given[0].shape[:2]))
    try:
        trained(bert, data, kept)
        computed = [shape for shape in shapes if shape[0] == slots]
        trained(bert, data, kept)
    finally:
        handle.remove()
    rows = {width: sum(bert_width == width for bert_width in widths_of(data)) for width in WIDTHS}
    assert [shape for shape in shapes if shape[0] == slots] == computed
    batches = [(slots, width) for width in WIDTHS for _ in range(-(-rows[width] // (slots - 1)))]
    assert sorted(map(tuple, computed)) == batches


def widths_of(data):
    return [WIDTHS[0] if len(row) <= WIDTHS[0] else WIDTHS[1] for row in data.train.tokens]


def test_what_is_kept_of_a_row_is_the_same_whoever_the_others_are(backbone):
    data, other = data_of(backbone), data_of(backbone, 1)
    units, labels = data.train.units, data.train.labels
    mine = data.train.tokens[:9]
    tables = [
        Table(mine + rest, None if labels is None else labels[: len(mine + rest)], units)
        for rest in ((), other.train.tokens[:1], other.train.tokens[4:30])
    ]
    found = [
        contents(kept_of(backbone, replace(data, train=table), None, on_disk=False))[: len(mine)]
        for table in tables
    ]
    for rest in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], rest, strict=True))
    assert not torch.equal(found[0][1], found[0][2][: len(found[0][1])])


def test_no_value_of_an_adapter_reaches_what_is_kept(bert):
    """Whoever is loaded, and whatever a server sent."""
    data = data_of(bert)
    before = contents(kept_of(bert, data, None, on_disk=False))
    trained(bert, data, None, 1e8)
    after = contents(kept_of(bert, data, None, on_disk=False))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    lowest = min(bert.experts.indices)
    assert len(bert.lower) == lowest == 2


def test_activations_of_other_rows_shapes_or_models_are_not_taken(bert, exact):
    data, other = data_of(bert), data_of(bert, 1)
    swapped = [*data.train.tokens]
    swapped[1], swapped[2] = swapped[2], swapped[1]
    for wrong in (other, replace(data, train=replace(data.train, tokens=tuple(swapped)))):
        kept = kept_of(bert, wrong, None, on_disk=False)
        assert bits(trained(bert, data, kept)) == exact(bert, data)
        assert not kept._filled
    slots = slots_of(bert.job, RECORDS)
    kept = kept_of(bert, data, None, on_disk=False)
    assert kept.fits(data.train, slots)
    assert not kept.fits(data.train, slots + 1)
    again = Kept(Backbone(replace(bert.job, seed=1)), bert.job, data.train, slots, kept._shelf)
    assert again._key != kept._key


def test_a_file_has_no_name_and_tells_nothing(bert, tmp_path):
    data = data_of(bert)
    kept = kept_of(bert, data, tmp_path / "run", on_disk=True)
    plain = contents(kept)
    descriptor = kept._shelf._file.fileno()
    found = os.fstat(descriptor)
    assert (stat.S_IMODE(found.st_mode), found.st_nlink) == (0o600, 0)
    assert [
        stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "run", tmp_path / "run" / FOLDER)
    ] == [0o700] * 2
    assert list((tmp_path / "run" / FOLDER).iterdir()) == []
    stored = os.pread(descriptor, found.st_size, 0)
    assert len(stored) > RECORDS * 16 * 32 * 4
    assert not any(row[0].numpy().tobytes()[:32] in stored for row in plain)
    again = kept_of(bert, data, tmp_path / "other", on_disk=True)
    contents(again)
    assert os.pread(again._shelf._file.fileno(), 64, 0) != stored[:64]  # another key
    again.close()
    kept.close()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("harm", ["edited", "another row's", "cut off"])
def test_a_damaged_file_is_noticed_and_costs_time_alone(bert, tmp_path, caplog, exact, harm):
    data = data_of(bert)
    kept = kept_of(bert, data, tmp_path, on_disk=True)
    contents(kept)
    shelf = kept._shelf
    file, start, other = shelf._file.fileno(), shelf._starts[3], shelf._starts[2]
    if harm == "edited":
        os.pwrite(file, bytes([os.pread(file, 1, start)[0] ^ 1]), start)
    elif harm == "another row's":
        os.pwrite(file, os.pread(file, shelf._starts[4] - start, other), start)
    else:
        os.ftruncate(file, start)
    with caplog.at_level(logging.WARNING):
        found = trained(bert, data, kept)
    assert "cannot be used (InvalidTag)" in caplog.text
    assert bits(found) == exact(bert, data)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_deleted_at_the_next_start(bert, tmp_path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / ".nfs01").write_bytes(b"left")
    kept = kept_of(bert, data_of(bert), tmp_path, on_disk=False)
    assert not (tmp_path / FOLDER).exists()
    kept.close()


@pytest.mark.parametrize(
    "training", [{"keep_activations": False}, {"sample_rate": 0.5}, {"activations_in_memory": 0}]
)
def test_nothing_is_kept_where_nothing_is_gained_or_there_is_no_place(bert, training):
    job = replace(bert.job, training=replace(bert.job.training, **training))
    assert keep(bert, job, data_of(bert).train, RECORDS, None) is None


def test_nothing_is_kept_where_every_layer_has_an_adapter(tiny_bert):
    job = replace(job_of(tiny_bert), lora=Lora(r=2, alpha=4.0))
    whole = Backbone(job)
    assert whole.lower is None
    assert keep(whole, job, data_of(whole).train, RECORDS, None) is None


def test_steps_in_bfloat16_are_those_in_float32_up_to_rounding(bert, rounded, exact):
    data = data_of(bert)
    one, two = (np.array(exact(b, data), np.uint32).view(np.float32) for b in (bert, rounded))
    assert rounded.bfloat16
    assert 0 < np.linalg.norm(one - two) < 0.1 * np.linalg.norm(one)


def test_a_processor_without_bfloat16_computes_in_float32(deep_bert, monkeypatch, caplog):
    monkeypatch.setattr(arithmetic, "computes_bfloat16", lambda _: False)
    with caplog.at_level(logging.WARNING):
        assert not Backbone(job_of(deep_bert, precision="bfloat16")).bfloat16
    assert "no bfloat16" in caplog.text


# -- whole runs ------------------------------------------------------------------------------------


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_refuses_a_run_before_anything_is_charged(
    deep_bert, tmp_path, stores, monkeypatch
):
    monkeypatch.setattr(os, "posix_fallocate", full)
    job = Federation.of(job_of(deep_bert, activations_in_memory=0))
    with pytest.raises(
        ConfigurationError, match=r"take 0 MiB, .* \(No space left on device\): free"
    ) as told:
        job.run(make_clients(1, count=RECORDS), tmp_path / "run", progress=False)
    assert "training.keep_activations = false" in str(told.value)
    assert not (tmp_path / "run").exists()
    for store in stores.glob("*/store.sqlite"):
        with Ledger.inspect(store) as ledger:
            assert ledger.events() == ()


def test_nothing_is_left_of_a_run(deep_bert, tmp_path):
    """Of a client that leaves, nothing from then on."""
    seen, clients = [], make_clients(1, each=4, count=RECORDS)

    def look(stage, replies):
        seen.append(sorted(p.parent.name for p in (tmp_path / "run").rglob(FOLDER)))
        if len(seen) == 1:
            made[0].inner._inner._participants["t0-c3"].__self__.leave()
        return replies

    wrap, made = scripted(change=look)
    job = Federation.of(job_of(deep_bert, activations_in_memory=0))
    job.run(clients, tmp_path / "run", progress=False, wrap_transport=wrap)
    everyone = [client.id for client in clients]
    assert seen[0] == everyone
    assert len(seen) > 1
    assert all(found == everyone[:3] for found in seen[1:])
    assert not list((tmp_path / "run").rglob(FOLDER))
