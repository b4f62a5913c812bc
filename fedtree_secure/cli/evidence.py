"""`fedtree-secure report | verify | gate`: evidence of a finished run, for people and pipelines."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fedtree_secure.cli.screen import console

if TYPE_CHECKING:
    from fedtree_secagg import Identity

Json = Annotated[bool, Parameter(name="--json", negative=())]


def report(
    run: Path,
    *,
    no_names: Annotated[bool, Parameter(name="--no-names", negative=())] = False,
    facts: Path | None = None,
) -> int:
    """Write report and privacy card of a finished run anew, with its audits, and sign them.

    They go to RUN/report; with --no-names to RUN/report/no-names. Every client whose key is in the
    run folder signs.

    Parameters
    ----------
    run
        Run folder.
    no_names
        Numbers in place of the names of clients and data sets, for sites that must not be named.
    facts
        TOML file with what the run does not know: curator_type, curators, name, intended_use,
        region, sector, authors.
    """
    from fedtree_secure.report.card import NO_FACTS, read_facts
    from fedtree_secure.report.evidence import write_report

    known = NO_FACTS if facts is None else read_facts(facts)
    identities = _identities(run)
    place = write_report(run, identities, facts=known, named=not no_names)
    signed = f"signed by {len(identities)} clients" if identities else "[yellow]nobody signed[/]"
    console.print(f"Report: {place / 'report.html'} ({signed})", highlight=False, soft_wrap=True)
    return 0


def verify(run: Path, *, expect: str | None = None, as_json: Json = False) -> int:
    """Check offline that a run folder is what its clients signed; exit code 0, or 12 with what
    changed.

    Parameters
    ----------
    run
        Run folder.
    expect
        SHA-256 of its manifest, as it was kept elsewhere.
    as_json
        Print JSON.
    """
    from fedtree_secure.report import verification
    from fedtree_secure.report.exit_codes import Exit

    found = verification.verify(run, expect)
    code = Exit.OK if found.holds else Exit.SIGNATURE
    if as_json:
        _print_json(
            {
                "schema": 1,
                "holds": found.holds,
                "exit_code": int(code),
                "manifest_sha256": found.manifest_sha256,
                "files": found.files,
                "signers": list(found.signers),
                "findings": [vars(finding) for finding in found.findings],
                "unsigned": list(found.unsigned),
            }
        )
        return code
    for finding in found.findings:
        console.print(
            f"changed: {finding}", style="red", highlight=False, markup=False, soft_wrap=True
        )
    for name in found.unsigned:
        console.print(
            f"not signed: {name}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )
    if found.holds:
        console.print(
            f"{found.files} files are as {len(found.signers)} clients signed them",
            style="green",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"SHA-256 of the manifest: {found.manifest_sha256 or '-'}", highlight=False, soft_wrap=True
    )
    return code


def gate(
    run: Path,
    *,
    max_epsilon: float,
    max_delta: float | None = None,
    max_own_epsilon: float | None = None,
    audits: Path | None = None,
    allow_simulation: Annotated[bool, Parameter(negative=())] = False,
    expect: str | None = None,
    as_json: Json = False,
) -> int:
    """Decide whether a run may pass: 0 yes, 10 budget, 11 an audit fails, 12 signature or ledger,
    13 protocol, 14 inconclusive, 2 usage.

    Parameters
    ----------
    run
        Run folder.
    max_epsilon
        Largest epsilon of any data set, over all jobs on it.
    max_delta
        Largest delta.
    max_own_epsilon
        Largest epsilon whatever all other clients do, where noise is shared with them; without it
        no such run passes.
    audits
        TOML file: `required = ["ledger", "disclosure"]`, and a table `detected` with the largest
        value that an audit must have been able to notice.
    allow_simulation
        Let a simulation pass, whose ledgers began empty.
    expect
        SHA-256 of the manifest, as it was kept elsewhere.
    as_json
        Print JSON.
    """
    from fedtree_secure.report import gate as gates

    wanted = gates.RequiredAudits() if audits is None else gates.read_required(audits)
    limits = gates.Limits(max_epsilon, max_delta, wanted, allow_simulation, expect, max_own_epsilon)
    found = gates.decide(run, limits)
    if as_json:
        _print_json(found.to_dict())
        return found.code
    for trouble in found.troubles:
        console.print(
            f"{trouble.code:d} {trouble.said}",
            style="red",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    known = [epsilon for epsilon in found.epsilon.values() if epsilon is not None]
    if not found.troubles:
        console.print(
            f"passed: epsilon at most {max(known, default=0.0):.4f} of {max_epsilon:g}, "
            f"{len(known)} ledgers, {len(found.verdicts)} audits",
            style="green",
            highlight=False,
            soft_wrap=True,
        )
    return found.code


def _print_json(value: object) -> None:
    """Nothing but JSON, on lines of any length."""
    console.out(json.dumps(value, indent=2, ensure_ascii=False), highlight=False)


def _identities(run: Path) -> "dict[str, Identity]":
    """Keys of the clients that lie in the run folder, by client."""
    from fedtree_secagg import Identity
    from fedtree_secure.storage import SecretBox

    box = SecretBox.from_environment()
    return {
        path.parent.name: Identity(box.open(path.read_bytes()))
        for path in sorted((run / "clients").glob("*/identity.key"))
    }
