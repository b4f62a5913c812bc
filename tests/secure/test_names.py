"""Names that become paths: one alphabet for all of them, refused before anything is started."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_jobs import federation, make_clients

from fedtree_secure import Client, ConfigurationError
from fedtree_secure.job_file import ClientFiles, load_job
from fedtree_secure.names import check_name

GOOD = ["a", "t0-c0", "ward_7", "clinic.north", "0", "x" * 64, "console", "com", "A-1.B_2"]
BAD = {
    "empty": "",
    "parent": "../../x",
    "dots inside": "a..b",
    "separator": "a/b",
    "other separator": "a\\b",
    "absolute": "/etc/x",
    "drive": "c:x",
    "dot file": ".hidden",
    "here": ".",
    "ends in a dot": "a.",
    "begins with a dash": "-rf",
    "begins with a line": "_x",
    "space": "a b",
    "line feed at the end": "a\n",
    "nul byte": "a\0",
    "look-alike a": "clinic-\N{CYRILLIC SMALL LETTER A}",
    "look-alike slash": "a\N{FRACTION SLASH}b",
    "full width": "\N{FULLWIDTH LATIN SMALL LETTER A}b",
    "other digit": "\N{ARABIC-INDIC DIGIT ONE}",
    "accent": "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
    "combining": "e\N{COMBINING ACUTE ACCENT}",
    "device": "con",
    "device in capitals": "NUL",
    "device with a suffix": "aux.sqlite",
    "numbered device": "com1",
    "printer": "Lpt9.x",
    "too long": "x" * 65,
}


@pytest.mark.parametrize("name", GOOD)
def test_a_plain_name_is_returned(name):
    assert check_name("client id", name) == name


@pytest.mark.parametrize("name", BAD.values(), ids=BAD.keys())
def test_hostile_names_are_refused_with_what_is_allowed(name):
    with pytest.raises(ConfigurationError, match=r"client id is .*allowed: 1 to 64 ASCII letters"):
        Client(name, train=None)
    if name:  # an empty data set is the client's id
        with pytest.raises(ConfigurationError, match=r"dataset of client a is .*allowed"):
            Client("a", train=None, dataset=name)
        with pytest.raises(ConfigurationError, match=r"dataset of client a is .*allowed"):
            ClientFiles(id="a", train="a.csv", dataset=name)
    with pytest.raises(ConfigurationError, match="client id is"):
        ClientFiles(id=name, train="a.csv")


@given(st.text(max_size=70))
def test_what_is_accepted_is_one_plain_part_of_a_path(name):
    try:
        check_name("x", name)
    except ConfigurationError:
        return
    assert name.isascii()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert name[0].isalnum()
    assert ".." not in name


def test_hostile_dataset_in_a_job_file_starts_nothing(tmp_path):
    """`../../x` once ran to the end, spent the budget, and then failed to copy the ledger."""
    path = tmp_path / "job.toml"
    path.write_text(
        'backbone = "m"\nprivacy = {epsilon = 1, delta = 1e-5}\n'
        '[[clients]]\nid = "a"\ntrain = "a.csv"\ndataset = "../../x"\n'
    )
    with pytest.raises(ConfigurationError, match=r"dataset of client a is '\.\./\.\./x'"):
        load_job(path)


def test_hostile_dataset_given_to_a_run_leaves_no_file(tmp_path):
    with pytest.raises(ConfigurationError, match="dataset of client"):
        federation("unused").run(
            [Client(c.id, train=c.train, dataset="../../x") for c in make_clients()],
            tmp_path / "run",
        )
    assert not list(tmp_path.iterdir())
