"""Each advice appears where its facts hold, and not where they do not."""

import copy
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from fedtree_secure.report.advice import (
    HEAD,
    LABELS,
    NOISE,
    ONE_GROUP,
    TOO_FEW,
    UNTRAINED,
    advice_of,
    interval,
    too_few,
)
from fedtree_secure.report.page import render
from fedtree_secure.report.statement import Statement
from fedtree_secure.report.summary import Result, remarks

NAMES = tuple(f"c{i}" for i in range(6))
SPLIT = [list(NAMES[:3]), list(NAMES[3:])]


def metric(value, name="accuracy"):
    return {"name": name, "value": value}


def summary(**changes):
    """A result that advises nothing: two groups, declared labels, adapters that pay."""
    clients = {
        name: {
            "metric": metric(0.8 + i / 100),
            "without_adapters": metric(0.6 + i / 90),
            "untrained": None,
            "labels": ["a", "b"],
            "labels_declared": True,
            "noise_to_clip": 0.5,
        }
        for i, name in enumerate(NAMES)
    }
    job = {
        "task": "classification",
        "rounds": 4,
        "topology": {"source": "fingerprint"},
        "masking": {"min_group": 3},
        "training": {"head": "auto"},
    }
    layers = [{"clusters": SPLIT, "released": SPLIT, "why": ""}]
    return {"job": {**job, **changes}, "clients": clients, "layers": layers, "heads": []}


def keys(data):
    return [advice.key for advice in advice_of(data)]


def each(data, **facts):
    for report in data["clients"].values():
        report.update(copy.deepcopy(facts))


def whole(data, why="layer 0 is shared by 6: a split would cost 1 and save 0.5"):
    data["layers"] = [{"clusters": [list(NAMES)], "released": [list(NAMES)], "why": why}]


def test_a_result_without_reason_advises_nothing():
    assert keys(summary()) == []


# --- public facts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("layer 0 is shared by 6: a split would cost 1", "no split pays at this noise"),
        ("", "no split is clear at this noise"),
    ],
)
def test_one_group_everywhere_says_why(why, said):
    data = summary()
    whole(data, why)
    (found,) = advice_of(data)
    assert (found.key, found.public) == (ONE_GROUP, True)
    assert found.text.startswith(f"one group everywhere, because {said}")


def test_one_layer_that_is_split_is_not_one_group_everywhere():
    data = summary()
    whole(data)
    data["layers"].append({"clusters": SPLIT, "released": SPLIT, "why": "x"})
    assert ONE_GROUP not in keys(data)


@pytest.mark.parametrize("source", ["one_group", "none"])
def test_a_tree_that_nobody_looked_for_is_not_advised_about(source):
    data = summary(topology={"source": source})
    whole(data, "")
    assert keys(data) == []
    assert keys({**summary(rounds=0), "layers": data["layers"]}) == []


def test_too_few_clients_for_two_groups_are_counted():
    data = summary(masking={"min_group": 4})
    whole(data)
    (found,) = advice_of(data)
    assert found.key == TOO_FEW  # and not that no split pays: none was possible
    assert found.text.startswith("6 clients cannot make two groups of 4: ")
    assert too_few("fingerprint", 6, 3) == too_few("one_group", 3, 3) == ""
    assert "the warm-up" in too_few("lora_b", 5, 3)


def test_more_noise_in_the_largest_group_than_adapters_have_paid_with_is_advised_about():
    data = summary()
    each(data, noise_to_clip=3.0)
    (found,) = advice_of(data)
    assert (found.key, found.public) == (NOISE, True)
    assert "1.7 times the clipping norm even among 3 clients" in found.text
    assert "or rounds = 0, the head alone" in found.text
    each(data, noise_to_clip=0.7)  # below .45 times the root of three
    assert keys(data) == []
    each(data, noise_to_clip=None)  # heads alone: nothing is drowned
    assert keys(data) == []


def test_labels_that_were_read_from_rows_keep_heads_at_home():
    data = summary()
    data["clients"]["c1"]["labels_declared"] = False
    (found,) = advice_of(data)
    assert found.key == LABELS
    assert "heads stay at home for c1:" in found.text
    data["job"]["training"]["head"] = "local"  # as was asked for
    assert keys(data) == []


# --- measured at home -----------------------------------------------------------------------------


