"""How a message of ours lies in one of Flower's: a record with run, stage and bytes.

What several sites are told alike, such as the experts of a group, lies in a record of its own:
Flower names objects by their SHA-256, so equal records cross to the SuperLink once, however many
messages hold them. The server's signature covers both records.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict

from fedtree_secure.agreed.envelope import joined, split
from fedtree_secure.agreed.messages import WireError

RECORD, ALIKE = "fedtree", "alike"
WORTH_IT = 1024  # bytes of a body; a record of its own is another object to fetch
WHO = "who"  # the only stage that is no exchange of the protocols
MESSAGE_TYPE = "query"


@dataclass(frozen=True)
class Parcel:
    """What a server sends to a node.

    Attributes:
        run: Our name of the run; Flower's own changes with each start of a server.
        stage: For logs; what is asked for stands in the signed bytes.
        data: The bytes; without their body where that is alike for several.
        alike: The body, if so.
    """

    run: str
    stage: str
    data: bytes
    alike: bytes | None = None

    def content(self) -> RecordDict:
        """Return the content of a message."""
        record = {"run": self.run, "stage": self.stage, "data": self.data}
        records = {RECORD: ConfigRecord(record)}
        if self.alike is not None:
            records[ALIKE] = ConfigRecord({"data": self.alike})
        return RecordDict(dict(records))


def parcels_of(run: str, stage: str, requests: Mapping[int, bytes]) -> dict[int, Parcel]:
    """Pack the sealed requests of an exchange, by node; bodies that several share cross once."""
    parts = {node: split(data) for node, data in requests.items()}
    often = Counter(body for _, body in parts.values())
    return {
        node: Parcel(run, stage, head, body)
        if often[body] > 1 and len(body) >= WORTH_IT
        else Parcel(run, stage, requests[node])
        for node, (head, body) in parts.items()
    }


def crossing(parcels: Iterable[Parcel]) -> int:
    """Return how many of our bytes cross to the SuperLink for these messages of one exchange."""
    given = list(parcels)
    once = {parcel.alike for parcel in given if parcel.alike is not None}
    return sum(len(parcel.data) for parcel in given) + sum(map(len, once))


def parcel_of(message: Message) -> Parcel | None:
    """Read what a server sent; None if it is none of ours."""
    record = _record(message)
    run, stage, data = (record.get(name) for name in ("run", "stage", "data"))
    if not (isinstance(run, str) and isinstance(stage, str) and isinstance(data, bytes)):
        return None
    alike = message.content.config_records.get(ALIKE)
    if alike is None:
        return Parcel(run, stage, data)
    body = alike.get("data")
    try:
        return Parcel(run, stage, joined(data, body)) if isinstance(body, bytes) else None
    except WireError:
        return None


def reply_content(data: bytes | None) -> RecordDict:
    """Return a node's reply; None says that there is none, and no more."""
    record = {"answered": data is not None, "data": data or b""}
    return RecordDict({RECORD: ConfigRecord(record)})


def reply_of(message: Message) -> bytes | None:
    """Read a node's reply; None if there is none."""
    record = _record(message)
    data = record.get("data")
    return data if record.get("answered") is True and isinstance(data, bytes) else None


def _record(message: Message) -> ConfigRecord:
    if not message.has_content():
        return ConfigRecord()
    return message.content.config_records.get(RECORD, ConfigRecord())
