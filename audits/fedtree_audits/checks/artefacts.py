"""Audit `artefacts`: whether what lies in the run folder is what the run delivered.

The run's manifest lists every delivered file with its SHA-256 and is signed by each client with the
key that the roster pins. A file that differs is named with the entries in it that do (tensor, key,
line). Where the run kept its messages, each is compared with its line of the transcript; and every
client whose update a sum is said to hold must have a line for that upload. Ledgers are compared
with signed checkpoints by the `ledger` audit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.errors import MissingEvidence
from fedtree_audits.rigs import specimen
from fedtree_audits.run_folder import RunFolder, open_run
from fedtree_audits.statistics.verdict import Check, Result
from fedtree_secure.testing import (
    COMMITMENTS,
    NAME,
    SERVER,
    Canaries,
    RunFolderError,
    describe,
    difference,
    few,
    listed,
    read_manifest,
    signature_fits,
    signed_bytes,
)

QUESTION = "Is what lies in the run folder what the run delivered?"
FIELDS = 6  # of a transcript line: number, sender, receiver, stage, bytes, SHA-256


def audit_run(run: RunFolder) -> Result:
    """Audit the files of a run against its manifest."""
    try:
        manifest = read_manifest(run.path)
    except RunFolderError as error:
        raise MissingEvidence(str(error)) from None
    checks = [
        _same_run(run, manifest),
        *_signatures(run, manifest),
        *(_file(run.path, name, told) for name, told in sorted(manifest["files"].items())),
        _strangers(run.path, manifest["files"]),
        *_transcript(run),
        *_commitments(run),
    ]
    return Result(
        audit="artefacts",
        question=QUESTION,
        claim=(
            f"{len(manifest['files'])} files are as {len(manifest['signatures'])} clients signed "
            "them"
        ),
        adversary=(
            "whoever can write the run folder after the run, without the clients' signing keys"
        ),
        assumptions=(
            (
                "roster.json holds the clients' own keys; compare it, or the manifest's hash "
                "below, with what was kept"
            ),
        ),
        checks=checks,
        hashes=run.hashes(NAME, "roster.json", "job.json"),
        figures={"files": len(manifest["files"]), "signatures": len(manifest["signatures"])},
    )


def _same_run(run: RunFolder, manifest: Mapping[str, Any]) -> Check:
    told, held = manifest.get("run"), run.described.get("run")
    return Check("run", told == held, f"the manifest is of run {told}, job.json of run {held}")


def _signatures(run: RunFolder, manifest: Mapping[str, Any]) -> list[Check]:
    keys, signed = run.signers, signed_bytes(manifest)
    expected = set(run.clients) or set(keys)  # a server's folder has no client's files
    checks = []
    for client in sorted(expected | set(keys) | set(manifest["signatures"])):
        given, key = manifest["signatures"].get(client), keys.get(client)
        good = (
            given is not None
            and key is not None
            and client in expected
            and signature_fits(key, given, signed)
        )
        said = (
            "its signature fits"
            if good
            else "no client of the job signed this"
            if key is None
            else "does not fit"
        )
        checks.append(Check(f"signature of {client}", good, said if given else "it did not sign"))
    return checks


def _file(folder: Path, name: str, told: Mapping[str, Any]) -> Check:
    said = difference(folder / name, told)
    return Check(name, not said, said or f"{told['bytes']} bytes as delivered")


def _strangers(folder: Path, files: Mapping[str, Any]) -> Check:
    """Files among the adapters and checkpoints that nobody delivered."""
    found = [
        name
        for name in listed(folder)
        if name not in files and name.startswith(("adapters/", "ledgers/"))
    ]
    return Check(
        "nothing else",
        not found,
        f"not delivered by the run: {few(found)}" if found else "no file was added",
    )


def _transcript(run: RunFolder) -> list[Check]:
    path = run.path / "transcript.txt"
    if not path.is_file():
        return []  # its absence is named by the manifest
    lines = [line.split() for line in path.read_text("utf-8", errors="replace").splitlines()[1:]]
    torn = [
        str(number)
        for number, line in enumerate(lines, 1)
        if len(line) != FIELDS or line[0] != str(number) or not line[4].isdigit()
    ]
    checks = [
        Check(
            "transcript lines",
            not torn,
            f"{len(lines)} lines" + (f"; broken: {few(torn)}" if torn else ""),
        )
    ]
    sent = {(line[1], line[3]) for line in lines if len(line) == FIELDS}
    absent = [
        f"{client} in round {record['round']}"
        for record in run.summary.get("rounds", [])
        for client in sorted(
            {name for survivors in record["opened"].values() for name in survivors}
        )
        if (client, f"round-{record['round']}/mask") not in sent
    ]
    checks.append(
        Check(
            "uploads behind the sums",
            not absent,
            f"no upload of {few(absent)}" if absent else "each has a line",
        )
    )
    if (run.path / "messages.bin").is_file() and not torn:
        checks.append(_messages(run.path / "messages.bin", lines))
    return checks


def _messages(path: Path, lines: list[list[str]]) -> Check:
    with path.open("rb") as kept:
        wrong = [
            f"{line[0]} ({line[3]} of {line[1] if line[1] != SERVER else line[2]})"
            for line in lines
            if hashlib.sha256(kept.read(int(line[4]))).hexdigest() != line[5]
        ]
        wrong += ["bytes behind the last one"] if kept.read(1) else []
    return Check(
        "messages",
        not wrong,
        f"differ from their line: {few(wrong)}" if wrong else f"{len(lines)} as listed",
    )


def _commitments(run: RunFolder) -> list[Check]:
    path = run.path / COMMITMENTS
    if not path.is_file():
        return []
    checks = []
    for client, commitment in sorted(run.read(COMMITMENTS).items()):
        try:
            found = Canaries.load(run.path / "clients" / client / "canaries.json").commitment
        except RunFolderError:
            continue  # kept by the client; the manifest names it if it was delivered
        said = (
            "as committed before training"
            if found == commitment
            else "not what was committed to before training"
        )
        checks.append(Check(f"canaries of {client}", found == commitment, said))
    return checks


# --- self-test ------------------------------------------------------------------------------------


def _specimen(edit: Callable[[Path], None] = lambda _: None) -> Variant:
    def variant(seed: int) -> Result:
        with tempfile.TemporaryDirectory() as place:
            folder = specimen.build_run(Path(place) / "run", ledgers=False)
            specimen.deliver(folder, seed)
            edit(folder)
            return audit_run(open_run(folder))

    return variant


def _flip(name: str, at: int = -1) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 1
        (folder / name).write_bytes(data)

    return edit


def _edit_json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = json.loads((folder / name).read_text("utf-8"))
        change(found)
        (folder / name).write_text(json.dumps(found), "utf-8")

    return edit


def _listed_again(folder: Path) -> None:
    """Swap two clients' adapters and make the list fit; only signatures are missing."""
    adapter = "adapter_model.safetensors"
    shutil.copy(folder / "adapters" / "c1" / adapter, folder / "adapters" / "c0" / adapter)
    told = describe(folder / "adapters" / "c0" / adapter)
    _edit_json(NAME, lambda found: found["files"].update({f"adapters/c0/{adapter}": told}))(folder)


