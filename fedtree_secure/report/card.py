"""The privacy card of a run (``privacy.yaml``), in the form of a record of the OpenDP deployments
registry.

A run does not know who publishes its model, where, in which sector and for what. Nothing is made up
for these: they come from a file of facts, and a card without it lacks the curators' types and says
"not stated" elsewhere.
"""

import dataclasses
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedtree_secure.errors import ConfigurationError, suggest
from fedtree_secure.report.card_schema import CuratorType, Sector
from fedtree_secure.report.hazards import limits_of
from fedtree_secure.report.statement import ClientStatement, Statement

NOT_STATED = "not stated"
_DRAFT = """\
# Draft of a record for the OpenDP deployments registry, written by fedtree-secure.
# The run does not know who publishes the model: data_curator_type is missing below. State it with
#   fedtree-secure report FOLDER --facts facts.toml
"""
_WHOLE = "# A record for the OpenDP deployments registry, written by fedtree-secure.\n"


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise ConfigurationError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def _names(name: str, value: Any) -> tuple[str, ...]:
    whole = isinstance(value, list | tuple) and all(isinstance(x, str) and x for x in value)
    if not whole:
        raise ConfigurationError(f"{name} is {value!r}; it must be a list of names")
    return tuple(value)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What people know of a deployment and a run does not; the keys of a TOML file.

    Attributes:
        curator_type: Of those who publish the model: Government, Industry or Nonprofit.
        curators: Who publishes it; the clients' names if empty.
        name: Of the model.
        intended_use, region: Free text.
        sector: One of the registry's sectors; None to leave it out.
        authors: Who answers for the card.
    """

    curator_type: CuratorType | None = None
    curators: tuple[str, ...] = ()
    name: str = ""
    intended_use: str = NOT_STATED
    region: str = NOT_STATED
    sector: Sector | None = None
    authors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _one_of("curator_type", self.curator_type, typing.get_args(CuratorType))
        _one_of("sector", self.sector, typing.get_args(Sector))
        for name in ("curators", "authors"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        for name in ("name", "intended_use", "region"):
            if not isinstance(getattr(self, name), str):
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; it must be text")


NO_FACTS = Facts()


def read_facts(path: Path) -> Facts:
    """Read a file of facts.

    Raises:
        ConfigurationError: It cannot be read, or has a key or a value that is not allowed.
    """
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the file of facts {path} cannot be read: {error}") from None
    known = [field.name for field in dataclasses.fields(Facts)]
    for key in found:
        if key not in known:
            raise ConfigurationError(f"{path} has the unknown key {key!r}{suggest(key, known)}")
    return Facts(**found)


def privacy_card(statement: Statement, facts: Facts = NO_FACTS) -> dict[str, Any]:
    """Return the card as plain values; `card_schema.check_card` passes where the facts are whole.

    Args:
        statement: Of the run.
        facts: What the run does not know.
    """
    return {
        "url_slug": f"fedtree-secure-{statement.run}",
        "deployment": {
            "basic": _basic(statement, facts),
            "dp_variant": {
                "variant_name": "Approximate DP",
                "data_domain": (
                    "Tables of texts, with a label each for classification. Every client has one "
                    "table of its own."
                ),
                "unprotected_quantities": _lines(statement.guarantee["declared_public"]),
            },
            "privacy_loss": _loss(statement),
            "deployment_model": _model(statement),
            "implementation": _implementation(statement),
            "administrative": {
                "status": "Draft",
                "registry_authors": list(facts.authors) or [NOT_STATED],
                "tier": 3,
            },
        },
    }


def card_text(statement: Statement, facts: Facts = NO_FACTS) -> str:
    """Return the card as YAML."""
    card = privacy_card(statement, facts)
    head = _DRAFT if facts.curator_type is None else _WHOLE
    return head + str(
        yaml.dump(card, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=96)
    )


class _Dumper(yaml.SafeDumper):  # type: ignore[misc] # yaml has no types
    """Writes texts of several lines as they are read, line by line."""


def _as_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Dumper.add_representer(str, _as_text)


def _basic(statement: Statement, facts: Facts) -> dict[str, Any]:
    named = [c.name for c in statement.clients] if statement.named else [NOT_STATED]
    kind = {} if facts.curator_type is None else {"data_curator_type": facts.curator_type}
    sector = {} if facts.sector is None else {"data_product_sector": facts.sector}
    return {
        "name": facts.name or f"adapters of run {statement.run}",
        "data_curators": [
            {"data_curator_name": name} | kind for name in list(facts.curators) or named
        ],
        "description": (
            f"Low-rank adapters of the language model {statement.job['backbone']} "
            f"({statement.job['task']}), trained by {len(statement.clients)} clients together, "
            "one adapter for each client."
            + (" A simulation: nothing was released." if statement.simulated else "")
        ),
        "intended_use": facts.intended_use,
        "data_product_type": "Machine learning model",
        "data_product_region": facts.region,
        **sector,
        "publication_date": statement.date[:10],
    }


def _loss(statement: Statement) -> dict[str, Any]:
    return {
        "privacy_unit": statement.guarantee["unit"],
        "privacy_unit_details": (
            f"Neighbouring tables differ by one {statement.counted} of one client: "
            f"{statement.guarantee['adjacency']}."
        ),
        "number_of_privacy_units": sum(client.records for client in statement.clients),
        "privacy_parameters": {"epsilon": statement.epsilon, "delta": statement.delta},
        "privacy_parameters_details": _lines(
            [
                (
                    "The figures are the largest of any client; all jobs on a data set are "
                    "counted. The number of privacy units is that of declared "
                    f"{statement.counted}s."
                ),
                *_assumed(statement),
                *statement.budgets,
                *(_client(client, statement.counted) for client in statement.clients),
            ]
        ),
    }


def _assumed(statement: Statement) -> list[str]:
    """The condition of a conditional claim stands before its figures."""
    if statement.shared is None:
        return []
    worst = statement.epsilon if statement.own_epsilon is None else statement.own_epsilon
    return [
        (
            f"Epsilon is conditional: it holds while {statement.shared['condition']}. Whatever all "
            f"others do, epsilon is at most {worst:.4f}."
        )
    ]


def _client(client: ClientStatement, counted: str) -> str:
    rows = ", ".join(f"{row['others']}: {row['epsilon']:.4f}" for row in client.honest_others)
    return (
        f"{client.name}: epsilon {client.epsilon:.4f} of {client.allowed:g} at delta "
        f"{client.delta:g}, {client.records} declared {counted}s"
        + (
            f"; by number of honest others {rows}, of own_epsilon {client.own_allowed:g}"
            if rows
            else ""
        )
    )


def _model(statement: Statement) -> dict[str, Any]:
    return {
        "model_name": "Federated",
        "model_name_details": (
            "Each client clips and noises its own gradients before anything leaves it; uploads are "
            "masked, so that only sums over groups are opened."
            + (
                " In these sums the noise of several honest clients together is what epsilon asks "
                "for."
                if statement.shared
                else ""
            )
        ),
        "trust_assumptions": statement.guarantee["observers"],
        "actors": (
            "Clients, which hold the rows; a server, which sees masked uploads and opened sums; "
            "recipients of the adapters."
        ),
        "release_type": "One release",
        "release_type_details": (
            "One run. Later jobs on the same data sets are charged to the same ledgers."
        ),
        "data_source_type": "Static",
        "data_source_type_details": "Rows are read once, at the start of the run.",
        "access_type": "Non-interactive",
        "access_type_details": "Nobody queries the rows; adapters are delivered as files.",
    }


def _implementation(statement: Statement) -> dict[str, Any]:
    kinds = sorted({str(r["mechanism"]) for c in statement.clients for r in c.releases})
    versions = ", ".join(f"{name} {version}" for name, version in statement.versions.items())
    verdicts = ", ".join(f"{audit.name} {audit.verdict}" for audit in statement.audits)
    return {
        "preprocessing_and_hyperparameter_tuning": (
            "Texts are cut into tokens by a public tokenizer. Settings were chosen by whoever "
            "wrote the job; earlier runs on the same data sets are in the ledgers."
        ),
        "mechanisms": (
            f"{', '.join(kinds)}; {statement.guarantee['sampling']} sampling, gradients clipped "
            f"for each {statement.counted}. Software: {versions}."
        ),
        "composition": (
            f"All charges of a data set together, by {statement.guarantee['accountant']}."
        ),
        "post_processing": (
            "Decoding of masked sums, averaging within groups, folding of experts, rounding of "
            "delivered values to a grid."
        ),
        "justification": "Epsilon, delta and groups are those of the job file.",
        "utility": statement.guarantee["not_released"],
        "additional_information": _lines(
            [
                f"Audits of this run: {verdicts or 'none were run'}.",
                *limits_of(statement.unit, shared=statement.shared is not None),
            ]
        ),
    }


def _lines(texts: Any) -> str:
    return "\n".join(f"- {text}" for text in texts)
