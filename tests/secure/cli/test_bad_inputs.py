"""A table of bad inputs: each gives one sentence and exit code 2; nothing is charged, no run folder
is left.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import call
from small_jobs import write_job_file

from fedtree_dp import Ledger

FIRST = 'id = "t0-c0"\ntrain = "t0-c0.csv"\n'


@pytest.fixture(scope="module")
def good(tmp_path_factory, tiny_bert):
    """A folder with a job file of three clients that would run."""
    folder = tmp_path_factory.mktemp("good")
    write_job_file(folder, tiny_bert, head_steps=2)
    return folder


@dataclass
class Place:
    """A copy of the good folder that a case spoils, and what it then asks for."""

    folder: Path
    model: Path
    arguments: tuple[object, ...] = ()

    @property
    def job(self) -> Path:
        return self.folder / "job.toml"

    @property
    def out(self) -> Path:
        return self.folder / "runs" / "out"

    def replace(self, old: str, new: str) -> None:
        text = self.job.read_text()
        assert old in text
        self.job.write_text(text.replace(old, new, 1))

    def run(self, *more: object) -> None:
        self.arguments = ("run", self.job, "--out", self.out, *more)


def at(old, new):
    """Replace a part of the job file."""
    return lambda place: place.replace(old, new)


def setting(line):
    """Add a line to the settings of the job as a whole."""
    return at("rounds = 1\n", f"rounds = 1\n{line}\n")


def training(line):
    """Add a line to the settings of training, in place of one that is there."""
    name = line.split(" = ")[0]

    def change(place):
        kept = [x for x in place.job.read_text().splitlines() if not x.startswith(f"{name} = ")]
        text = "\n".join(kept).replace("[training]\n", f"[training]\n{line}\n", 1)
        place.job.write_text(text + "\n")

    return change


def rows(content, name="t0-c0.csv"):
    """Give the first client's rows another content, or another file."""

    def change(place):
        data = content if isinstance(content, bytes) else content.encode()
        (place.folder / name).write_bytes(data)
        place.replace('train = "t0-c0.csv"', f'train = "{name}"')

    return change


def added(line):
    """Add a row to the first client's file."""

    def change(place):
        with (place.folder / "t0-c0.csv").open("a") as file:
            file.write(f"{line}\n")

    return change


def first(line):
    """Add a line to the first client's table."""
    return at(FIRST, f"{FIRST}{line}\n")


def arguments(*given):
    """Ask for something else; words in capitals stand for paths."""

    def change(place):
        paths = {"OUT": place.out, "JOB": place.job, "FOLDER": place.folder}
        paths["TYPO"] = place.folder / "typo"
        place.arguments = tuple(paths.get(word, word) for word in given)

    return change


def model(change):
    """Spoil a copy of the model."""

    def spoil(place):
        folder = shutil.copytree(place.model, place.folder / "model")
        change(folder)
        place.replace(str(place.model), "model")

    return spoil


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def with_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))