def _one_more(folder: Path) -> None:
    (folder / "adapters" / "c1" / "adapter_2.safetensors").write_bytes(b"x")


def _another_upload(folder: Path) -> None:
    """Change a line of the transcript; its message was kept."""
    path = folder / "transcript.txt"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    lines[3] = lines[3][:-65] + hashlib.sha256(lines[3].encode()).hexdigest() + "\n"
    path.write_text("".join(lines), "utf-8")


AUDIT = Audit(
    name="artefacts",
    question=QUESTION,
    on_run=audit_run,
    correct=_specimen(),
    parties=frozenset({"site", "server"}),
    mutants={
        "edited adapter": _specimen(_flip("adapters/c2/adapter_model.safetensors")),
        "exchanged adapter, list made to fit": _specimen(_listed_again),
        "adapter removed": _specimen(lambda folder: shutil.rmtree(folder / "adapters" / "c1")),
        "adapter added": _specimen(_one_more),
        "edited transcript": _specimen(_another_upload),
        "edited message": _specimen(_flip("messages.bin", 40)),
        "edited configuration": _specimen(
            _edit_json("job.json", lambda found: found["job"].update(rounds=9))
        ),
        "edited summary": _specimen(
            _edit_json("summary.json", lambda found: found["clients"].pop("c4"))
        ),
        "another roster": _specimen(
            _edit_json(
                "roster.json", lambda found: found["clients"].update(c0=found["clients"]["c1"])
            )
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
