"""The software that made a run, as a CycloneDX bill of materials (JSON, version 1.6).

Made of the metadata of the installed distributions alone. It lists what was installed where the
report was written; it cannot show what was loaded, and holds no hash of installed files.
"""

import json
import platform
import re
import uuid
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from typing import Any
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
    installed = {
        _normal(name): distribution
        for distribution in (distributions() if found is None else found)
        if (name := distribution.metadata["Name"])
    }
    components = [_component(name, installed[name]) for name in sorted(installed)]
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
                "ref": _reference(name, installed[name].version),
                "dependsOn": sorted(
                    _reference(other, installed[other].version)
                    for other in _needs(installed[name]) & (installed.keys() - {name})
                ),
            }
            for name in sorted(installed)
        ],
    }


def _python() -> dict[str, Any]:
    version = platform.python_version()
    return {
        "type": "platform",
        "bom-ref": f"python@{version}",
        "name": platform.python_implementation(),
        "version": version,
    }


def _component(name: str, distribution: Distribution) -> dict[str, Any]:
    reference = _reference(name, distribution.version)
    made: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference,
        "name": distribution.metadata["Name"],
        "version": distribution.version,
        "purl": reference,
    }
    if licences := _licences(distribution):
        made["licenses"] = licences
    return made


def _reference(name: str, version: str) -> str:
    """Package URL (purl) of a distribution; a local version's plus sign is escaped."""
    return f"pkg:pypi/{name}@{quote(version, safe='.-_~')}"


def _licences(distribution: Distribution) -> list[dict[str, Any]]:
    """What the distribution says of itself; nothing is guessed."""
    if expression := distribution.metadata["License-Expression"]:
        return [{"expression": expression}]
    named = [
        line.rpartition(" :: ")[2]
        for line in distribution.metadata.get_all("Classifier") or ()
        if line.startswith("License ::") and not line.endswith("OSI Approved")
    ]
    return [{"license": {"name": name}} for name in dict.fromkeys(named)]


def _needs(distribution: Distribution) -> set[str]:
    """Names that it requires; optional extras are left out."""
    required = [line for line in distribution.requires or () if "extra ==" not in line]
    return {_normal(found[1]) for line in required if (found := _REQUIREMENT.match(line))}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
