"""Attack `unsigned-requests` (docs/threats.md): what a signature covers, and what opens at all."""

import msgspec
import pytest

from fedtree_secagg import Identity
from fedtree_secure.agreed.envelope import LARGEST_COUNTER, joined, open_request, seal, split
from fedtree_secure.agreed.messages import Join, Prepare, WireError, encode

SERVER = Identity.generate(bytes(range(32)))
RUN, ME = "run", "alice"
FIELDS = ("run", "to", "counter", "answered", "body")


def sealed(counter=7, answered=5):
    return seal(SERVER, RUN, ME, counter, answered, encode(Prepare()))


def opened(data, run=RUN, me=ME):
    return open_request(data, SERVER.public_bytes, run, me)


def test_a_signed_request_opens():
    found = opened(sealed())
    assert (found.counter, found.answered, found.message) == (7, 5, Prepare())


@pytest.mark.parametrize(
    ("field", "value"),
    list(zip(FIELDS, ("other", "bob", 8, 6, encode(Join(bytes(32), bytes(32)))), strict=True)),
)
def test_hostile_unsigned_requests_one_field_of_a_signed_one_changed(field, value):
    """Whoever carries requests may not number, address or fill them anew."""
    fields = msgspec.msgpack.decode(sealed())
    fields[FIELDS.index(field)] = value
    run, me = ("other" if field == "run" else RUN), ("bob" if field == "to" else ME)
    with pytest.raises(WireError, match="did not sign"):
        opened(msgspec.msgpack.encode(fields), run, me)


@pytest.mark.parametrize(
    ("counter", "answered"), [(0, 0), (5, 5), (5, 6), (1, -1), (LARGEST_COUNTER + 1, 0)]
)
def test_hostile_unsigned_requests_impossible_counters_do_not_open(counter, answered):
    with pytest.raises(WireError, match="impossible counter"):
        opened(sealed(counter, answered))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x97\xa4\xff\xfe\xfd\xfc",
        b"\x91" * 100_000 + b"\xc0",
        msgspec.msgpack.encode([RUN, ME, 2**64 - 1, 0, b"", None, b""]),
    ],
)
def test_hostile_unsigned_requests_garbage_raises_one_class(data):
    with pytest.raises(WireError):
        opened(data)


def test_a_request_is_taken_apart_and_put_together_byte_for_byte():
    whole = sealed()
    head, body = split(whole)
    assert body == encode(Prepare())
    assert joined(head, body) == whole
    with pytest.raises(WireError, match="did not sign"):
        opened(joined(head, encode(Join(bytes(32), bytes(32)))))
    lacks_two = msgspec.msgpack.encode([RUN, ME, 1, 0, b"", b"", b"signature"])
    for wrong in (whole, lacks_two, b"", b"\xc1"):
        with pytest.raises(WireError):
            joined(wrong, body)
