"""A server that turns hostile: at a chosen stage it stops being honest and asks what it likes.

The run is a real one up to that stage (real participants, stores, masking); then a script drives
the participants with requests that the server's own key signs, and the run ends.
"""

import msgspec
from small_jobs import LyingServer, federation, make_clients

from fedtree_dp import Ledger
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.messages import decode_reply
from fedtree_secure.agreed.stages import attempt_of


class Enough(BaseException):
    """The script is over, whatever came of it; no handler of the product may swallow it."""


class Hostile(LyingServer):
    """Runs ``script(server, requests)`` in place of the honest exchange of a stage."""

    def __init__(self, inner, out, stage, script):
        super().__init__(inner, out)
        self.stage, self.script, self.asked = stage, script, 0

    def exchange(self, stage, requests):
        if stage != self.stage:
            return super().exchange(stage, requests)
        honest = {name: self.read(name, request) for name, request in requests.items()}
        self.asked = max(found.counter for found in honest.values())
        self.script(self, {name: found.message for name, found in honest.items()})
        raise Enough

    def party(self, name):
        return self.inner._inner._participants[name].__self__.party

    def send(self, name, message):
        """Ask with the next counter; return the decoded reply, None if there is none."""
        self.asked += 1
        data = self.ask(name, message, counter=self.asked)
        return None if data is None else decode_reply(data)

    def ledger(self, name):
        return self.party(name).store.ledger

    def charges(self, name):
        return [entry.purpose for entry in self.ledger(name).entries() if entry.purpose]


def hostile(
    model, out, stage, script, *, clients=None, around=lambda transport: transport, **changes
):
    """Run a job until its server turns hostile; return what the script returned.

    ``around`` wraps the transport between the server and the participants.
    """
    found, failed = [], []

    def kept(server, requests):
        try:
            found.append(script(server, requests))
        except BaseException as error:
            failed.append(error)

    try:
        federation(model, **changes).run(
            clients or make_clients(),
            out,
            wrap_transport=lambda inner: Hostile(around(inner), out, stage, kept),
        )
    except Enough:
        for error in failed:
            raise error from None
        return found[0]
    raise AssertionError(f"the run never came to {stage}")


def by_itself(server, name, number, experts):
    """The request that begins a round for a client without anything dealt ahead."""
    clip = server.party(name).store.record.clips["round"]
    return wire.Begin(number, attempt_of(1, ahead=False), False, clip, experts)


def changed(message, **fields):
    return msgspec.structs.replace(message, **fields)


def spent(path):
    with Ledger.inspect(path) as ledger:
        return [entry.purpose for entry in ledger.entries() if entry.purpose]