def more_tokens(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"new{i}": 5000 + i for i in range(400)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def out_is_a_file(place):
    place.out.parent.mkdir()
    place.out.write_text("mine")


def out_under_a_file(place):
    place.out.parent.write_text("mine")


def out_holds_files(place):
    place.out.mkdir(parents=True)
    (place.out / "thesis.tex").write_text("mine")


def same_rows(place):
    shutil.copy(place.folder / "t0-c0.csv", place.folder / "t0-c1.csv")


def job_is_gone(place):
    place.job.unlink()


def job_is_a_folder(place):
    place.job.unlink()
    place.job.mkdir()


def job_is_latin(place):
    place.job.write_bytes(b'backbone = "mod\xe8le"\n')


def no_clients(place):
    place.job.write_text(place.job.read_text().split("\n[[clients]]")[0])


BAD = {
    # the job file
    "no job file": (job_is_gone, "there is no job file"),
    "a folder as job file": (job_is_a_folder, "Is a directory"),
    "no TOML": (at("rounds = 1", "rounds = = 1"), "not valid TOML"),
    "no UTF-8": (job_is_latin, "not valid TOML"),
    "a misspelt setting": (at("rounds", "ronds"), "did you mean 'rounds'"),
    "a misspelt setting of training": (at("sample_rate", "samplerate"), "'sample_rate'"),
    "a misspelt table": (at("[lora]", "[loras]"), "did you mean 'lora'"),
    "no backbone": (at('backbone = "', 'task = "'), "missing setting backbone"),
    "no privacy": (at("privacy = {epsilon = 8, delta = 1e-3}\n", ""), "missing setting privacy"),
    "epsilon as text": (at("epsilon = 8", 'epsilon = "8"'), "privacy.epsilon: expected"),
    "epsilon 0": (at("epsilon = 8", "epsilon = 0"), "above 0"),
    "epsilon below 0": (at("epsilon = 8", "epsilon = -8"), "above 0"),
    "epsilon nan": (at("epsilon = 8", "epsilon = nan"), "finite"),
    "epsilon inf": (at("epsilon = 8", "epsilon = inf"), "finite"),
    "delta 0": (at("delta = 1e-3", "delta = 0"), "above 0"),
    "delta 1": (at("delta = 1e-3", "delta = 1"), "below 1"),
    "a delta that no accountant reaches": (at("delta = 1e-3", "delta = 1e-300"), "client t0-c0"),
    "delta of one record": (at("delta = 1e-3", "delta = 0.02"), "not below 1/60"),
    "rounds as text": (at("rounds = 1", 'rounds = "1"'), "rounds: expected"),
    "rounds below 0": (at("rounds = 1", "rounds = -1"), "rounds is -1"),
    "half a round": (at("rounds = 1", "rounds = 1.5"), "rounds: expected"),
    "more rounds than JSON counts": (at("rounds = 1", f"rounds = {10**18}"), "at most"),
    "a seed below 0": (setting("seed = -1"), "seed is -1"),
    "a seed that JSON cannot say": (setting(f"seed = {2**60}"), "at most"),
    "an unknown task": (setting('task = "regression"'), "classification, causal-lm"),
    "an encoder as language model": (setting('task = "causal-lm"'), "encoder"),
    "no sampling": (training("sample_rate = 0.0"), "above 0 and at most 1"),
    "more than every record": (training("sample_rate = 1.5"), "above 0 and at most 1"),
    "a clip below 0": (training("max_grad_norm = -1.0"), "max_grad_norm"),
    "no tokens": (training("max_length = 0"), "max_length is 0"),
    "no place for text": (training("max_length = 2"), "at least 3"),
    "more tokens than positions": (training("max_length = 4096"), "max_position_embeddings is 64"),
    "an unknown pooling": (training('pooling = "max"'), "mean, first, last, native"),
    "an unknown head": (training('head = "shared"'), "group, local, frozen"),
    "no records": (training("records = 0"), "training.records is 0"),
    "rank 0": (at("r = 2", "r = 0"), "lora.r is 0"),
    "a rank above the layers' width": (at("r = 2", "r = 100000000"), "at most 32"),
    "layers that are not there": (at("r = 2", "r = 2\nlast_layers = 99"), "has 2 layers"),
    "targets that are not there": (at("r = 2", 'r = 2\ntargets = ["q"]'), "dense, key, query"),
    "targets as text": (at("r = 2", 'r = 2\ntargets = "query"'), "lora.targets: expected"),
    "an unknown source": (at('"one_group"', '"tree"'), "fingerprint, lora_b"),
    "cuts without gradients": (
        at('"one_group"', '"one_group"\ncut = "noise_aware"'),
        "topology.cut",
    ),
    "groups of two": (at("[lora]", "[masking]\nmin_group = 2\n[lora]"), "min_group is 2"),
    "more colluders than groups hide": (
        at("[lora]", "[masking]\ncolluders = 2\n[lora]"),
        "colluders + 2",
    ),
    "fewer clients than a group": (at("[lora]", "[masking]\nmin_group = 4\n[lora]"), "3 clients"),
    "another server's key": (at("[lora]", f'[server]\nkey = "{"ab" * 32}"\n[lora]'), "server.key"),
    # clients
    "no clients": (no_clients, "names no clients"),
    "clients as one table": (at("[[clients]]", "[clients]"), "TOML"),
    "two clients of one name": (at('id = "t0-c1"', 'id = "t0-c0"'), "two clients have the id"),
    "two data sets of one name": (first('dataset = "t0-c1"'), "two clients have the dataset"),
    "a name that is a path": (at('id = "t0-c0"', 'id = "../x"'), "client id is '../x'"),
    "no training file": (at('train = "t0-c0.csv"\n', ""), "missing setting clients[0].train"),
    "a training file that is gone": (at('"t0-c0.csv"', '"gone.csv"'), "client t0-c0: there is no"),
    "labels of a half": (first("labels = [0.5, 1]"), "clients[0].labels[0]: expected"),
    "labels of dates": (first("labels = [2020-01-01]"), "clients[0].labels[0]: expected"),
    "labels of lists": (first('labels = [["a"], ["b"]]'), "clients[0].labels[0]: expected"),
    "a label twice": (first('labels = ["class-0", "class-0"]'), "repeat a name"),
    "a label that was not declared": (first('labels = ["class-0", "x"]'), "'class-1'"),
    "a budget of its own that is none": (
        first("privacy = {epsilon = 8}"),
        "missing setting clients[0].privacy.delta",
    ),
    "a budget of its own above the job's": (
        first("privacy = {epsilon = 9, delta = 1e-3}"),
        "at most the job's 8",
    ),
    "no declared records": (first("records = 0"), "client t0-c0: declared records"),
    "the rows of another client": (same_rows, "are those of"),
    # rows
    "a spreadsheet": (rows("PK", "t0-c0.xlsx"), "allowed: .csv"),
    "an empty file": (rows(""), "first line must name the columns"),
    "a header alone": (rows("text,label\n"), "has no rows"),
    "a column twice": (rows("text,text\na,b\n"), "each once"),
    "commas without quotes": (added("bad news, worse news,class-0"), "double quotes"),
    "a quote that does not end": (added('"bad news,class-0'), "cannot be read"),
    "semicolons for commas": (rows("text;label\nbadu;a\n"), "not by semicolons"),
    "tabs for commas": (rows("text\tlabel\nbadu\ta\n"), "not by tabs"),
    "rows that are no UTF-8": (rows(b"text,label\nm\xe8re,a\n"), "save it as UTF-8"),
    "another name of the text": (first('text = "note"'), "it has text, label"),
    "another name of the label": (first('label = "code"'), "no column 'code'"),
    "a row without text": (added(" ,class-0"), "row 60 of train has no text"),
    "a row without label": (added("badu,"), "row 60 of train has no label"),
    "one label alone": (rows("text,label\n" + "badu,a\n" * 60), "at least two"),
    "JSON that is none": (rows('{"text": "a"', "t0-c0.jsonl"), "cannot be read"),
    "JSON that is no rows": (rows("[1, 2]", "t0-c0.json"), "one for each row"),
    "kinds of values in a column": (
        rows('{"text": "a", "label": "1"}\n{"text": "b", "label": 1}', "t0-c0.jsonl"),
        "several kinds (int, str)",
    ),
    "labels in lists": (
        rows('{"text": "a", "label": ["x"]}\n' * 60, "t0-c0.jsonl"),
        "labels are text",
    ),
    "labels of truth values": (
        rows('{"text": "a", "label": true}\n' * 60, "t0-c0.jsonl"),
        "labels are text",
    ),
    "Parquet that is none": (rows("PAR", "t0-c0.parquet"), "cannot be read"),
    # the model
    "a model folder that is gone": (at('backbone = "', 'backbone = "./gone'), "no model folder"),
    "a model file that is gone": (at('backbone = "', 'backbone = "a.gguf" # "'), "no model file"),
    "a model that is nowhere": (at('backbone = "', 'backbone = "who/what" # "'), "'who/what'"),
    "a model without weights": (model(without_weights), "holds no weights"),
    "a model as a pickle": (model(pickled), "pytorch_model.bin"),
    "a model with code": (model(with_code), "auto_map"),
    "a tokenizer of another model": (model(more_tokens), "do not belong together"),
    # where and how
    "a file as run folder": (out_is_a_file, "choose another"),
    "a run folder inside a file": (out_under_a_file, "choose another"),
    "a folder with other files": (out_holds_files, "thesis.tex"),
    "nothing to resume": (lambda p: p.run("--resume"), "no run in"),
    "canaries that nothing keeps": (lambda p: p.run("--canaries", 20), "--auditable"),
    "too few canaries": (lambda p: p.run("--auditable", "--canaries", 3), "at least 20"),
    "a state of a simulation": (lambda p: p.run("--simulate", "--state", p.out), "state is for"),
    # other commands
    "a start from nothing": (arguments("init", "TYPO", "--epsilon", 8), "there is no folder"),
    "a start over a job file": (arguments("init", "FOLDER", "--epsilon", 8), "is there already"),
    "a start with no budget": (
        arguments("init", "FOLDER", "--epsilon", 0, "--out", "TYPO"),
        "epsilon must be a finite number above 0",
    ),
    "a check of nothing": (arguments("check", "TYPO"), "there is no job file"),
    "answers of no adapter": (
        arguments("predict", "--adapter", "TYPO", "--file", "TYPO"),
        "no delivered adapter",
    ),
    "a comparison of nothing": (arguments("compare", "TYPO", "OUT"), "typo"),
    "audits of nothing": (arguments("audit", "all", "--run", "TYPO"), "holds no run"),
    "an audit of nothing": (arguments("audit", "ledger", "--run", "TYPO"), "holds no run"),
    "an audit of no name": (arguments("audit", "ledgr", "--run", "OUT"), "did you mean 'ledger'"),
    "a report of nothing": (arguments("report", "TYPO"), "typo"),
    "a gate on nothing": (arguments("gate", "TYPO", "--max-epsilon", 8), "typo"),
    "a ledger that is gone": (arguments("ledger", "show", "TYPO"), "typo"),
    "a plan of two unknowns": (
        arguments("budget", "plan", "--delta", 1e-5, "--records", 60, "--rounds", 1),
        "leave out the one to solve for",
    ),
    "a plan with a job's own numbers": (
        arguments("budget", "plan", "--job", "JOB", "--rounds", 3),
        "its own rounds",
    ),
}


def test_the_table_is_as_long_as_it_should_be():
    assert len(BAD) >= 60


@pytest.fixture
def place(good, tmp_path, tiny_bert):
    """What a case may spoil."""
    made = Place(shutil.copytree(good, tmp_path / "job"), tiny_bert)
    made.run()
    return made


def left_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(what, place, stores, capsys):
    change, told = BAD[what]
    change(place)
    before = left_in(place.folder)
    assert call(*place.arguments) == 2
    said = capsys.readouterr()
    (line,) = (said.out + said.err).strip().splitlines()
    assert line.startswith("refused: ")
    assert told in line
    assert left_in(place.folder) == before
    for store in stores.glob("*/store.sqlite"):
        with Ledger.inspect(store) as ledger:
            assert ledger.events() == ()


def test_nothing_is_wrong_with_the_good_folder(place, stores, capsys):
    """Or else the table would show nothing."""
    assert call("check", place.job) == 0
    assert "No error was found" in capsys.readouterr().out
    assert not stores.exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("run", "job.toml"), "--out requires an argument"),
        (("run", "job.toml", "--out", "x", "--resum"), "--resume"),
        (("run", "job.toml", "--out", "x", "--canaries", "many"), "many"),
        (("rnu", "job.toml"), 'Did you mean "run"'),
        (("gate", "x"), "--max-epsilon"),
    ],
)
def test_bad_options_end_with_the_code_of_usage(given, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*given) == 2
    assert told in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []
