"""What the node uses of flwr beside its public API, name by name: flwr is pinned for these."""

import inspect
import re
from pathlib import Path

import flwr
import pytest
from flwr.proto import fleet_pb2, message_pb2
from flwr.supercore.inflatable import (
    inflatable_object,
    inflatable_protobuf_utils,
    inflatable_utils,
)
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

PINNED = "1.42.0"
ARGUMENTS = {
    inflatable_utils.pull_objects: ["object_ids", "pull_object_fn"],
    inflatable_utils.push_object_contents_from_iterable: ["object_contents", "push_object_fn"],
    inflatable_utils.inflate_object_from_contents: ["object_id", "object_contents"],
    inflatable_protobuf_utils.make_pull_object_fn_protobuf: [
        "pull_object_protobuf",
        "node",
        "run_id",
    ],
    inflatable_protobuf_utils.make_push_object_fn_protobuf: [
        "push_object_protobuf",
        "node",
        "run_id",
        "session_id",
    ],
    inflatable_protobuf_utils.make_confirm_message_received_fn_protobuf: [
        "confirm_message_received_protobuf",
        "node",
        "run_id",
    ],
    inflatable_object.get_all_nested_objects: ["obj"],
    inflatable_object.get_object_tree: ["obj"],
    NodeAuthHttpInterceptor: ["private_key", "public_key"],
    FleetHttpClient.from_server_address: [
        "server_address",
        "insecure",
        "root_certificates",
        "interceptors",
    ],
}
FIELDS = {
    fleet_pb2.PullMessagesRequest: {"node"},
    fleet_pb2.PullMessagesResponse: {"messages_list", "message_object_trees"},
    fleet_pb2.PushMessagesRequest: {
        "node",
        "messages_list",
        "message_object_trees",
        "clientapp_runtime_list",
    },
    fleet_pb2.PushMessagesResponse: {"objects_to_push", "session_id"},
    fleet_pb2.ActivateNodeRequest: {"public_key", "heartbeat_interval"},
    fleet_pb2.DeactivateNodeRequest: {"node_id"},
    message_pb2.PullObjectResponse: {"object_found", "object_available", "object_content"},
}


def test_flower_is_the_version_that_the_node_was_written_for():
    assert flwr.__version__ == PINNED


@pytest.mark.parametrize("function", ARGUMENTS, ids=lambda f: f.__qualname__)
def test_an_inner_function_takes_what_the_node_gives(function):
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    assert names[: len(ARGUMENTS[function])] == ARGUMENTS[function]


@pytest.mark.parametrize("message", FIELDS, ids=lambda m: m.DESCRIPTOR.name)
def test_a_message_has_the_fields_that_the_node_uses(message):
    assert {field.name for field in message.DESCRIPTOR.fields} >= FIELDS[message]


def test_a_proxy_lets_a_node_s_requests_through_and_nothing_else():
    conf = (Path(__file__).parents[2] / "examples" / "services" / "fleet-proxy.conf").read_text()
    allowed = re.compile(re.search(r"\$request_uri !~ (\S+)\)", conf)[1])
    package = Path(flwr.__file__).parent

    def paths(name):
        return set(re.findall(r'path="(/[^"]+)"', (package / name).read_text()))

    asked = paths("supernode/fleet_http_client.py")
    assert len(asked) >= 10
    assert all(allowed.search(path) for path in asked)
    others = paths("supercore/runtime/runtime_http_client.py")
    assert len(others) >= 5
    assert not any(allowed.search(path) for path in others)
