"""The manifest lists what was delivered: a file that somebody adds has no place to hide."""

from fedtree_secure.report.manifest import listed, listed_later


def test_hostile_names_and_files_a_dot_file_is_listed(tmp_path):
    for name in ("summary.json", ".hidden", "adapters/a/.loader.py", ".lock"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert list(listed(tmp_path)) == [".hidden", "adapters/a/.loader.py", "summary.json"]


def test_keys_and_what_is_written_later_are_not_listed(tmp_path):
    later = ("audits/ledger.md", "references/head/summary.json", "server/state.json")
    private = ("clients/a/identity.key", "stores/a/store.sqlite", "heads/a.json.key")
    apart = (*later, *private, "report/report.html", "manifest.json")
    delivered = ("clients/a/noise.json", "ledgers/a.checkpoints", "ledgers/a.sqlite")
    for name in (*apart, *delivered):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert list(listed(tmp_path)) == list(delivered)
    assert list(listed_later(tmp_path)) == ["audits/ledger.md", "report/report.html"]
