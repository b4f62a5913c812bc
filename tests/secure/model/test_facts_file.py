"""A server reads what it must know of a model from a file, and refuses one that is damaged."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_jobs import make_job

from fedtree_secure.errors import BackboneError
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.facts_file import FORMAT, read_facts, write_facts


@pytest.fixture(scope="module")
def facts(tiny_bert):
    return Backbone(make_job(tiny_bert)).facts((2,))


def test_what_was_written_is_read(facts, tmp_path):
    write_facts(tmp_path / "facts", facts)
    found = read_facts(tmp_path / "facts")
    assert found == facts
    assert np.array_equal(found.initial, facts.initial)


def test_a_file_that_is_no_such_thing_is_refused(facts, tmp_path):
    for data in (None, b"", b"\x08" + bytes(60)):
        if data is not None:
            (tmp_path / "facts").write_bytes(data)
        with pytest.raises(BackboneError, match="model-facts"):
            read_facts(tmp_path / "facts")


def test_parts_that_do_not_fit_together_are_refused(facts, tmp_path):
    write_facts(tmp_path / "facts", facts)
    from safetensors import safe_open

    with safe_open(tmp_path / "facts", framework="numpy") as file:
        header = file.metadata()
    assert header["format"] == FORMAT
    initial = load_file(tmp_path / "facts")["initial"]
    broken = initial.copy()
    broken[3] = np.nan
    for wrong in (initial[:-1], initial.astype("<f8"), broken):
        save_file({"initial": np.ascontiguousarray(wrong)}, tmp_path / "wrong", metadata=header)
        with pytest.raises(BackboneError, match="do not fit together"):
            read_facts(tmp_path / "wrong")
    other = {**header, "format": "another"}
    save_file({"initial": initial}, tmp_path / "wrong", metadata=other)
    with pytest.raises(BackboneError, match="another format"):
        read_facts(tmp_path / "wrong")
