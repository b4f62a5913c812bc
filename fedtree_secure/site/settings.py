"""``site.toml``: where one party's rows, model, key, policy and store lie. Private to the site.

Nothing here reaches a server but the name and the declared number of records. Paths are relative to
the file's folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedtree_dp import PrivacyBudget
from fedtree_secure.client.data import Client, load_clients
from fedtree_secure.client.data_sets import DataSets
from fedtree_secure.errors import ConfigurationError, suggest
from fedtree_secure.job_file import ClientFiles, build, read_toml
from fedtree_secure.key_file import Card
from fedtree_secure.names import check_name

HINT = "docs/deploy.md shows one"


@dataclass(frozen=True, kw_only=True)
class SiteFile:
    """What ``site.toml`` says.

    Attributes:
        name: The site's name in the roster, see `check_name`.
        train, test: CSV, JSONL, JSON or Parquet files; ``test`` may be left out.
        records: Declared size of the training set, a rounded public constant; in units where there
            are any.
        text, label, labels: As in a job file, see `ClientFiles`.
        unit: Column that names each row's unit, such as a patient's. With it, the site takes part
            in jobs alone that protect units.
        dataset: Name of the data set in its store; the site's name if empty.
        key: The site's signing key, made by ``keys new``.
        roster: The roster that the policy names.
        policy: What the site takes part in, see `policy`.
        state: Folder of the stores; the user's data folder if empty.
        heads: Folder of their signed heads, outside of ``state``; the user's state folder if empty.
        models: Folder of each model by the name that jobs give it.
    """

    name: str
    train: str
    records: int
    test: str | None = None
    text: str = "text"
    label: str = "label"
    labels: tuple[str | int, ...] = ()
    unit: str = ""
    dataset: str = ""
    key: str = "identity.key"
    roster: str = "roster.json"
    policy: str = "policy.toml"
    state: str = ""
    heads: str = ""
    models: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("the site's name", self.name)
        if self.dataset:
            check_name(f"dataset of site {self.name}", self.dataset)
        if isinstance(self.records, bool) or self.records < 1:
            raise ConfigurationError(
                f"records is {self.records!r}; allowed: a whole number of at least 1, rounded, "
                "never counted from the rows"
            )
        if not self.models:
            raise ConfigurationError(
                'site.toml names no model; add a table [models] with a line such as minilm = "PATH"'
            )


@dataclass(frozen=True)
class SiteSettings:
    """``site.toml`` with the folder that it lies in."""

    file: SiteFile
    folder: Path

    @property
    def name(self) -> str:
        """The site's name in the roster."""
        return self.file.name

    @property
    def dataset(self) -> str:
        """Name of its data set in the store."""
        return self.file.dataset or self.file.name

    @property
    def key(self) -> Path:
        """Its signing key."""
        return self.path(self.file.key)

    @property
    def policy(self) -> Path:
        """Its policy."""
        return self.path(self.file.policy)

    @property
    def roster(self) -> Path:
        """The roster."""
        return self.path(self.file.roster)

    @property
    def approvals(self) -> Path:
        """Folder of the operator's approvals."""
        return self.folder / "approvals"

    @property
    def runs(self) -> Path:
        """Folder of what runs delivered."""
        return self.folder / "runs"

    def path(self, name: str) -> Path:
        """A path of the file, relative to its folder."""
        return self.folder / Path(name).expanduser()

    def model(self, name: str) -> Path:
        """Folder of a model that a job names.

        Raises:
            ConfigurationError: The site maps no such name.
        """
        if name not in self.file.models:
            raise ConfigurationError(
                f"the job names the model {name!r}, which [models] in site.toml does not map to a "
                f"folder{suggest(name, self.file.models)}"
            )
        return self.path(self.file.models[name])

    def check_labels(self, card: Card) -> None:
        """Refuse a card that declares other labels than the site's own file.

        Raises:
            ConfigurationError: It does: the outputs of a shared head would mean something else.
        """
        own = tuple(map(str, self.file.labels))
        if card.labels and card.labels != own:
            raise ConfigurationError(
                f"the card of {self.name!r} in the roster declares the labels "
                f"{', '.join(card.labels)}; labels in site.toml are {', '.join(own) or 'not given'}"
                ". They must be the same, in the same order: mend site.toml, or send the roster's "
                "keeper a new card (`fedtree-secure keys show --labels`)"
            )

    def data_sets(self) -> DataSets:
        """Where the store of the data set and its head lie.

        Raises:
            ConfigurationError: The heads lie inside the folder of the stores, so that one backup
                would set back both.
        """
        state = self.path(self.file.state) if self.file.state else None
        found = DataSets.of_user(state)
        if self.file.heads:
            found = DataSets(found.stores, self.path(self.file.heads).resolve())
        if found.heads.is_relative_to(found.stores):
            raise ConfigurationError(
                f"heads is {found.heads}, inside the folder of the stores; name another place, "
                "best another disk: whoever restores one from a backup would restore both"
            )
        return found

    def client(self, budget: PrivacyBudget | None) -> Client:
        """Read the rows.

        Args:
            budget: Of the data set, as its store says.

        Raises:
            DataError: A file cannot be read.
        """
        file = self.file
        entry = ClientFiles(
            id=file.name,
            train=file.train,
            test=file.test,
            text=file.text,
            label=file.label,
            labels=file.labels,
            records=file.records,
            dataset=file.dataset,
            privacy=budget,
            unit=file.unit,
        )
        return load_clients([entry], self.folder)[0]


def load_site(path: str | Path) -> SiteSettings:
    """Read ``site.toml``.

    Args:
        path: The file, or the folder that holds it.

    Raises:
        ConfigurationError: It is missing, not TOML, or says something that is not allowed.
    """
    path = Path(path)
    file = path / "site.toml" if path.is_dir() else path
    raw = read_toml(file, "site file", HINT)
    return SiteSettings(build(SiteFile, raw, "site."), file.resolve().parent)
