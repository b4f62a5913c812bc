"""What reports and plans say of how a job makes the heads of groups."""

from typing import Any

from fedtree_secure.agreed.head_release import head_release
from fedtree_secure.config import Job

LEAVES = {
    "average": "the average of heads that each trains at home",
    "class_sums": (
        "one release of sums by class (features of the frozen model, and numbers of records), with "
        "noise, from which all make it"
    ),
}


def release_report(job: Job) -> dict[str, Any]:
    """Return what a summary says of it, by name; nothing where no head is shared."""
    found = head_release(job)
    if found.way == "none":
        return {}
    return {"head_release": {"way": found.way, "why": found.why}}


def release_said(job: Job) -> str:
    """Say how heads are made, and why; empty where none is shared."""
    found = head_release(job)
    return "" if found.way == "none" else f"{LEAVES[found.way]}, because {found.why}"
