"""How a message of ours lies in one of Flower's: one record with run, stage and bytes."""

from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict

RECORD = "fedtree"
WHO = "who"  # the only stage that is no exchange of the protocols
MESSAGE_TYPE = "query"


@dataclass(frozen=True)
class Parcel:
    """What a server sends to a node.

    Attributes:
        run: Our name of the run; Flower's own changes with each start of a server.
        stage: For logs; what is asked for stands in the signed bytes.
        data: The bytes.
    """

    run: str
    stage: str
    data: bytes

    def content(self) -> RecordDict:
        """Return the content of a message."""
        record = {"run": self.run, "stage": self.stage, "data": self.data}
        return RecordDict({RECORD: ConfigRecord(record)})


def parcel_of(message: Message) -> Parcel | None:
    """Read what a server sent; None if it is none of ours."""
    record = _record(message)
    run, stage, data = (record.get(name) for name in ("run", "stage", "data"))
    if isinstance(run, str) and isinstance(stage, str) and isinstance(data, bytes):
        return Parcel(run, stage, data)
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
