"""Who is there when: a transport that loses what an absent client is asked, and clients that leave.

Times are rounds; 0 is the set-up. What belongs to round n counts from its first exchange on.
"""


class Attendance:
    """Wrap an embedded transport.

    Args:
        inner: The embedded transport.
        away: For each client, the rounds in which it hears nothing.
        leaves: For each client, the round before which its operator ends its part.
    """

    def __init__(self, inner, away=None, leaves=None):
        self.inner, self.away, self.leaves = inner, away or {}, dict(leaves or {})
        self.now, self.seen = 0, []

    @property
    def _inner(self):
        return self.inner._inner

    def participant(self, name):
        return self.inner._inner._participants[name].__self__

    def exchange(self, stage, requests):
        if stage.startswith("round-"):
            self.now = int(stage.removeprefix("round-").partition("/")[0])
        for name in [n for n, number in self.leaves.items() if number <= self.now]:
            self.participant(name).leave()
            del self.leaves[name]
        here = {n: r for n, r in requests.items() if self.now not in self.away.get(n, ())}
        replies = self.inner.exchange(stage, here)
        self.seen.append((stage, dict(requests), dict(replies)))
        return replies
