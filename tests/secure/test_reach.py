"""What `site check` finds out about a server: certificate, clock, nobody there."""

import contextlib
import http.server
import ssl
import threading

import pytest
from authority import make_authority

from fedtree_secure.errors import ConfigurationError
from fedtree_secure.reach import clock_is_off, reach, split_address


class Silent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(folder=None):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        if folder is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / "server.pem", folder / "server.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_server_with_a_trusted_certificate_is_reached(tmp_path):
    make_authority(tmp_path)
    with serving(tmp_path) as address:
        found = reach(address, tmp_path / "ca.crt")
    assert found.expires is not None
    assert abs(found.clock) < 5


def test_another_authoritys_certificate_is_not_trusted(tmp_path):
    make_authority(tmp_path / "ours")
    make_authority(tmp_path / "theirs")
    with (
        serving(tmp_path / "theirs") as address,
        pytest.raises(ConfigurationError, match="is not to be trusted"),
    ):
        reach(address, tmp_path / "ours" / "ca.crt")


def test_without_tls_there_is_no_certificate(tmp_path):
    with serving() as address:
        found = reach(address, None, insecure=True)
    assert found.expires is None
    assert abs(found.clock) < 5


def test_nobody_there_is_said_in_a_sentence():
    with pytest.raises(ConfigurationError, match="cannot be reached"):
        reach("127.0.0.1:1", None, insecure=True)


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:0", "host:99999", "host:x"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        split_address(address)


def test_a_clock_may_be_late_but_not_early():
    assert not clock_is_off(0.0)
    assert not clock_is_off(-200.0)
    assert clock_is_off(6.0)
    assert clock_is_off(-3600.0)
