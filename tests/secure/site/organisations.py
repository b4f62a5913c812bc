"""Several organisations on one machine: a folder for each site, one for the server, real files."""

import csv
from pathlib import Path

import msgspec
from small_jobs import make_job, rows

from fedtree_dp import Ledger, PrivacyBudget
from fedtree_secagg import Identity
from fedtree_secure.agreed.stages import Exchange
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.agreed.transport import Transport
from fedtree_secure.client.data import texts_of
from fedtree_secure.config import Job, Topology, Training
from fedtree_secure.key_file import card_of, new_key, read_identity
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.roster_file import make_roster, read_roster
from fedtree_secure.server.coordinator import Coordinator, Hooks
from fedtree_secure.site.approval import approve, keep_approval, plan_for
from fedtree_secure.site.settings import load_site
from fedtree_secure.storage import SecretBox, read_json, write_atomically

BOX = SecretBox(None)
ONE = {
    "topology": Topology(source="one_group"),
    "training": Training(head="local", records=60, sample_rate=0.5, head_steps=0, max_length=16),
    "rounds": 2,
}
POLICY = {
    "largest_epsilon": 8.0,
    "largest_delta": 1e-3,
    "smallest_group": 3,
    "most_colluders": 1,
    "most_rounds": 5,
    "unit": "record",
    "noise": ["own"],
}


def toml(settings: dict) -> str:
    """The few kinds of values that these files have."""
    return "".join(f"{key} = {msgspec.json.encode(v).decode()}\n" for key, v in settings.items())


class Organisations:
    """Sites and a server, each with its own folder; nothing is shared but what is handed over.

    Attributes:
        root: Where they lie.
        names: The sites.
        job: What they do; its backbone is the name "tiny".
    """

    def __init__(
        self,
        root: Path,
        model: Path,
        *,
        tasks=2,
        each=3,
        rows_each=60,
        labels=(),
        policy=None,
        **changes,
    ):
        self.root, self.model, self.labels = root, model, tuple(labels)
        self.rules = {**POLICY, **(policy or {})}
        self.names = [f"t{task}-c{i}" for task in range(tasks) for i in range(each)]
        self.job: Job = make_job("tiny", **changes)
        self.server = self._key(root / "job" / "server.key")
        for at, name in enumerate(self.names):
            place = self.site(name)
            self._key(place / "identity.key")
            task, number = divmod(at, each)
            write_rows(place / "train.csv", rows(task, rows_each, number))
            write_rows(place / "test.csv", rows(task, 30, 100 + number))
            self.write_site(name)
        self.roster, self.digest, self.plan = None, "", None
        self.publish()

    def site(self, name: str) -> Path:
        return self.root / "sites" / name

    @property
    def folder(self) -> Path:
        return self.root / "job"

    def _key(self, path: Path) -> Identity:
        path.parent.mkdir(parents=True, exist_ok=True)
        return new_key(path, BOX)

    def key(self, name: str) -> Identity:
        return read_identity(self.site(name) / "identity.key", BOX)

    def replace_key(self, path: Path, secret: bytes) -> None:
        """Give a party the key that it had elsewhere."""
        path.unlink()
        write_atomically(path, lambda target: target.write_bytes(BOX.seal(secret)), 0o600)

    def write_site(self, name: str, **changes) -> None:
        settings = {
            "name": name,
            "train": "train.csv",
            "test": "test.csv",
            "records": 60,
            "labels": ["class-0", "class-1"],
            "state": "state",
            "heads": "heads",
        }
        models = f"[models]\ntiny = {msgspec.json.encode(str(self.model)).decode()}\n"
        (self.site(name) / "site.toml").write_text(toml({**settings, **changes}) + models)

    def publish(self) -> None:
        """Make the first roster of all cards, and give it to everybody."""
        cards = [card_of(name, self.key(name), labels=self.labels) for name in self.names]
        self.server = read_identity(self.folder / "server.key", BOX)
        self.roster = make_roster("clinics", self.server, cards)
        for place in (self.folder, *map(self.site, self.names)):
            self.roster.write(place / "roster.json")

    def policies(self, digest: str, **changes) -> None:
        for name in self.names:
            self.policy(name, digest, **changes)

    def policy(self, name: str, digest: str, **changes) -> None:
        rules = {"server": self.roster.server, "roster": self.roster.digest, "models": [digest]}
        (self.site(name) / "policy.toml").write_text(toml({**rules, **self.rules, **changes}))

    def make_store(self, name: str, budget: PrivacyBudget | None = None) -> None:
        settings = load_site(self.site(name))
        sets, budget = settings.data_sets(), budget or self.job.privacy
        with sets.opened(settings.dataset, budget, texts_of(settings.client(None))):
            pass

    def approve(self, name: str, job: Job | None = None) -> Path:
        roster = read_roster(self.site(name) / "roster.json")
        settings, job = load_site(self.site(name)), job or self.job
        with Ledger.inspect(settings.data_sets().store_of(settings.dataset)) as ledger:
            if self.plan is None or ledger.events() or job is not self.job or job.budgets:
                self.plan = plan_for(name, job, ledger)  # the same at sites with the same budget
            given = approve(name, self.key(name), job, roster, ledger, self.plan)
        return keep_approval(self.site(name) / "approvals", given)

    def ready(self, digest: str) -> None:
        """Policies, stores and approvals of all sites."""
        self.digest = digest
        self.policies(digest)
        for name in self.names:
            self.make_store(name)
            self.approve(name)

    def take_over(self, out: Path) -> str:
        """Give every party the key that it had in an embedded run; return the run's name."""
        for name in self.names:
            secret = (out / "clients" / name / "identity.key").read_bytes()[1:]
            self.replace_key(self.site(name) / "identity.key", secret)
        secret = (out / "server" / "identity.key").read_bytes()[1:]
        self.replace_key(self.folder / "server.key", secret)
        self.publish()
        self.policies(self.digest)
        for name in self.names:
            for path in (self.site(name) / "approvals").iterdir():
                path.unlink()
            self.approve(name)  # with its new key
        return str(read_json(out / "job.json")["run"])

    def write_job(self) -> None:
        """The job's file, as the server's operator sends it to the sites."""
        settings = self.job.to_dict()
        tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
        text = toml({key: value for key, value in settings.items() if key not in tables})
        for name, table in tables.items():
            given = {key: value for key, value in table.items() if value is not None}
            text += f"[{name}]\n{toml(given)}"
        (self.folder / "job.toml").write_text(text)

    def terms(self, run: str) -> Terms:
        return self.roster.terms(self.job, run)

    def serve(
        self, backbone: Backbone, transport: Transport, run: str = "run-1", hooks=None
    ) -> Coordinator:
        """The server's side over any transport."""
        return Coordinator(
            self.terms(run),
            self.server,
            backbone.facts(self.terms(run).outputs_of_heads),
            transport,
            self.folder / "server",
            hooks or Hooks(),
        )


class Directly:
    """A transport to sites of this process; a site that is silent does not answer."""

    def __init__(self, sites: dict, run: str = "run-1"):
        self.sites, self.run, self.seen = sites, run, []

    def exchange(self, stage: str, requests: dict) -> dict:
        self.seen.append((stage, dict(requests)))
        replies = {n: self.sites[n].handle(self.run, r) for n, r in requests.items()}
        if stage in (Exchange.FINISH, Exchange.DELIVER):
            for site in self.sites.values():
                site.settle()
        return {name: reply for name, reply in replies.items() if reply is not None}


def write_rows(path: Path, given) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label"])
        writer.writerows(zip(given["text"], given["label"], strict=True))
