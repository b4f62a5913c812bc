"""Is a run folder what its clients signed? Answered offline, from the folder alone.

Every file that the manifest lists is hashed again, every signature is compared with the keys of the
roster, and every copy of a ledger with its chain and its client's checkpoint. What is found is
named: file, and the entry in it. Whoever replaced the whole folder, keys included, is found only by
who kept the manifest's SHA-256 elsewhere (`expected`).
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedtree_dp import Ledger, LedgerError
from fedtree_secure.errors import ConfigurationError, FedTreeError
from fedtree_secure.report.manifest import (
    ADDENDUM,
    NAME,
    SERVER_PARTY,
    addendum_bytes,
    difference,
    is_canonical,
    listed,
    listed_later,
    read_manifest,
    signature_fits,
    signed_bytes,
)
from fedtree_secure.storage import read_json

_REWRITTEN = "not in canonical form (RFC 8785): it was written again or edited"


@dataclass(frozen=True)
class Finding:
    """One thing that does not fit.

    Attributes:
        file: Name within the run folder.
        problem: What is wrong with it.
    """

    file: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


@dataclass(frozen=True)
class Verification:
    """Outcome of `verify`.

    Attributes:
        folder: What was looked at.
        manifest_sha256: Of the manifest; keep it elsewhere. Empty where there is none.
        files: How many are as they were signed.
        signers: Clients whose signature of the manifest fits.
        findings: What does not fit; empty means that all is well.
        unsigned: Files that were written after the run and that nobody signed.
    """

    folder: Path
    manifest_sha256: str
    files: int
    signers: tuple[str, ...]
    findings: tuple[Finding, ...]
    unsigned: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


def verify(folder: Path, expected: str | None = None) -> Verification:
    """Check a run folder.

    Args:
        folder: Of a finished run.
        expected: SHA-256 of the manifest, as it was kept elsewhere.

    Raises:
        ConfigurationError: There is no run here, or ``expected`` is no SHA-256.
    """
    if not (folder / "job.json").is_file():
        raise ConfigurationError(f"{folder} holds no run: there is no job.json. Name a run folder")
    if expected is not None and (len(expected) != 64 or set(expected) - set("0123456789abcdef")):
        raise ConfigurationError(
            f"the expected hash is {expected!r}; it must be the manifest's SHA-256 in 64 "
            "lower-case hexadecimal digits"
        )
    try:
        manifest = read_manifest(folder)
    except FedTreeError as error:
        return Verification(folder, "", 0, (), (Finding(NAME, str(error)),), ())
    digest = hashlib.sha256((folder / NAME).read_bytes()).hexdigest()
    keys, job, findings = _keys(folder)
    if expected is not None and digest != expected:
        findings.append(Finding(NAME, f"its SHA-256 is {digest}, expected {expected}"))
    if not is_canonical(folder, NAME):
        return Verification(folder, digest, 0, (), (*findings, Finding(NAME, _REWRITTEN)), ())
    if manifest.get("run") != job.get("run"):
        findings.append(Finding(NAME, f"of run {manifest.get('run')}, not {job.get('run')}"))
    signers, unfit = _signers(manifest["signatures"], keys, signed_bytes(manifest), NAME)
    findings += unfit
    findings += [Finding(NAME, f"{name} did not sign it") for name in sorted(keys.keys() - signers)]
    changed = list(_files(folder, manifest["files"], listed(folder)))
    findings += changed
    findings += _ledgers(folder, job, keys)
    later, unsigned, more = _addendum(folder, keys, digest)
    findings += more
    whole = len(manifest["files"]) + later - len(changed)
    return Verification(folder, digest, whole, tuple(sorted(signers)), tuple(findings), unsigned)


def _keys(folder: Path) -> tuple[dict[str, str], Mapping[str, Any], list[Finding]]:
    """Return the pinned keys, the job's file, and what is wrong with either."""
    try:
        job = read_json(folder / "job.json")
        keys = {
            str(name): str(key)
            for name, key in read_json(folder / "roster.json")["clients"].items()
        }
        names = {str(name) for name, about in job["clients"].items() if about["dataset"]}
        if job.get("party") == SERVER_PARTY:  # a server's folder, which it signs alone
            names = {SERVER_PARTY}
            keys = {SERVER_PARTY: str(read_json(folder / "roster.json")["server"])}
    except (FedTreeError, KeyError, TypeError, AttributeError) as error:
        return {}, {}, [Finding("roster.json", f"it or job.json cannot be read: {error}")]
    if keys.keys() != names:
        other = ", ".join(sorted(keys.keys() ^ names))
        return keys, job, [Finding("roster.json", f"job and roster differ in clients: {other}")]
    return keys, job, []


def _signers(
    signatures: Mapping[str, Any], keys: Mapping[str, str], message: bytes, file: str
) -> tuple[set[str], list[Finding]]:
    good = {
        name
        for name, given in signatures.items()
        if name in keys and signature_fits(keys[name], given, message)
    }
    bad = sorted(signatures.keys() - good)
    return good, [Finding(file, f"the signature of {name} does not fit") for name in bad]


def _files(
    folder: Path, told: Mapping[str, Mapping[str, Any]], present: Iterator[str]
) -> Iterator[Finding]:
    """Compare listed files, and name those that were added."""
    root = folder.resolve()
    for name, entry in sorted(told.items()):
        if root not in (folder / name).resolve().parents:
            yield Finding(name, "outside the run folder")
        elif problem := difference(folder / name, entry):
            yield Finding(name, problem)
    for name in present:
        if name not in told:
            yield Finding(name, "added: the manifest does not list it")


def _ledgers(folder: Path, job: Mapping[str, Any], keys: Mapping[str, str]) -> Iterator[Finding]:
    """Check every client's copy of its ledger against its chain and the client's checkpoint."""
    for client, about in sorted(job.get("clients", {}).items()):
        name = f"ledgers/{about['dataset']}.sqlite"
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(keys[client]))
            with Ledger.inspect(folder / name) as ledger:
                if ledger.dataset != about["dataset"]:
                    yield Finding(name, f"the ledger of {ledger.dataset!r}")
                ledger.verify_kept((folder / name).with_suffix(".checkpoints"), public_key=key)
        except (KeyError, ValueError):
            yield Finding(name, f"the roster holds no usable key of {client}")
        except LedgerError as error:
            yield Finding(name, str(error))


def _addendum(
    folder: Path, keys: Mapping[str, str], digest: str
) -> tuple[int, tuple[str, ...], list[Finding]]:
    """Check what was written later; return how many files are signed, which are not, and findings.

    Without an addendum such files are unsigned, which is no fault of the run's; beside one, each
    file that it does not list was added.
    """
    if not (folder / ADDENDUM).is_file():
        return 0, tuple(listed_later(folder)), []
    try:
        found = read_manifest(folder, ADDENDUM)
    except FedTreeError as error:
        return 0, (), [Finding(ADDENDUM, str(error))]
    if not is_canonical(folder, ADDENDUM):
        return 0, (), [Finding(ADDENDUM, _REWRITTEN)]
    signers, unfit = _signers(found["signatures"], keys, addendum_bytes(found), ADDENDUM)
    findings = unfit
    if not signers:
        findings.append(Finding(ADDENDUM, "no client signed it"))
    if found.get("manifest") != digest:
        findings.append(
            Finding(ADDENDUM, "of another manifest than the one here; write the report again")
        )
    changed = list(_files(folder, found["files"], listed_later(folder)))
    return len(found["files"]) - len(changed), (), [*findings, *changed]
