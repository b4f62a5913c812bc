"""Settings: ranges, unknown names with a suggestion, TOML and Python under the same names."""

import math

import pytest

from fedtree_dp import ConfigurationError as DPConfigurationError
from fedtree_secure import ConfigurationError, Lora, Masking, PrivacyBudget, Topology, Training
from fedtree_secure.client.data import place_of
from fedtree_secure.config import Job
from fedtree_secure.job_file import load_job

BUDGET = PrivacyBudget(epsilon=8, delta=1e-5)
GOOD = """
backbone = "model"
rounds = 3
[privacy]
epsilon = 8
delta = 1e-5
[training]
sample_rate = 0.25
[lora]
targets = ["query"]
[[clients]]
id = "a"
train = "a.csv"
labels = [0, 1]
"""


def write(tmp_path, text):
    path = tmp_path / "job.toml"
    path.write_text(text)
    return path


def test_toml_and_python_give_the_same_job(tmp_path):
    job, clients = load_job(write(tmp_path, GOOD))
    same = Job(
        backbone="model",
        privacy=BUDGET,
        rounds=3,
        training=Training(sample_rate=0.25),
        lora=Lora(targets=("query",)),
    )
    assert job == same
    assert job.digest() == same.digest()
    assert clients[0].labels == (0, 1)


def test_every_setting_changes_the_digest():
    base = Job(backbone="m", privacy=BUDGET)
    others = [
        Job(backbone="m", privacy=PrivacyBudget(epsilon=7, delta=1e-5)),
        Job(backbone="m", privacy=BUDGET, seed=1),
        Job(backbone="m", privacy=BUDGET, masking=Masking(min_group=4)),
        Job(backbone="m", privacy=BUDGET, topology=Topology(window=2)),
        Job(backbone="m", privacy=BUDGET, training=Training(precision="bfloat16")),
        Job(backbone="m", privacy=BUDGET, training=Training(keep_activations=False)),
        Job(backbone="m", privacy=BUDGET, training=Training(activations_in_memory=128)),
    ]
    assert len({job.digest() for job in [base, *others]}) == len(others) + 1


def test_settings_that_came_later_leave_the_digest_of_a_job_without_them():
    """Jobs and runs of earlier versions stay what they were."""
    known = Job(backbone="m", privacy=BUDGET).to_dict()
    assert not {"precision", "keep_activations", "activations_in_memory"} & set(known["training"])
    assert not {"graph", "dropouts"} & set(known["masking"])


def test_the_place_of_the_model_is_no_part_of_the_job():
    """Each party keeps its copy where it likes; that it is the same model is compared by digest."""
    assert Job(backbone="m", privacy=BUDGET).digest() == Job(backbone="m2", privacy=BUDGET).digest()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rounds = 3", "ruonds = 3", "did you mean 'rounds'"),
        ("sample_rate", "sampel_rate", "did you mean 'sample_rate'"),
        ("[lora]", "[loar]", "did you mean 'lora'"),
        ('train = "a.csv"', 'trian = "a.csv"', "did you mean 'train'"),
        ("epsilon = 8", "epsilonn = 8", "did you mean 'epsilon'"),
        ('train = "a.csv"\n', "", "missing setting clients[0].train"),
        ("[[clients]]", "[clients]", "names no clients"),
        ("rounds = 3", 'rounds = "3"', "rounds"),
        ("rounds = 3", "rounds = -1", "rounds is -1"),
        ("sample_rate = 0.25", "sample_rate = 1.5", "above 0 and at most 1"),
        ("rounds = 3", "rounds = = 3", "not valid TOML"),
    ],
)
def test_bad_files_are_refused_with_the_reason(tmp_path, old, new, told):
    assert old in GOOD
    with pytest.raises(ConfigurationError, match=r".") as caught:
        load_job(write(tmp_path, GOOD.replace(old, new)))
    assert told in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml"):
        load_job(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf])
def test_epsilon_must_be_finite_and_positive(epsilon):
    with pytest.raises(DPConfigurationError):
        PrivacyBudget(epsilon=epsilon, delta=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Lora, {"r": 0}),
        (Lora, {"last_layers": 0}),
        (Lora, {"alpha": math.nan}),
        (Training, {"sample_rate": 0.0}),
        (Training, {"local_steps": 0}),
        (Training, {"max_grad_norm": math.inf}),
        (Training, {"head": "none"}),
        (Training, {"precision": "float16"}),
        (Training, {"keep_activations": 1}),
        (Training, {"activations_in_memory": -1}),
        (Topology, {"source": "weights"}),
        (Topology, {"linkage": "centroid"}),
        (Topology, {"fingerprint_share": 1.0}),
        (Topology, {"significance": 1.0}),
        (Topology, {"mixing_weight": 1.0}),
        (Topology, {"mixing_weight": 0.0}),
        (Topology, {"window": 0}),
        (Masking, {"min_group": 1}),
        (Masking, {"min_group": 2, "colluders": 0}),
        (Masking, {"min_group": 3, "colluders": 2}),
    ],
)
def test_values_out_of_range_are_refused(kind, settings):
    with pytest.raises(ConfigurationError, match="allowed"):
        kind(**settings)


def test_language_modelling_has_no_head_to_train():
    with pytest.raises(ConfigurationError, match="head"):
        Job(backbone="m", privacy=BUDGET, task="causal-lm", training=Training(head="group"))
    assert Job(backbone="m", privacy=BUDGET, task="causal-lm").head == "frozen"
    assert Job(backbone="m", privacy=BUDGET).head == "group"


def test_a_backbone_lies_where_the_job_file_says(tmp_path, monkeypatch):
    """Relative to the file, as all paths in it; a name that is no folder there is a hub id."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, found in (
        ("models/mine", str(tmp_path / "models" / "mine")),
        ("./gone", str(tmp_path / "gone")),
        ("gone.gguf", str(tmp_path / "gone.gguf")),
        ("~/models/mine", str(tmp_path / "models" / "mine")),
        ("/models/mine", "/models/mine"),
        ("who/what", "who/what"),
    ):
        job, _ = load_job(write(tmp_path, GOOD.replace('"model"', f'"{given}"')))
        assert job.backbone == found, given


def test_the_home_folder_is_expanded_in_a_clients_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place_of("~/a.csv", tmp_path / "jobs") == tmp_path / "a.csv"
    assert place_of("a.csv", tmp_path / "jobs") == tmp_path / "jobs" / "a.csv"
