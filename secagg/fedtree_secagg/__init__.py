"""Tree secure aggregation: one masked upload per client, the sum of every node and nothing else.

`client` and `server` hold the pure steps of a round, `sketch` the private pairwise distances; see SPEC.md for the
protocol and README.md for an example.
"""

from fedtree_secagg import beacon, client, server, sketch
from fedtree_secagg.errors import ConfigurationError, ProtocolError, SecAggError, ThresholdError
from fedtree_secagg.graph import Beacon, Sparse
from fedtree_secagg.identity import Identity, Roster
from fedtree_secagg.plan import Node, Plan
from fedtree_secagg.quantise import Quantiser
from fedtree_secagg.ring import Ring
from fedtree_secagg.server import NodeSum
from fedtree_secagg.session import Session

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
