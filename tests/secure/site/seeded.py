"""Patches that make two runs of one job comparable, wherever their clients are."""

import hashlib
from unittest import mock

from fedtree_secure.client import store
from fedtree_secure.client.party import Party


def seeded(seed: str):
    """Patches that make a client's randomness a function of seed, name and place in the run."""
    counts: dict[str, int] = {}
    charge = store.Writing.charge

    def derived(*parts: object) -> bytes:
        return hashlib.sha256("|".join(map(str, (seed, *parts))).encode()).digest()

    def fresh(self) -> bytes:
        counts[self.id] = counts.get(self.id, 0) + 1
        return derived(self.id, counts[self.id])

    def charged(self, purpose, event, *, repeatable):
        given = derived(self._store.ledger.dataset, purpose)
        with mock.patch.object(store.secrets, "token_bytes", return_value=given):
            return charge(self, purpose, event, repeatable=repeatable)

    return (
        mock.patch.object(Party, "fresh", fresh),
        mock.patch.object(store.Writing, "charge", charged),
    )
