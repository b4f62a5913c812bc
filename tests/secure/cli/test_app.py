"""The command line as a whole: exit codes, errors in one sentence, a fast start."""

import subprocess
import sys

import pytest
from command_line import call

from fedtree_secure.cli import app
from fedtree_secure.errors import ConfigurationError, RunStopped


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (RunStopped("after round 2"), 1, "stopped: after round 2"),
        (ConfigurationError("rounds is -1"), 2, "refused: rounds is -1"),
        (KeyboardInterrupt(), 130, "continue with --resume"),
    ],
)
def test_each_way_to_end_has_its_exit_code(capsys, error, code, told):
    def command():
        raise error

    assert app._guarded(command) == code
    assert told in capsys.readouterr().err


def test_a_command_that_returns_nothing_is_done():
    assert app._guarded(lambda: None) == 0


def test_an_error_is_shown_as_it_is_written(tmp_path, capsys):
    job = tmp_path / "[bold]job.toml"
    job.write_text('backbone = "x"\n[privacy]\nepsilon = 8\ndelta = 1e-5\n')
    assert call("run", job, "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err.replace("\n", "")
    assert "[bold]job.toml" in told
    assert "[[clients]]" in told.replace(" ", "")


def test_importing_the_command_line_loads_no_torch():
    slow = "'torch' in sys.modules or 'transformers' in sys.modules"
    code = f"import sys, fedtree_secure.cli.app; sys.exit({slow})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_names_every_command(capsys):
    assert call("--help") == 0
    shown = capsys.readouterr().out
    commands = "demo init check run predict compare budget audit report verify gate ledger"
    assert all(name in shown for name in commands.split())


def test_every_public_name_can_be_imported():
    import fedtree_secure

    assert sorted(fedtree_secure.__all__) == sorted(set(fedtree_secure.__all__))
    assert all(getattr(fedtree_secure, name) is not None for name in fedtree_secure.__all__)
    with pytest.raises(AttributeError):
        _ = fedtree_secure.nothing
