"""Which rows belong together: read from a column, bounded, and refused where it cannot be right."""

import dataclasses
import json
import math

import numpy as np
import pytest
from unit_rows import UNIT, unit_clients, unit_job

from fedtree_dp import PrivacyUnit
from fedtree_secure import Client, ConfigurationError, DataError, Federation, PrivacyBudget
from fedtree_secure.client.canaries import draw_canaries
from fedtree_secure.client.data import load_clients, prepare
from fedtree_secure.client.units import find_units
from fedtree_secure.config import Job
from fedtree_secure.job_file import ClientFiles, build, load_job

BUDGET = PrivacyBudget(epsilon=8, delta=1e-3)
PATIENT = PrivacyUnit("patient_id", 2)


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


def client(owners, test=None, **more):
    table = {"text": ["bab"] * len(owners), "label": ["x", "y"] * (len(owners) // 2)}
    held = None if test is None else {"text": ["bab"] * len(test), "label": ["x"] * len(test)}
    if "column" not in more:
        table["patient_id"] = owners
        if held is not None:
            held["patient_id"] = test
    more.pop("column", None)
    return Client("a", train=table, test=held, labels=("x", "y"), **more)


def half_named():
    """A client whose test rows alone have no column of units."""
    return dataclasses.replace(client(["a", "b"]), test={"text": ["bab"], "label": ["x"]})


def prepared(given, tokenizer, backbone, **changes):
    return prepare(given, unit_job(backbone, **changes), tokenizer)


def test_units_are_numbered_and_cut_to_their_first_rows():
    found = find_units("a", PATIENT, ["b", "a", "b", "c", "b", "a", "d"], None)
    assert found.kept.tolist() == [0, 1, 2, 3, 5, 6]
    assert found.of_rows.tolist() == [0, 1, 0, 2, 1, 3]
    assert found.count == 4
    assert "patient" not in repr(found)


def test_which_rows_of_units_are_kept_depends_on_their_own_rows_alone():
    names = ["b", "a", "b", "c", "b", "a", "d", "b"]
    whole = find_units("a", PATIENT, names, None)
    kept = {i for i in whole.kept.tolist() if names[i] == "b"}
    for other in "acd":
        rest = [i for i, name in enumerate(names) if name != other]
        part = find_units("a", PrivacyUnit("p", 2), [names[i] for i in rest] + ["e"] * 2, None)
        assert {rest[i] for i in part.kept.tolist() if i < len(rest)} & {0, 2, 4, 7} == kept


def test_units_of_numbers_and_text_are_the_same(tiny_bert, tokenizer):
    one = prepared(client([7, 8, 7, 9]), tokenizer, tiny_bert).train
    two = prepared(client(["7", "8 ", "7", "9"]), tokenizer, tiny_bert).train
    three = prepared(client(np.array([7, 8, 7, 9])), tokenizer, tiny_bert).train
    assert one.units.tolist() == two.units.tolist() == three.units.tolist() == [0, 1, 0, 2]
    assert one.members == ((0, 2), (1,), (3,))
    assert one.none().members == ()


def test_rows_that_units_have_too_many_of_are_left_out(tiny_bert, tokenizer):
    data = prepared(client(["a", "b"] * 6), tokenizer, tiny_bert, max_per_unit=4)
    assert len(data.train) == len(data.train.labels) == 8
    assert data.train.units.tolist() == [0, 1] * 4
    llm = prepared(client(["a", "b"] * 6), tokenizer, tiny_bert, task="causal-lm", max_per_unit=4)
    assert len(llm.train) == 8


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (client(["a", "b"], column=False), "train has no column 'patient_id'"),
        (half_named(), "test has no column 'patient_id'"),
        (client(["a", None, "b", "c"]), "row 1 of train names no unit"),
        (client(["a", "b", " ", "c"]), "row 2 of train names no unit"),
        (client(["a", "b", "", "c"]), "row 2 of train names no unit"),
        (client(["a", "b", math.nan, "c"]), "row 2 of train names no unit"),
        (client(["a", "b", "c", "d"], ["e", None]), "row 1 of test names no unit"),
        (client(["a", "b", 1.5, "c"]), "names its unit by a float"),
        (client([True, "b", "a", "c"]), "names its unit by a bool"),
        (client([["a"], "b", "a", "c"]), "names its unit by a list"),
        (client(["a", "a", "a", "b"]), "one unit holds 3 of 4 training rows, more than half"),
        (client(["a", "b", "c", "d"], ["e", "c"]), "1 units have rows in train and in test"),
    ],
)
def test_bad_units_are_refused_and_never_quoted(given, said, tiny_bert, tokenizer):
    with pytest.raises(DataError, match=said) as caught:
        prepared(given, tokenizer, tiny_bert)
    assert str(caught.value).startswith("client a: ")


