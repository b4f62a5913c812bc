"""The server's report of a run: tree, rounds, opened sums, who fetched the last experts."""

from typing import Any

from fedtree_secure.flower.job_folder import JobFolder
from fedtree_secure.report.head_release import release_report
from fedtree_secure.report.layers import layers_of
from fedtree_secure.server.coordinator import Coordinator
from fedtree_secure.server.telemetry import noise_to_clip, reasons


def report_of(folder: JobFolder, coordinator: Coordinator) -> dict[str, Any]:
    """Return what a server knows of a run that is over: all of it is public to the sites as well.

    Args:
        folder: Of the job.
        coordinator: That ran it.
    """
    noise = noise_to_clip(coordinator)
    tree = coordinator.tree
    assert tree is not None
    whys = reasons(coordinator) or [""] * len(folder.facts.layer_names)
    return {
        "format": 1,
        "run": folder.run,
        "job": folder.job.to_dict(),
        "roster": folder.roster.digest,
        "model_sha256": folder.facts.digest.hex(),
        "layers": layers_of(tree, folder.facts.layer_names, whys),
        "heads": [list(group.members) for group in coordinator.terms.heads],
        **release_report(coordinator.terms.job),
        "rounds": [vars(record) for record in coordinator.records],
        "fetched": sorted(coordinator.finished),
        "clients": {name: {"noise_to_clip": noise.get(name)} for name in coordinator.terms.names},
    }
