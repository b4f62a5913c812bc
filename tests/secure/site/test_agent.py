"""An agent answers over its socket what a site answers over a network, and nothing else."""

import contextlib
import socket
import threading

import msgspec
import pytest

from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed import who
from fedtree_secure.agreed.envelope import seal
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.site.agent import Agent
from fedtree_secure.site.site import Site
from fedtree_secure.site.socket_link import Asked, ask

NAME = "t0-c0"


@pytest.fixture
def served(clinics, tmp_path):
    """The socket of an agent that runs in a thread."""
    path, stop = tmp_path / "a.sock", threading.Event()
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(Site.open(clinics.site(NAME)))
        thread = threading.Thread(target=Agent(site, path).run, args=(stop,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        while not path.is_socket():
            assert thread.is_alive()
        yield path


def test_a_request_and_the_question_who_are_answered(clinics, backbone, served):
    nonce = bytes(who.NONCE)
    question = who.ask(clinics.server, "run-1", "17", nonce)
    answer = ask(served, Asked("", "17", question), 60)
    assert who.known(answer, clinics.roster.roster, "run-1", "17", nonce) == NAME
    assert ask(served, Asked("", "18", question), 60) is None
    join = wire.encode(wire.Join(clinics.terms("run-1").digest, backbone.digest))
    request = seal(clinics.server, "run-1", NAME, 1, 0, join)
    assert isinstance(
        wire.decode_reply(ask(served, Asked("run-1", "17", request), 60)), wire.Joined
    )
    assert ask(served, Asked("run-1", "17", request), 60) is None, "answered twice"


def test_garbage_is_closed_without_a_word_and_the_next_is_answered(clinics, served):
    garbage = [b"", b"\x00\x00\x00\x04\xc1abc", b"\xff\xff\xff\xff", b"\x00\x00\x00\x09ab"]
    for data in garbage:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(served))
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)
            assert link.recv(1) == b""
    question = who.ask(clinics.server, "run-1", "17", bytes(who.NONCE))
    assert ask(served, Asked("", "17", question), 60) is not None
    assert served.stat().st_mode & 0o777 == 0o660


def test_what_is_no_place_for_a_socket_is_refused(clinics, tmp_path):
    (tmp_path / "file").write_text("x")
    with Site.open(clinics.site(NAME)) as site:
        with pytest.raises(ConfigurationError, match="is no socket"):
            Agent(site, tmp_path / "file")
        with pytest.raises(ConfigurationError, match="too long"):
            Agent(site, tmp_path / ("x" * 120))
    assert (tmp_path / "file").read_text() == "x"


def test_nobody_listens(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        ask(tmp_path / "none.sock", Asked("", "1", b""), 1)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Asked("", "1", b"")), type=Asked).run == ""