def test_units_of_which_one_holds_half_are_accepted(tiny_bert, tokenizer):
    assert len(prepared(client(["a", "a", "b", "c"]), tokenizer, tiny_bert).train) == 4


def test_delta_is_compared_with_the_number_of_units(tiny_bert, tokenizer):
    given = client(["a", "b", "c", "d"] * 3, privacy=PrivacyBudget(epsilon=8, delta=0.2))
    prepared(given, tokenizer, tiny_bert)
    with pytest.raises(DataError, match="not below 1/n for its training rows"):
        prepared(given, tokenizer, tiny_bert, unit=None, max_per_unit=None)
    wide = client(["a", "b", "c", "d"] * 3, privacy=PrivacyBudget(epsilon=8, delta=0.25))
    with pytest.raises(DataError, match="not below 1/n for its training units"):
        prepared(wide, tokenizer, tiny_bert)


def test_a_client_with_units_refuses_a_job_for_single_rows(tiny_bert, tokenizer):
    given = client(["a", "b", "c", "d"], unit="patient_id")
    with pytest.raises(DataError, match="the job protects single records; set unit"):
        prepared(given, tokenizer, tiny_bert, unit=None, max_per_unit=None)


def test_units_in_files_may_stand_in_another_column(tmp_path, tiny_bert, tokenizer):
    lines = ["text,label,pid", "bab,x,007", "fod,y,7", "bab,x,007", "bab,x,8"]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    entry = ClientFiles(id="a", train="rows.csv", unit="pid", labels=("x", "y"))
    (given,) = load_clients([entry], tmp_path)
    assert prepared(given, tokenizer, tiny_bert).train.units.tolist() == [0, 1, 0, 2]


# --- what is agreed -------------------------------------------------------------------------------


def job(**changes):
    return Job(**{"backbone": "b", "privacy": BUDGET, **changes})


def test_a_job_without_units_hashes_as_if_there_were_none():
    """Settings are hashed by their names, so names that say nothing must not be there."""
    assert not {"unit", "max_per_unit"} & job().to_dict().keys()


def test_units_are_part_of_what_is_agreed():
    other = (UNIT | {"max_per_unit": 5}, UNIT | {"unit": "stay"})
    digests = {given.digest() for given in (job(), *(job(**unit) for unit in (UNIT, *other)))}
    assert len(digests) == 4
    again = build(Job, json.loads(json.dumps(job(**UNIT).to_dict())), "")
    assert again == job(**UNIT)
    assert again.privacy_unit == PrivacyUnit("patient_id", 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"unit": "patient_id"}, "max_per_unit is not given; give both"),
        ({"max_per_unit": 3}, "unit is not given; give both"),
        ({"unit": "patient_id", "max_per_unit": 0}, "max_per_unit must be a whole number from 1"),
        ({"unit": "patient_id", "max_per_unit": 2.5}, "max_per_unit must be a whole number"),
        ({"unit": "", "max_per_unit": 2}, "unit must be a string of 1 to 200 characters"),
        ({"unit": "a\nb", "max_per_unit": 2}, "unit must be printable"),
    ],
)
def test_half_a_unit_is_refused(given, said, tmp_path):
    with pytest.raises(ConfigurationError, match=said):
        job(**given)
    with pytest.raises(ConfigurationError, match=said):
        Federation("b", BUDGET, **given)
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items())
    rest = '[privacy]\nepsilon = 8\ndelta = 1e-3\n[[clients]]\nid = "a"\ntrain = "t.csv"\n'
    text = f'backbone = "b"\n{lines}{rest}'
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(ConfigurationError):
        load_job(tmp_path / "job.toml")


def test_canaries_are_whole_units(tiny_bert, tokenizer):
    settings = unit_job(tiny_bert)
    data = prepare(unit_clients(each=1)[0], settings, tokenizer)
    canaries = draw_canaries(20, tokenizer, 2, bytes(32))
    planted = canaries.planted(data, settings, tokenizer).train
    included = sum(canaries.included)
    assert len(planted.members) == len(data.train.members) + included
    assert len(planted) == len(planted.labels) == len(planted.units)
    for members in planted.members[len(data.train.members) :]:
        assert len(members) == 4
        assert len({planted.tokens[i] for i in members}) == 1
