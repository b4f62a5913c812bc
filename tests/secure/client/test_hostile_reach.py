"""Attack `other-experts` (docs/threats.md), where clients upload changes and not gradients: a clip
far above what anybody can reach would let invented sums throw the experts anywhere.
"""

import numpy as np
from small_jobs import make_clients
from takeover import changed, hostile

from fedtree_secure import Topology, Training
from fedtree_secure.agreed.messages import OpenedSum, Protocol, Refused, unpack
from fedtree_secure.agreed.moves import mean_of, node_digest, start

VICTIM = "t0-c0"
AVERAGED = {
    "topology": Topology(source="one_group"),
    "training": Training(records=60, sample_rate=0.5, head_steps=0, max_length=16, local_steps=2),
}


def invented(party, begin, share):
    """Round 2 with a sum of round 1 in which every survivor moved by a share of the clip."""
    (node,) = party.nodes()
    grid = party.quantiser(begin.clip, merge=False)
    total = np.full(node.width, int(3 * share * grid.max_integer), dtype="<i4")
    told = OpenedSum(1, node.name, 3, begin.clip, total.tobytes())
    held = start(node, party.facts.initial)
    held.add(mean_of(told, node, grid, 3))
    external = unpack(begin.experts.external, party.facts.layout.length)
    entry = node_digest(node, held, external)
    experts = changed(begin.experts, opened=(told,), digests=(entry,))
    return changed(begin, round=2, experts=experts)


def test_hostile_other_experts_an_invented_sum_moves_nothing_out_of_reach(tiny_bert, tmp_path):
    def script(server, requests):
        begin, party = requests[VICTIM], server.party(VICTIM)
        wide = changed(begin, clip=1000 * party.own_clip(merge=False))
        assert isinstance(server.send(VICTIM, wide), Protocol)
        assert server.send(VICTIM, invented(party, wide, share=1.0)) == Refused("experts")
        assert server.send(VICTIM, invented(party, wide, share=0.01)) == Refused("experts")
        assert isinstance(server.send(VICTIM, invented(party, wide, share=0.0009)), Protocol)

    hostile(
        tiny_bert, tmp_path / "run", "round-1/advertise", script, clients=make_clients(), **AVERAGED
    )
