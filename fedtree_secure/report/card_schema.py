"""The form of a privacy card: that of a record in the OpenDP deployments registry.

The registry (github.com/opendp/deployments-registry-data) describes deployments of differential
privacy in YAML files and checks them against ``schemas/deployments-schema.yaml``. The types below
say the same in our own words, field for field, as of commit `COMMIT`; it is not a copy of that
file. The registry changes its form often, so a card that is sent there may need a field moved.

`python -m fedtree_secure.report.card_schema` writes them as JSON Schema to ``schemas/``; a test
compares the file with the types.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

COMMIT = "057e5d81cf60150dd3307e0cf4504b957802fb3b"
FILE = Path(__file__).parent / "schemas" / "privacy-card-1.json"

CuratorType = Literal["Government", "Industry", "Nonprofit"]
Sector = Literal["Technology", "Healthcare", "Education", "Government", "Energy", "Finance"]
Date = Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
Status = Literal[
    "Converted",
    "Draft",
    "Pending",
    "Changes Required",
    "Approved",
    "Approved (Update Requested)",
    "Approved (Pending)",
]


class Curator(msgspec.Struct, forbid_unknown_fields=True):
    """Who publishes the model."""

    data_curator_name: str
    data_curator_type: CuratorType


class Basic(msgspec.Struct, forbid_unknown_fields=True):
    """What was made, by whom, for what."""

    name: str
    data_curators: Annotated[list[Curator], Meta(min_length=1)]
    description: str
    intended_use: str
    data_product_type: Literal[
        "Summary statistics",
        "Machine learning model",
        "Dataset",
        "Synthetic data",
        "Interactive API",
        "SQL queries",
    ]
    data_product_region: str
    publication_date: Date
    data_product_sector: Sector | UnsetType = UNSET


class Variant(msgspec.Struct, forbid_unknown_fields=True):
    """Which differential privacy."""

    variant_name: Literal["Pure DP", "Approximate DP", "Zero-concentrated DP", "Renyi DP", "Custom"]
    data_domain: str
    unprotected_quantities: str


class Parameters(msgspec.Struct, forbid_unknown_fields=True):
    """Privacy loss."""

    epsilon: float
    delta: float


class Loss(msgspec.Struct, forbid_unknown_fields=True):
    """Unit and amount of privacy loss."""

    privacy_unit: str
    privacy_unit_details: str
    number_of_privacy_units: int
    privacy_parameters: Parameters
    privacy_parameters_details: str


class Model(msgspec.Struct, forbid_unknown_fields=True):
    """Who is trusted with what, and how often something is published."""

    model_name: Literal["Local", "Central", "Shuffle", "Federated", "Varies"]
    model_name_details: str
    trust_assumptions: str
    actors: str
    release_type: Literal["One release", "Many releases"]
    release_type_details: str
    data_source_type: Literal["Static", "Dynamic"]
    data_source_type_details: str
    access_type: Literal["Interactive", "Non-interactive"]
    access_type_details: str


class Implementation(msgspec.Struct, forbid_unknown_fields=True):
    """Mechanisms, and what was done before and after them."""

    preprocessing_and_hyperparameter_tuning: str
    mechanisms: str
    composition: str
    post_processing: str
    justification: str
    utility: str
    additional_information: str


class Administrative(msgspec.Struct, forbid_unknown_fields=True):
    """State of the record itself."""

    status: Status
    registry_authors: Annotated[list[str], Meta(min_length=1)]
    tier: Literal[1, 2, 3]


class Deployment(msgspec.Struct, forbid_unknown_fields=True):
    """One deployment."""

    basic: Basic
    dp_variant: Variant
    privacy_loss: Loss
    deployment_model: Model
    implementation: Implementation
    administrative: Administrative


class Card(msgspec.Struct, forbid_unknown_fields=True):
    """A record of the registry."""

    url_slug: str
    deployment: Deployment


def check_card(card: Any) -> None:
    """Check plain values.

    Raises:
        msgspec.ValidationError: Something is missing, unknown or of another type; the text says
            where.
    """
    msgspec.convert(card, Card, strict=True)


def document() -> dict[str, Any]:
    """Return the JSON Schema."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fedtree-secure privacy card, version 1",
        "$comment": (
            "Our own description of a record of the OpenDP deployments registry, after "
            f"schemas/deployments-schema.yaml of opendp/deployments-registry-data at {COMMIT}"
        ),
        **msgspec.json.schema(Card),
    }


def write(path: Path = FILE) -> Path:
    """Write the schema's file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document(), indent=2) + "\n", "utf-8")
    return path


if __name__ == "__main__":
    sys.stdout.write(f"{write()}\n")
