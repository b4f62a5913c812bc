"""The one door for audits and benchmarks into the inside of the product.

What stands here is what the audits attack and measure: the parties, the messages between them, and
what a client computes from rows. None of it is public API: it changes with the product, and so do
the audits.

`inside` are the modules themselves: self-tests of audits put broken parts into them.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from fedtree_secure.agreed import graph, messages, round_plan, shared_noise
from fedtree_secure.agreed.class_sums import head_of
from fedtree_secure.agreed.envelope import Opened, open_request, seal
from fedtree_secure.agreed.head_release import head_release, sums_classes
from fedtree_secure.agreed.moves import NodeValues, mean_of, node_digest, start
from fedtree_secure.agreed.noise_plan import NoisePlan, events_of, part_of, plan_noise
from fedtree_secure.agreed.round_plan import (
    compute_tree,
    grid_bits,
    largest_change,
    node_name,
    nodes_of,
    plan_of_round,
    quantiser_of,
    reach,
    sketch_context,
    vote_bytes,
)
from fedtree_secure.agreed.stages import MERGE, Exchange, Purpose, in_round, purpose_of
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.client import (
    ahead_requests,
    head,
    participant,
    party,
    received,
    round_checks,
    round_requests,
    training,
    tree_requests,
)
from fedtree_secure.client.adapter import save_adapter
from fedtree_secure.client.canaries import COMMITMENTS, Canaries
from fedtree_secure.client.class_sums import release_sums
from fedtree_secure.client.data import Client, prepare
from fedtree_secure.client.data_sets import HEADS, STATE
from fedtree_secure.client.fingerprint import fingerprint
from fedtree_secure.client.head import train_head
from fedtree_secure.client.kept import Kept, keep
from fedtree_secure.client.mechanism import Engine, Mechanism
from fedtree_secure.client.participant import Participant
from fedtree_secure.client.parts import LocalModel, trainables
from fedtree_secure.client.party import Member, Party, Workings
from fedtree_secure.client.received import take_over
from fedtree_secure.client.sessions import Received
from fedtree_secure.client.state import ClientState, initial_state, loaded_into
from fedtree_secure.client.store import Record, Store, Writing
from fedtree_secure.client.training import RoundTrainer
from fedtree_secure.config import Job, Lora, Masking, Topology, Training
from fedtree_secure.demo.data import diagnoses, minilm_folder, tweets
from fedtree_secure.embedded.in_process import InProcess
from fedtree_secure.embedded.progress import Silent
from fedtree_secure.embedded.shared import Shared
from fedtree_secure.embedded.transcript import SERVER, Transcript
from fedtree_secure.errors import FedTreeError, RunFolderError, RunStopped
from fedtree_secure.job_file import build
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.experts import CLUSTER, Experts, MixedLinear
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.model.heads import Centred
from fedtree_secure.model.rows import ClientData, Table
from fedtree_secure.report.manifest import (
    NAME,
    SERVER_PARTY,
    describe,
    difference,
    few,
    listed,
    read_manifest,
    signature_fits,
    signed_bytes,
    write_manifest,
)
from fedtree_secure.server import experts
from fedtree_secure.server.channel import Channel
from fedtree_secure.server.coordinator import Coordinator
from fedtree_secure.server.experts import NodeBook
from fedtree_secure.server.masked_round import MaskedRound
from fedtree_secure.server.protocol import run_sketch
from fedtree_secure.storage import SecretBox

inside = SimpleNamespace(
    ahead_requests=ahead_requests,
    experts=experts,
    graph=graph,
    head=head,
    participant=participant,
    party=party,
    received=received,
    round_checks=round_checks,
    round_plan=round_plan,
    round_requests=round_requests,
    shared_noise=shared_noise,
    training=training,
    tree_requests=tree_requests,
)

__all__ = [
    "CLUSTER",
    "COMMITMENTS",
    "MERGE",
    "NAME",
    "SERVER",
    "SERVER_PARTY",
    "Backbone",
    "Canaries",
    "Centred",
    "Channel",
    "Client",
    "ClientData",
    "ClientState",
    "Coordinator",
    "Engine",
    "Exchange",
    "Experts",
    "FedTreeError",
    "InProcess",
    "Job",
    "Kept",
    "LocalModel",
    "Lora",
    "MaskedRound",
    "Masking",
    "Mechanism",
    "Member",
    "MixedLinear",
    "ModelFacts",
    "NodeBook",
    "NodeValues",
    "NoisePlan",
    "Opened",
    "Participant",
    "Party",
    "Purpose",
    "Received",
    "Record",
    "RoundTrainer",
    "RunFolderError",
    "RunStopped",
    "SecretBox",
    "Shared",
    "Silent",
    "Store",
    "Table",
    "Terms",
    "Topology",
    "Training",
    "Transcript",
    "Tree",
    "Workings",
    "Writing",
    "build",
    "compute_tree",
    "data_sets_in",
    "describe",
    "diagnoses",
    "difference",
    "events_of",
    "few",
    "fingerprint",
    "grid_bits",
    "head_of",
    "head_release",
    "in_round",
    "initial_state",
    "inside",
    "keep",
    "largest_change",
    "listed",
    "loaded_into",
    "mean_of",
    "messages",
    "minilm_folder",
    "node_digest",
    "node_name",
    "nodes_of",
    "open_request",
    "part_of",
    "plan_noise",
    "plan_of_round",
    "prepare",
    "purpose_of",
    "quantiser_of",
    "reach",
    "read_manifest",
    "release_sums",
    "run_sketch",
    "save_adapter",
    "seal",
    "signature_fits",
    "signed_bytes",
    "sketch_context",
    "start",
    "sums_classes",
    "take_over",
    "train_head",
    "trainables",
    "tweets",
    "vote_bytes",
    "write_manifest",
]


@contextlib.contextmanager
def data_sets_in(folder: Path) -> Iterator[None]:
    """Let real runs keep the stores of their data sets, and the heads of these, in a folder.

    It may be deleted only where the rows are made up or public: what was spent is forgotten.
    """
    places = {STATE: str(folder / "state"), HEADS: str(folder / "heads")}
    with mock.patch.dict(os.environ, places):
        yield