def test_a_head_alone_that_is_as_good_is_said():
    data = summary()
    for i, report in enumerate(data["clients"].values()):
        report["without_adapters"] = metric(report["metric"]["value"] + (-1) ** i / 50)
    (found,) = advice_of(data)
    assert (found.key, found.public) == (HEAD, False)
    assert "over 6 clients, +0.000 on average (95% of -0.0" in found.text


def test_adapters_that_are_better_beyond_chance_are_not_advised_against():
    data = summary()
    gaps = [r["metric"]["value"] - r["without_adapters"]["value"] for r in data["clients"].values()]
    assert interval(gaps)[0] > 0
    assert HEAD not in keys(data)


def test_of_fewer_than_three_clients_nothing_is_said():
    data = summary()
    for name in NAMES[2:]:
        data["clients"][name]["metric"] = None
    each_of = list(data["clients"].values())[:2]
    for report in each_of:
        report["without_adapters"] = report["metric"]
    assert keys(data) == []
    assert interval([0.0, 0.0]) is None


def test_a_reference_under_the_same_epsilon_is_the_fairer_rival():
    data = summary()
    rival = {name: {"metric": report["metric"]} for name, report in data["clients"].items()}
    data["references"] = {"head": {"private": True, "clients": rival}}
    assert keys(data) == [HEAD]
    worse = {name: {"metric": metric(0.1)} for name in rival}
    data["references"]["head_group"] = {"private": True, "clients": worse}  # the stronger one
    assert HEAD not in keys(data)


@pytest.mark.parametrize(("better", "advised"), [(200.0, False), (0.5, True)])
def test_of_perplexity_less_is_better(better, advised):
    data = summary(task="causal-lm")
    for i, report in enumerate(data["clients"].values()):
        report |= {
            "metric": metric(500.0 + i, "perplexity"),
            "untrained": metric(500.0 + i + better * (-1) ** (i if advised else 0), "perplexity"),
            "without_adapters": None,
            "labels": [],
        }
    assert keys(data) == ([UNTRAINED] if advised else [])


def test_heads_alone_were_asked_for():
    data = summary(rounds=0)
    for report in data["clients"].values():
        report["without_adapters"] = report["metric"]
    assert keys(data) == []


# --- where it is shown ----------------------------------------------------------------------------


def test_a_result_prints_its_advice_and_has_it_by_key(finished):
    data = json.loads((finished / "summary.json").read_text())
    result = Result(finished, {}, data)
    assert [advice.to_dict() for advice in result.advice] == data["advice"]
    assert {advice.key for advice in result.advice} >= {TOO_FEW, LABELS}
    console = Console(file=io.StringIO(), width=400)
    result.summary(console)
    for advice in result.advice:
        assert f"Advice: {advice.text}." in remarks(data)
        assert f"Advice: {advice.text}." in console.file.getvalue()


def test_the_adapters_of_a_real_run_are_switched_off_for_comparison(finished):
    data = json.loads((finished / "summary.json").read_text())
    for report in data["clients"].values():
        assert report["without_adapters"]["rows"] == report["metric"]["rows"]
        assert report["untrained"] is None
        assert report["noise_to_clip"] > 0


def test_the_page_shows_advice_and_macro_f1_of_each_client(finished):
    statement = Statement.of(finished)
    page = render(statement)
    assert page.count("<h2>Advice</h2>") == 1
    assert "cannot make two groups of 3" in page
    assert page.count(">macro F1</th>") == 1
    for client in statement.clients:
        assert f'<td class="n">{client.metric["macro_f1"]:.3f}</td>' in page


def test_a_page_without_advice_or_macro_f1_has_no_empty_place(finished):
    statement = Statement.of(finished)
    plain = tuple(
        replace(c, metric={"name": "perplexity", "value": 7.0}) for c in statement.clients
    )
    page = render(replace(statement, advice=(), clients=plain))
    assert "<h2>Advice</h2>" not in page
    assert "macro F1" not in page
    untested = tuple(replace(c, metric=None) for c in statement.clients)
    assert "macro F1" not in render(replace(statement, clients=untested))


def test_advice_names_no_client_where_names_are_left_out(finished):
    statement = Statement.of(finished)
    (labels,) = [a.text for a in statement.advice if a.key == LABELS]
    assert "t0-c0" in labels
    for advice in statement.without_names().advice:
        assert "t0-c" not in advice.text
