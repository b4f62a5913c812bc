"""Every client in this process; nothing but bytes passes in either direction."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from fedtree_secure.agreed.stages import Exchange, kind_of
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
        Exchange.DRAW_COMMIT,
        Exchange.DRAW_OPEN,
        Exchange.DRAW_KEEP,
        Exchange.ADVERTISE,
        Exchange.SHARE,
    }
)


class Watcher(Protocol):
    """Is told which client is at work."""

    def asks(self, stage: str, client: str) -> None:
        """A client is asked."""
        ...

    def answered(self, stage: str, *, well: bool) -> None:
        """It has answered, or failed."""
        ...


class InProcess:
    """Carries messages to participants in this process.

    A participant that raises is a client that died at this stage: it does not answer.

    Args:
        participants: What answers a request, by client id.
        transcript: Where messages are listed.
        stop: Asked before each client where `LOSES_NOTHING`; True ends the run there.
        watch: Is told who is at work; None to tell nobody.
    """

    def __init__(
        self,
        participants: Mapping[str, Callable[[bytes], bytes]],
        transcript: Transcript,
        *,
        stop: Callable[[], bool] = lambda: False,
        watch: Watcher | None = None,
    ) -> None:
        self._participants, self._transcript, self._stop = participants, transcript, stop
        self._watch = watch
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
            if self._watch is not None:
                self._watch.asks(stage, name)
            reply = self._ask(stage, name, request)
            if self._watch is not None:
                self._watch.answered(stage, well=reply is not None)
            if reply is not None:
                replies[name] = reply
        return replies

    def _ask(self, stage: str, name: str, request: bytes) -> bytes | None:
        """Return a client's reply; None where it raised."""
        self._transcript.record(SERVER, name, stage, request)
        try:
            reply = self._participants[name](request)
        except Exception as error:  # a dying client must not take the others with it
            log.warning(
                "client %s failed at stage %s: %s: %s", name, stage, type(error).__name__, error
            )
            self.failures.append(Failure(name, stage, error))
            return None
        self._transcript.record(name, SERVER, stage, reply)
        return reply
