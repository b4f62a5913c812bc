"""Runs every command of docs/deploy.md on this machine: three clinics, a coordinator, a SuperLink.

    python examples/deploy.py FOLDER [--model MODEL] [--more eyes lungs]

The commands are the document's, block by block; a block that is marked as one that stays is started
and left running, and ended when all others are done. With `--more` there are more clinics than the
document's three: their names join its lists, and each has a node of its own.
"""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

import make_clinics  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?:<!-- stays: (?P<name>[\w-]+) -->\n)?```bash\n(?P<text>.*?)```", re.DOTALL)
UP_S = 60.0
CLINICS = ("heart", "bones", "skin")
LISTS = (" ".join(CLINICS), " ".join(f"{clinic}/card.json" for clinic in CLINICS))


@dataclass(frozen=True)
class Block:
    """Commands of the document.

    Attributes:
        text: As printed.
        stays: Name of a service that keeps running; empty if the block ends.
    """

    text: str
    stays: str


def blocks(more: Sequence[str] = ()) -> list[Block]:
    """Return the document's commands, in order.

    Args:
        more: Clinics that take part beside the document's own.
    """
    text = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    extra = (" ".join(more), " ".join(f"{clinic}/card.json" for clinic in more))
    for known, added in zip(LISTS, extra, strict=True):
        text = text.replace(known, f"{known} {added}".rstrip())
    found = []
    for match in BLOCK.finditer(text):
        found.append(Block(match["text"], match["name"] or ""))
        if match["name"] == f"node-{CLINICS[-1]}":
            found += [
                Block(match["text"].replace(CLINICS[-1], name), f"node-{name}") for name in more
            ]
    return found


def run_all(folder: Path, model: Path, more: Sequence[str] = ()) -> None:
    """Run the commands in a folder, which is made and must be empty.

    Args:
        folder: Where.
        model: Folder of the model.
        more: See `blocks`.

    Raises:
        subprocess.CalledProcessError: A block failed.
        TimeoutError: The SuperLink did not come up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty; choose another folder")
    address = f"127.0.0.1:{_free_port()}"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MODEL": str(model.resolve()),
        "ROWS": str(_rows(folder, more)),
        "SUPERLINK": address,
        "COLUMNS": "160",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with _services() as services:
        for block in blocks(more):
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            if not block.stays:
                subprocess.run(command, cwd=folder, env=environment, check=True)
                continue
            with (folder / f"{block.stays}.log").open("w") as log:
                services.append(
                    subprocess.Popen(
                        command,
                        cwd=folder,
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            if block.stays == "superlink":
                _wait_for(address)


def _rows(folder: Path, more: Sequence[str]) -> Path:
    if not more:
        return ROOT / "examples" / "clinics"
    make_clinics.write(folder / "rows", (*CLINICS, *more))
    return (folder / "rows").resolve()


@contextlib.contextmanager
def _services() -> "Iterator[list[subprocess.Popen[bytes]]]":
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(address: str) -> None:
    host, _, port = address.rpartition(":")
    began = time.monotonic()
    while time.monotonic() - began < UP_S:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0):
            return
        time.sleep(0.3)
    raise TimeoutError(f"no SuperLink at {address} in {UP_S:g} s")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Runs every command of docs/deploy.md here.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--more", nargs="*", default=[], choices=sorted(make_clinics.MORE))
    given = parser.parse_args()
    if given.model is None:
        from fedtree_secure.demo.data import minilm_folder

        given.model = minilm_folder()
    began = time.monotonic()
    run_all(given.folder, given.model, given.more)
    print(f"All commands of docs/deploy.md ran, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
