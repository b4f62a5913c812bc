"""Runs the shell blocks of a page, line by line, on the invented clinics and a tiny model."""

import io
import re
import shlex
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from command_line import call

from fedtree_secure.cli import screen
from fedtree_secure.home import job_text

ROOT = Path(__file__).parents[3]


def shell_blocks(page):
    """The shell blocks of a page of docs/, each a list of command lines."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    return [block.strip().splitlines() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]


def shorten(job):
    """Fewer steps, where a run trains references as well or is one of many."""
    text = job.read_text().replace("rounds = 4", "rounds = 1")
    job.write_text(text.replace("[training]\n", "[training]\nhead_steps = 0\n"))


def walk(page, place, backbone, short):
    """Run the commands of a page in an empty folder; return exit code and output of each.

    Args:
        page: Its name in docs/.
        place: Where they run.
        backbone: Folder of the model that `init` writes into the job.
        short: Word of the first command before which the job is shortened.
    """
    shutil.copytree(ROOT / "examples" / "clinics", place / "examples" / "clinics")
    done = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("FEDTREE_STATE", str(place / "state"))
        patch.setenv("FEDTREE_HEADS", str(place / "heads"))
        patch.setattr(job_text, "ENCODER", str(backbone))
        for line in (line for block in shell_blocks(page) for line in block):
            program, *arguments = shlex.split(line)
            if program != "fedtree-secure":
                continue
            if short in arguments and not any(short in shlex.split(other) for other in done):
                shorten(place / "clinics.toml")
            with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
                patch.setattr(screen.console, "_file", None)
                code = call(*arguments)
            done[line] = code, out.getvalue() + err.getvalue()
    return done
