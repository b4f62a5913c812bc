"""The notebooks: committed with what they printed, and no output of a private place in it.

`make docs` executes them; here nothing runs.
"""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def code(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["causal-lm", "classification"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_was_run_from_its_first_cell_to_its_last(path):
    cells = code(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert len(cells) >= 9
    assert sum(bool(cell["outputs"]) for cell in cells) >= 7
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds <= {"stream", "execute_result", "display_data"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_shows_no_place_of_the_machine_that_ran_it(path):
    text = json.dumps([cell["outputs"] for cell in code(path)])
    assert re.findall(r"/(?:tmp|root|home|work|dev/shm|usr|opt)/[\w./-]*", text) == []
