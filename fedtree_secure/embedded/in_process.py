"""Every client in this process; nothing but bytes passes in either direction."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedtree_secure.agreed.stages import Exchange, kind_of
from fedtree_secure.config import Job
from fedtree_secure.embedded.progress import Observer
from fedtree_secure.embedded.transcript import SERVER, Transcript

log = logging.getLogger("fedtree_secure.embedded")


@dataclass(frozen=True)
class Failure:
    """A client that did not answer because it raised.

    Attributes:
        client, stage: Who, and in which exchange.
        error: What it raised; for the local report alone, its text is sent to nobody.
    """

    client: str
    stage: str
    error: Exception


class InProcess:
    """Carries messages to participants in this process.

    A participant that raises is a client that died at this stage: it does not answer.

    Args:
        participants: What answers a request, by client id.
        transcript: Where messages are listed.
    """

    def __init__(
        self, participants: Mapping[str, Callable[[bytes], bytes]], transcript: Transcript
    ) -> None:
        self._participants, self._transcript = participants, transcript
        self.failures: list[Failure] = []

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        """See `Transport.exchange`."""
        replies = {}
        for name, request in requests.items():
            self._transcript.record(SERVER, name, stage, request)
            try:
                reply = self._participants[name](request)
            except Exception as error:  # a dying client must not take the others with it
                log.warning(
                    "client %s failed at stage %s: %s: %s", name, stage, type(error).__name__, error
                )
                self.failures.append(Failure(name, stage, error))
                continue
            self._transcript.record(name, SERVER, stage, reply)
            replies[name] = reply
        return replies


class Announcing:
    """Tells an observer which stage runs and how many steps it will take."""

    def __init__(self, inner: InProcess, observer: Observer, job: Job) -> None:
        self._inner, self._observer = inner, observer
        local = job.training.local_steps
        sketch = 1 if job.topology.source == "fingerprint" else job.topology.warmup_steps
        self._steps = {
            Exchange.SKETCH: ("private distances", sketch),
            Exchange.PREPARE: ("heads", job.head_steps),
            Exchange.MASK: ("local steps", local),
            Exchange.ALONE: ("local steps", local),
        }

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        """See `Transport.exchange`."""
        title, steps = self._steps.get(kind_of(stage), ("", 0))
        if steps:
            self._observer.stage(f"{title} ({stage.partition('/')[0]})", steps * len(requests))
        return self._inner.exchange(stage, requests)
