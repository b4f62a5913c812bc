"""A stock SuperNode in the mix: its ClientApp brings bytes to the site's agent and back."""

from network import Network
from organisations import ONE

from fedtree_dp import Ledger
from fedtree_secure.storage import read_json

STOCK = "t0-c0"


def test_a_stock_node_with_an_agent_and_two_own_nodes_finish(six):
    places = six(tasks=1, **{**ONE, "rounds": 1})
    with Network(places, deadline=400.0, gather=200.0) as network:
        network.start_stock(STOCK)
        network.start(*[name for name in places.names if name != STOCK])
        network.serve()
        assert network.ended(seconds=500.0) == 0, network.said()
        (exchange,) = network.exchanged("round-1/mask")
        assert exchange["answered"] == places.names
        report = read_json(places.folder / "report.json")
        assert report["fetched"] == places.names
        place = places.site(STOCK) / "runs" / report["run"]
        network.until((place / "manifest.json").exists, "the agent delivers")
    with Ledger.inspect(places.site(STOCK) / "state" / STOCK / "store.sqlite") as ledger:
        assert [e.purpose for e in ledger.entries() if e.event is not None] == ["round 1"]
