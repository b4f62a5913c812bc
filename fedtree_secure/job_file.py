"""Job files: TOML with the names of the settings in `config`, and where each client's rows are."""

import dataclasses
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fedtree_dp import PrivacyBudget
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError, suggest
from fedtree_secure.job_budgets import with_own
from fedtree_secure.names import check_name


@dataclass(frozen=True, kw_only=True)
class ClientFiles:
    """One ``[[clients]]`` entry of a job file: where a client's rows are and which columns to read.

    Attributes:
        id: Unique name, see `check_name`.
        train, test: CSV, JSONL, JSON or Parquet files, relative to the job file; ``~`` is the home
            folder.
        text, label: Column names; ``label`` is not read for causal language modelling.
        labels: The declared label set; without it the labels found in the files are taken, and
            named as public.
        records: Declared size of the training set (see `Training.records`).
        unit: Column that names each row's unit, where the job protects units; the job's ``unit`` if
            empty.
        dataset: Name of the data set in the ledger, see `check_name`; the client's id if empty.
        privacy: This client's own budget, at most the job's, and public like all of a job; the
            job's if not given.

    Raises:
        ConfigurationError: ``id`` or ``dataset`` cannot be part of a path.
    """

    id: str
    train: str
    test: str | None = None
    text: str = "text"
    label: str = "label"
    labels: tuple[str | int, ...] = ()
    records: int | None = None
    dataset: str = ""
    privacy: PrivacyBudget | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        check_name("client id", self.id)
        if self.dataset:
            check_name(f"dataset of client {self.id}", self.dataset)


def load_job(path: str | Path) -> tuple[Job, tuple[ClientFiles, ...]]:
    """Read a TOML job file. A backbone that is a path is relative to it, as all paths in it are;
    budgets of single clients are in the job that is returned.

    Raises:
        ConfigurationError: The file is missing, not TOML, has unknown keys (with a suggestion) or
            values out of range.
    """
    raw = read_toml(path, "job file", "see examples/job.toml for one")
    clients = raw.pop("clients", [])
    if not isinstance(clients, list) or not clients:
        raise ConfigurationError(f"{path} names no clients; add one [[clients]] table for each")
    job = build(Job, raw, "")
    place = find_backbone(job.backbone, Path(path).expanduser().resolve().parent)
    entries = tuple(build(ClientFiles, item, f"clients[{i}].") for i, item in enumerate(clients))
    job = with_own(dataclasses.replace(job, backbone=place), {c.id: c.privacy for c in entries})
    return job, entries


def find_backbone(backbone: str, folder: Path) -> str:
    """Return the path of a backbone that lies in ``folder``, or the hub id that it is.

    Args:
        backbone: As it stands in a job file.
        folder: Of the job file.
    """
    place = folder / Path(backbone).expanduser()
    is_path = backbone.startswith((".", "/", "~")) or place.suffix == ".gguf"
    return str(place) if is_path or place.is_dir() else backbone


def load_public_job(path: str | Path) -> Job:
    """Read a job file of a deployment: the public settings alone, as all parties hold them.

    Raises:
        ConfigurationError: As `load_job`, or it names clients' files.
    """
    raw = read_toml(path, "job file", "see docs/deploy.md for one")
    if "clients" in raw:
        raise ConfigurationError(
            f"{path} has [[clients]] tables; in a deployment each site keeps its rows to itself, "
            "in its site.toml. Remove them"
        )
    return build(Job, raw, "")


def read_toml(path: str | Path, what: str, hint: str) -> dict[str, Any]:
    """Return the content of a TOML file.

    Args:
        path: The file.
        what: What it is, for errors.
        hint: What to do where it is missing.

    Raises:
        ConfigurationError: It is missing or not TOML.
    """
    if not isinstance(path, str | Path):
        raise ConfigurationError(f"the {what} is {path!r}; give its path")
    path = Path(path).expanduser()
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"there is no {what} {path}; {hint}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None


T = typing.TypeVar("T")


def build(kind: type[T], raw: Any, where: str) -> T:
    """Convert a plain mapping into a settings dataclass, refusing unknown keys with a
    suggestion.
    """
    _refuse_unknown(kind, raw, where)
    _check_named(kind, raw, where)
    try:
        return msgspec.convert(raw, kind, strict=True)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        if isinstance(cause, ValueError) and not isinstance(cause, msgspec.ValidationError):
            raise cause from None
        said, _, place = str(error).partition(" - at `$")
        path = place.rstrip("`").lstrip(".")
        said = f"{said[:1].lower()}{said[1:]}{_choices(kind, path)}"
        raise ConfigurationError(f"setting {where}{path}: {said}") from None


def _choices(kind: Any, path: str) -> str:
    """What a setting with fixed choices allows; nothing for all others."""
    for name in path.split("."):
        kind = typing.get_type_hints(kind).get(name) if dataclasses.is_dataclass(kind) else None
    if typing.get_origin(kind) is not typing.Literal:
        return ""
    return f"; allowed: {', '.join(typing.get_args(kind))}"


def _check_named(kind: Any, raw: dict[str, Any], where: str) -> None:
    """Convert each entry of a table of names by itself, so that a refusal says whose it is."""
    for key, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is not Mapping or key not in raw:
            continue
        for inner, entry, place in _tables(hint, raw[key], f"{where}{key}."):
            try:
                build(inner, entry, place)
            except ConfigurationError as error:
                text = str(error)
                said = text if place in text else f"{place.rstrip('.')}: {text}"
                raise ConfigurationError(said) from None


def _tables(hint: Any, value: Any, where: str) -> Iterator[tuple[Any, Any, str]]:
    """The settings tables behind a key: one, one that may be left out, or one for each name."""
    inner = [kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)]
    if dataclasses.is_dataclass(hint):
        yield hint, value, where
    elif inner and typing.get_origin(hint) is Mapping:
        for name, entry in value.items() if isinstance(value, dict) else ():
            yield inner[0], entry, f"{where}{name}."
    elif inner and value is not None:
        yield inner[0], value, where


def _refuse_unknown(kind: Any, raw: Any, where: str) -> None:
    if not isinstance(raw, dict):
        raise ConfigurationError(
            f"{where.rstrip('.') or 'the job'} is {raw!r}; it must be a table of settings"
        )
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}
    for key, value in raw.items():
        if key not in names:
            raise ConfigurationError(f"unknown setting {where}{key}{suggest(key, names)}")
        for inner, given, place in _tables(hints[key], value, f"{where}{key}."):
            _refuse_unknown(inner, given, place)
    required = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    for name in required:
        if name not in raw:
            raise ConfigurationError(f"missing setting {where}{name}")
