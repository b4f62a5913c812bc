"""A notebook as the text of a page: its cells, and below each what it printed."""

import json
import re
from pathlib import Path
from typing import Any

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def page_of(path: Path) -> str:
    """Return a notebook as MyST Markdown."""
    book = json.loads(path.read_text("utf-8"))
    parts = [part for cell in book["cells"] for part in _cell(cell)]
    return "\n\n".join([*parts, f"This page is the notebook [{path.name}]({path.name})."]) + "\n"


def _cell(cell: dict[str, Any]) -> list[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [re.sub(r"^# Part", "## Part", text)]
    said = [said for output in cell["outputs"] if (said := _output(output))]
    return [_block("python", text), *([_block("text", "\n".join(said))] if said else [])]


def _output(output: dict[str, Any]) -> str:
    """Standard output or a value as text; warnings of libraries on standard error are left out."""
    if output.get("name") == "stderr":
        return ""
    given = output.get("text") or output.get("data", {}).get("text/plain", "")
    return _COLOURS.sub("", "".join(given)).rstrip()


def _block(kind: str, text: str) -> str:
    return f"```{kind}\n{text.rstrip()}\n```"
