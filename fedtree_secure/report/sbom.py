"""The software that made a run, as a CycloneDX bill of materials (JSON, version 1.6).

Made of the metadata of the installed distributions alone. It lists what was installed where the
report was written; it cannot show what was loaded, and holds no hash of installed files.
"""

import json
import platform
import re
import uuid
from collections.abc import Iterable
from functools import cache
from importlib.metadata import Distribution, PackageMetadata, distributions
from typing import Any, NamedTuple
from urllib.parse import quote

SPEC_VERSION = "1.6"
ROOT = "fedtree-secure"
_NAMESPACE = uuid.UUID("6ed4fbd3-6f0f-4e0b-9a2d-0f5c3a3a7b41")  # of our serial numbers
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def bill_of_materials(time: str, found: Iterable[Distribution] | None = None) -> dict[str, Any]:
    """Return the bill of the installed distributions as plain values.

    Args:
        time: ISO 8601, UTC; of the run that the bill belongs to.
        found: Distributions; those of this environment if None.
    """
    installed = _environment() if found is None else _read(found)
    components = [known.component for _, known in sorted(installed.items())]
    root = [c for c in components if c["name"] == ROOT]
    content = json.dumps(components, sort_keys=True) + time
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, content)}",
        "version": 1,
        "metadata": {
            "timestamp": time,
            "component": root[0] | {"type": "application"} if root else _python(),
        },
        "components": [_python(), *(c for c in components if c not in root)],
        "dependencies": [
            {
                "ref": known.component["bom-ref"],
                "dependsOn": sorted(
                    installed[other].component["bom-ref"]
                    for other in known.needs & (installed.keys() - {name})
                ),
            }
            for name, known in sorted(installed.items())
        ],
    }


class _Known(NamedTuple):
    """What one distribution says of itself."""

    component: dict[str, Any]
    needs: set[str]


@cache
def _environment() -> dict[str, _Known]:
    """Read once a process: a hundred metadata files take longer than a small run's own report."""
    return _read(distributions())


def _read(found: Iterable[Distribution]) -> dict[str, _Known]:
    known = {}
    for distribution in found:
        metadata = distribution.metadata  # parses the file at each call
        if "Name" in metadata and (name := metadata["Name"]):
            known[_normal(name)] = _Known(_component(_normal(name), metadata), _needs(distribution))
    return known


def _python() -> dict[str, Any]:
    version = platform.python_version()
    return {
        "type": "platform",
        "bom-ref": f"python@{version}",
        "name": platform.python_implementation(),
        "version": version,
    }


def _component(name: str, metadata: PackageMetadata) -> dict[str, Any]:
    reference = _reference(name, metadata["Version"])
    made: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference,
        "name": metadata["Name"],
        "version": metadata["Version"],
        "purl": reference,
    }
    if licences := _licences(metadata):
        made["licenses"] = licences
    return made


def _reference(name: str, version: str) -> str:
    """Package URL (purl) of a distribution; a local version's plus sign is escaped."""
    return f"pkg:pypi/{name}@{quote(version, safe='.-_~')}"


def _licences(metadata: PackageMetadata) -> list[dict[str, Any]]:
    """What the distribution says of itself; nothing is guessed."""
    if "License-Expression" in metadata:  # Python 3.12 warns where it is read and missing
        return [{"expression": metadata["License-Expression"]}]
    named = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier") or ()
        if line.startswith("License ::") and not line.endswith("OSI Approved")
    ]
    return [{"license": {"name": name}} for name in dict.fromkeys(named)]


def _needs(distribution: Distribution) -> set[str]:
    """Names that it requires; optional extras are left out."""
    required = [line for line in distribution.requires or () if "extra ==" not in line]
    return {_normal(found[1]) for line in required if (found := _REQUIREMENT.match(line))}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
