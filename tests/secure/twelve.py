"""Terms of twelve clients, for what both sides compute of a cohort."""

from small_jobs import make_job

from fedtree_secagg import Identity, Roster
from fedtree_secure import Cohort
from fedtree_secure.agreed.terms import Terms

NAMES = tuple(f"c{i:02}" for i in range(12))
KEYS = {name: Identity.generate(bytes([i + 1, *range(1, 32)])) for i, name in enumerate(NAMES)}


def make_terms(**changes):
    settings = {"cohort": Cohort(late=True), **changes}
    roster = Roster({name: key.public_bytes for name, key in KEYS.items()})
    return Terms(make_job("unused", **settings), roster, bytes(32), "run")
