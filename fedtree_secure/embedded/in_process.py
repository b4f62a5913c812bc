"""Every client in this process; nothing but bytes passes in either direction."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedtree_secure.agreed.stages import Exchange, kind_of
from fedtree_secure.config import Job
from fedtree_secure.embedded.progress import Observer
from fedtree_secure.embedded.transcript import SERVER, Transcript
from fedtree_secure.errors import RunStopped

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


# Between the clients of these exchanges a run can stop and lose nothing: what was charged by then
# is kept, or made again from its seed. Later in a round that would waste the round's charges.
LOSES_NOTHING = frozenset(
    {
        Exchange.JOIN,
        Exchange.SKETCH_HELLO,
        Exchange.SKETCH_SEAL,
        Exchange.SKETCH,
        Exchange.TREE,
        Exchange.ADOPT,
        Exchange.PREPARE,
        Exchange.ADVERTISE,
        Exchange.SHARE,
    }
)


class InProcess:
    """Carries messages to participants in this process.

    A participant that raises is a client that died at this stage: it does not answer.

    Args:
        participants: What answers a request, by client id.
        transcript: Where messages are listed.
        stop: Asked before each client where `LOSES_NOTHING`; True ends the run there.
    """

    def __init__(
        self,
        participants: Mapping[str, Callable[[bytes], bytes]],
        transcript: Transcript,
        *,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._participants, self._transcript, self._stop = participants, transcript, stop
        self._at = ("", "")
        self.failures: list[Failure] = []

    def when_stopped(self) -> str:
        """Say, for whoever asks to stop now, when the run will."""
        stage, client = self._at
        if not stage or kind_of(stage) in LOSES_NOTHING:
            when = f"after client {client} ({stage})" if client else "before the first client"
            why = "nothing is lost"
        else:
            when = f"after this round ({client}, {stage})"
            why = "its clients are charged for it, and stopping now would waste that"
        return f"stopping {when}: {why}. Press Ctrl-C again to stop at once"

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        """See `Transport.exchange`."""
        replies = {}
        for name, request in requests.items():
            if self._stop() and kind_of(stage) in LOSES_NOTHING:
                raise RunStopped(f"stopped before client {name} ({stage}), as asked")
            self._at = (stage, name)
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
