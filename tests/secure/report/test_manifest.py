"""The manifest lists what was delivered: a file that somebody adds has no place to hide."""

from fedtree_secure.report.manifest import listed


def test_hostile_names_and_files_a_dot_file_is_listed(tmp_path):
    for name in ("summary.json", ".hidden", "adapters/a/.loader.py", ".lock"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert list(listed(tmp_path)) == [".hidden", "adapters/a/.loader.py", "summary.json"]


def test_keys_stores_and_what_is_written_later_are_not_listed(tmp_path):
    later = ("audits/ledger.md", "references/head/summary.json", "server/state.json")
    private = ("clients/a/identity.key", "ledgers/a.sqlite", "manifest.json")
    for name in (*later, *private, "clients/a/noise.json", "ledgers/a.checkpoints"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert list(listed(tmp_path)) == ["clients/a/noise.json", "ledgers/a.checkpoints"]
