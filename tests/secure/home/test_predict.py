"""`fedtree-secure predict`: a delivered adapter on a file. What a run measured, `predict` measures:
tests/secure/cli/test_quickstart.py.
"""

import io
import math

import numpy as np
import pytest
from small_jobs import make_job

from fedtree_secure import BackboneError, DataError
from fedtree_secure.client.adapter import save_adapter
from fedtree_secure.client.state import initial_state, loaded_into
from fedtree_secure.home.predict import predict_file
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.rows import ClientData, Table, tokenise

TEXTS = ["badu bebu", "badu " * 40, "bidu bodu gagu kuku"]


def delivered(model, folder, labels, **changes):
    backbone = Backbone(make_job(model, **changes))
    flat = np.zeros(backbone.experts.depth, dtype=bool)
    outputs = len(labels)
    with loaded_into(backbone, initial_state(backbone, outputs), outputs, flat):
        save_adapter(backbone, folder, labels)
    return backbone, flat


@pytest.fixture(scope="module")
def classifier(tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    delivered(tiny_bert, folder, ("x", "y", "z"))
    return folder


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,code,other\n" + "".join(f'"{t}",x,"a,b"\n' for t in TEXTS))
    return path


def test_each_row_gets_a_label_and_keeps_what_it_had(classifier, file):
    found = predict_file(classifier, file, label="code")
    assert all(answer.answer in "xyz" for answer in found.answers)
    assert found.metric["rows"] == 3
    assert found.metric["value"] == sum(a.answer == "x" for a in found.answers) / 3
    written = io.StringIO()
    found.write(written)
    header, first, *_ = written.getvalue().splitlines()
    assert header == "text,code,other,predicted,probability"
    assert first.startswith('badu bebu,x,"a,b",')


def test_an_answer_depends_on_its_own_row_alone(classifier, file, tmp_path):
    whole = predict_file(classifier, file).answers
    alone = tmp_path / "alone.csv"
    alone.write_text(f"text\n{TEXTS[2]}\n")
    (answer,) = predict_file(classifier, alone).answers
    assert answer.answer == whole[2].answer
    assert answer.probability == pytest.approx(whole[2].probability, abs=1e-5)


def test_a_language_model_gives_each_texts_own_perplexity(tiny_llama, tmp_path, file):
    """The mean over the tokens is that of the run's own metric."""
    backbone, flat = delivered(tiny_llama, tmp_path / "lm", (), task="causal-lm")
    found = predict_file(tmp_path / "lm", file).answers
    for text, answer in zip(TEXTS, found, strict=True):
        rows = Table(tokenise([text], backbone.tokenizer, backbone.job), None)
        with loaded_into(backbone, initial_state(backbone, 0), 0, flat):
            metric = backbone.evaluate(ClientData(rows, rows, (), labels_declared=True))
        assert float(answer.answer) == pytest.approx(metric["value"], rel=1e-3)
        assert answer.probability is None
        assert math.isfinite(metric["value"])
        assert metric["tokens"] == len(rows.tokens[0]) - 1


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        ("note,code\na,x\n", {}, "no column 'text'"),
        ("text,code\na,x\n", {"label": "cod"}, "did you mean 'code'"),
        ("text,code\na,q\n", {"label": "code"}, "it knows x, y, z"),
        ("text,code\n ,x\n", {}, "every row needs a text"),
        ("text,code\n", {}, "every row needs a text"),
        ("text,code\na,b,c\n", {}, "double quotes"),
    ],
)
def test_files_that_cannot_be_used_are_refused(classifier, tmp_path, content, options, told):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(DataError) as refused:
        predict_file(classifier, path, **options)
    assert told in str(refused.value)


def test_a_folder_without_an_adapter_is_refused(tmp_path, file):
    with pytest.raises(BackboneError, match="no delivered adapter"):
        predict_file(tmp_path, file)
