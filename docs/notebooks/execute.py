"""Execute the notebooks: `python docs/notebooks/execute.py [--keep] [NAMES]`.

A cell that fails ends it. With ``--keep`` they are written back with what they printed, which is
how they are committed.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def execute(path: Path, *, keep: bool) -> float:
    """Run one notebook in its own folder; return the seconds that it took."""
    book = nbformat.read(path, as_version=4)
    began = time.monotonic()
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(HERE)}}).execute()
    if keep:
        for cell in book.cells:
            cell.metadata.pop("execution", None)  # times of this machine
            if cell.cell_type == "code":
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]  # bars
        nbformat.write(book, path)
    return time.monotonic() - began


def main() -> None:
    """Execute every notebook of this folder."""
    keep = "--keep" in sys.argv[1:]
    wanted = [argument for argument in sys.argv[1:] if argument != "--keep"]
    for path in sorted(HERE.glob("*.ipynb")):
        if wanted and path.stem not in wanted:
            continue
        print(f"{path.name}: {execute(path, keep=keep):.0f} s")


if __name__ == "__main__":
    main()
