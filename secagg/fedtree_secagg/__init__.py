"""Tree secure aggregation: one masked upload per client, the sum of every node and nothing else.

`client` and `server` hold the pure steps of a round, `sketch` the private pairwise distances; see
SPEC.md for the protocol and README.md for an example.
"""

from fedtree_secagg import beacon, client, server, sketch
from fedtree_secagg.agreed.graph import Beacon, Sparse
from fedtree_secagg.agreed.identity import Identity, Roster
from fedtree_secagg.agreed.node import Node
from fedtree_secagg.agreed.plan import Plan
from fedtree_secagg.errors import ConfigurationError, ProtocolError, SecAggError, ThresholdError
from fedtree_secagg.primitives.quantise import Quantiser
from fedtree_secagg.primitives.ring import Ring
from fedtree_secagg.rounds.session import Session
from fedtree_secagg.server import NodeSum

__all__ = [
    "Beacon",
    "ConfigurationError",
    "Identity",
    "Node",
    "NodeSum",
    "Plan",
    "ProtocolError",
    "Quantiser",
    "Ring",
    "Roster",
    "SecAggError",
    "Session",
    "Sparse",
    "ThresholdError",
    "beacon",
    "client",
    "server",
    "sketch",
]
