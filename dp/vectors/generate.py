"""Write the test vectors anew: `python dp/vectors/generate.py`. Epsilons come from dp_accounting
and Opacus alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import rfc8785

HERE = Path(__file__).parent
TAG = b"fedtree-dp/ledger/v1\n"
PLANS: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"mechanism": "gaussian", "noise_multiplier": 20.0},),
    (
        {
            "mechanism": "poisson_gaussian",
            "noise_multiplier": 1.0,
            "sample_rate": 0.01,
            "steps": 3000,
        },
    ),
    (
        {"mechanism": "poisson_gaussian", "noise_multiplier": 2.0, "sample_rate": 0.2, "steps": 30},
        {"mechanism": "poisson_gaussian", "noise_multiplier": 3.0, "sample_rate": 1.0, "steps": 2},
        {"mechanism": "gaussian", "noise_multiplier": 20.0},
    ),
)


def seal(bodies: list[dict[str, Any]]) -> list[str]:
    """Chain bodies into the lines of an export."""
    lines, previous = [], "0" * 64
    for number, body in enumerate(bodies):
        whole: dict[str, Any] = {
            "previous": previous,
            "sequence": number,
            "time": "2026-01-02T03:04:05+00:00",
        } | body
        previous = hashlib.sha256(TAG + rfc8785.dumps(whole)).hexdigest()
        lines.append(rfc8785.dumps(whole | {"hash": previous}).decode())
    return lines


def ledger() -> dict[str, Any]:
    """Return one good chain and chains that must be refused."""
    budget = {"delta": 1e-5, "epsilon": 8.0}
    opened = {
        "kind": "opened",
        "dataset": "clinic-a",
        "budget": budget,
        "ledger": "00112233445566778899aabbccddeeff",
    }
    charge = {"kind": "charge", "event": PLANS[1][0], "job": "first", "purpose": "round 1"}
    release = {"kind": "charge", "event": PLANS[0][0], "job": "first", "purpose": "fingerprint"}
    raised = {"kind": "budget", "budget": {"delta": 1e-6, "epsilon": 9.5}, "reason": "review"}
    good = [opened, release, charge, raised]
    lines = seal(good)
    rejected = {
        "a changed value": [
            lines[0],
            lines[1].replace('"noise_multiplier":20', '"noise_multiplier":99'),
            *lines[2:],
        ],
        "a missing line": [*lines[:1], *lines[2:]],
        "two lines exchanged": [lines[0], lines[2], lines[1], lines[3]],
        "a missing first line": lines[1:],
        "no lines": [],
        "a second first line": seal([*good, opened]),
        "a line that starts another chain": [*lines[:2], seal([opened, charge])[1]],
        "an unknown kind": seal([opened, charge | {"kind": "refund"}]),
        "an additional field": seal([opened, charge | {"note": ""}]),
        "a missing field": seal(
            [opened, {key: value for key, value in charge.items() if key != "job"}]
        ),
        "an unknown mechanism": seal(
            [opened, charge | {"event": {"mechanism": "laplace", "noise_multiplier": 1}}]
        ),
        "a negative noise multiplier": seal(
            [opened, charge | {"event": PLANS[0][0] | {"noise_multiplier": -1}}]
        ),
        "a sample rate above 1": seal(
            [opened, charge | {"event": PLANS[1][0] | {"sample_rate": 1.5}}]
        ),
        "an unprintable name": seal([opened, charge | {"job": "a\nb"}]),
        "a delta of 1": seal([opened | {"budget": {"delta": 1, "epsilon": 8}}]),
    }
    return {"tag": TAG.decode(), "lines": lines, "rejected": rejected}


def epsilons() -> list[dict[str, Any]]:
    """Return plans with the epsilon of each accountant."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, pld, rdp
    from opacus.accountants import PRVAccountant

    found = []
    for plan in PLANS:
        kinds = [
            (event["noise_multiplier"], event.get("sample_rate", 1.0), event.get("steps", 1))
            for event in plan
        ]
        accountants = {
            "pld": pld.PLDAccountant(value_discretization_interval=1e-4),
            "rdp": rdp.RdpAccountant(),
        }
        for accountant in accountants.values():
            for noise, rate, steps in kinds:
                accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
        values = {
            name: round(accountant.get_epsilon(1e-5), 6) for name, accountant in accountants.items()
        }
        prv = PRVAccountant()
        prv.history = kinds
        values["prv"] = round(float(prv.get_epsilon(1e-5)), 6)
        found.append({"events": plan, "delta": 1e-5, "epsilon": values})
    return found


def main() -> None:
    """Write both files."""
    for name, content in (("ledger", ledger()), ("epsilon", epsilons())):
        (HERE / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
