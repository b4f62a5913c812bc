"""`fedtree-secure compare`: from summaries alone."""

import json
import math

import pytest

from fedtree_secure.errors import RunFolderError
from fedtree_secure.report.comparison import compare_runs


def summary(place, values, metric="accuracy", **job):
    clients = {
        name: {
            "epsilon_spent": 7.9,
            "metric": None if value is None else {"name": metric, "value": value},
        }
        for name, value in values.items()
    }
    place.mkdir()
    content = {"clients": clients, "job": {"rounds": 4, "lora": {"r": 2}, **job}}
    (place / "summary.json").write_text(json.dumps(content))
    return place


def test_settings_that_differ_and_paired_differences_are_named(tmp_path):
    first = summary(tmp_path / "a", {"x": 0.5, "y": 0.6, "z": 0.7, "only": 0.1})
    second = summary(tmp_path / "b", {"x": 0.6, "y": 0.8, "z": 0.7, "w": None}, lora={"r": 8})
    found = compare_runs([first, second])
    assert found.settings == {"lora.r": (2, 8)}
    assert found.metric == "accuracy"
    assert found.clients["only"] == ((7.9, 0.1), None)
    assert found.clients["w"] == (None, (7.9, None))
    half = 4.303 * 0.1 / math.sqrt(3)  # Student's quantile at 2 degrees of freedom
    (said,) = found.said
    assert said == (
        f"{second} against {first}: higher for 2, lower for 0 of 3 clients, mean difference +0.100 "
        f"(95% of {0.1 - half:+.3f} to {0.1 + half:+.3f})."
    )


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ([], "give two or more"),
        ([{"values": {"x": 9.0}, "metric": "perplexity"}], "different things"),
        ([{"values": {}}], "no client in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, others, told):
    values = {} if told.startswith("no client") else {"x": 0.5}
    runs = [summary(tmp_path / "a", values)]
    runs += [summary(tmp_path / f"b{i}", **other) for i, other in enumerate(others)]
    with pytest.raises(RunFolderError) as refused:
        compare_runs(runs)
    assert told in str(refused.value)


def test_a_folder_without_a_finished_run_is_named(tmp_path):
    first = summary(tmp_path / "a", {"x": 0.5})
    with pytest.raises(RunFolderError, match="typo"):
        compare_runs([first, tmp_path / "typo"])
