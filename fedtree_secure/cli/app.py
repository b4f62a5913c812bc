"""Command line: `fedtree-secure demo | init | check | run | predict | compare | budget | audit |
report | verify | gate | ledger`, and for deployments `keys | site | node | agent |
serve | model-facts`.

Exit codes: 0 done, 1 stopped or failed, 2 refused input (nothing was started or charged), 130
interrupted; of `audit` 0 PASS, 1 FAIL, 2 INCONCLUSIVE; of `verify` and `gate` see
`fedtree_secure.report.exit_codes`.

Each command has a module of its own. None of them imports torch before it is called, so that help
and refusals come at once.
"""

import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import cyclopts
from rich.markup import escape

from fedtree_secure.cli.audit import audit
from fedtree_secure.cli.budget import budget_app
from fedtree_secure.cli.demo import demo
from fedtree_secure.cli.deployment import agent, model_facts, node, serve
from fedtree_secure.cli.evidence import gate, report, verify
from fedtree_secure.cli.keys import keys_app
from fedtree_secure.cli.ledger import ledger_app
from fedtree_secure.cli.run import run
from fedtree_secure.cli.screen import errors
from fedtree_secure.cli.site import site_app
from fedtree_secure.cli.start import check, init
from fedtree_secure.cli.use import compare, predict

app = cyclopts.App(
    name="fedtree-secure",
    help="Fine-tune language models together without showing anyone the data.",
    version=lambda: importlib.metadata.version("fedtree-secure"),
)
app.command(demo)
app.command(init)
app.command(check)
app.command(run)
app.command(predict)
app.command(compare)
app.command(budget_app)
app.command(audit)
app.command(report)
app.command(verify)
app.command(gate)
app.command(ledger_app)
app.command(keys_app)
app.command(site_app)
app.command(node)
app.command(agent)
app.command(serve)
app.command(model_facts)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run a command, turn known errors into one clear sentence and an exit code."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    # peft 0.21 asks transformers 5.23 in its old way; nothing that a user of this command could
    # change.
    warnings.filterwarnings(
        "ignore", message=r".is_gradient_checkpointing. is deprecated", category=FutureWarning
    )
    sys.exit(_guarded(lambda: app(arguments, result_action="return_value")))


def _guarded(command: Callable[[], Any]) -> int:
    from fedtree_secure.errors import FedTreeError, RunStopped

    try:
        return int(command() or 0)
    except RunStopped as error:
        _say("[bold yellow]stopped:[/]", str(error))
        return 1
    except FedTreeError as error:
        _say("[bold red]refused:[/]", str(error))
        return 2
    except OSError as error:
        if error.errno is None:  # ours or a library's, not the system's
            raise
        _say("[bold red]refused:[/]", f"{error.filename or 'a file'}: {error.strerror}")
        return 2
    except KeyboardInterrupt:
        _say("[bold yellow]interrupted:[/]", "the stores are valid; continue with --resume")
        return 130


def _say(how: str, text: str) -> None:
    """One line, whatever the terminal's width: paths in it can be copied."""
    errors.print(f"{how} {escape(text)}", highlight=False, soft_wrap=True)
