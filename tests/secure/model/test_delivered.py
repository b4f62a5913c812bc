"""The snippet in a delivered adapter's README works as printed, whatever the backbone is."""

import re

import numpy as np
import pytest
import torch
from small_jobs import make_job
from tiny_models import write_gguf

from fedtree_secure import Training
from fedtree_secure.client.adapter import save_adapter
from fedtree_secure.client.state import initial_state, loaded_into
from fedtree_secure.model.backbone import Backbone


@pytest.fixture(scope="module")
def models(tiny_bert, tiny_llama, tmp_path_factory):
    gguf = write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", layers=2)
    return {"bert": tiny_bert, "llama": tiny_llama, "gguf": gguf}


@pytest.mark.parametrize(
    ("model", "task", "pooling"),
    [
        ("bert", "classification", "mean"),
        ("bert", "classification", "native"),
        ("llama", "classification", "auto"),
        ("llama", "causal-lm", "auto"),
        ("gguf", "classification", "auto"),
        ("gguf", "causal-lm", "auto"),
    ],
)
def test_the_snippet_of_the_readme_works_as_printed(models, tmp_path, model, task, pooling):
    training = Training(records=60, max_length=6, pooling=pooling)
    backbone = Backbone(make_job(models[model], task=task, training=training))
    labels = ("x", "y", "z") if task == "classification" else ()
    state = initial_state(backbone, len(labels))
    state.own += np.random.default_rng(0).normal(scale=0.3, size=state.own.shape)
    long = "a text of far more tokens than the job allows"
    cut = backbone.tokenizer(long, truncation=True, max_length=6, return_tensors="pt")
    inputs = {name: cut[name] for name in ("input_ids", "attention_mask")}
    flat = np.zeros(backbone.experts.depth, dtype=bool)
    with loaded_into(backbone, state, len(labels), flat), torch.no_grad():
        save_adapter(backbone, tmp_path, labels)
        wanted = backbone.model(**inputs).logits
    readme = (tmp_path / "README.md").read_text("utf-8")
    snippet = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    names = {}
    exec(snippet.replace("this folder", str(tmp_path)).replace('["a text"]', f'["{long}"]'), names)
    assert float((names["logits"].detach() - wanted).abs().max()) < 1e-4
    assert ("gguf_file='tiny.gguf'" in readme) == (model == "gguf")
    if labels:
        assert names["model"].config.id2label == dict(enumerate(labels))
