"""What operators copy from `examples/services`: it parses, and says what the code understands."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from fedtree_secure.cli.app import app

ROOT = Path(__file__).parents[2]
SERVICES = ROOT / "examples" / "services"
INSTRUCTIONS = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "ENTRYPOINT", "CMD"}


def parsed(words):
    """Which of our commands a command line calls; raises where it does not understand it."""
    assert words[0].endswith("fedtree-secure")
    command, _, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    return command.__name__


# --- containers ---------------------------------------------------------------------------------


def instructions(name):
    text = (SERVICES / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


@pytest.mark.parametrize(("name", "command"), [("site", "node"), ("server", "serve")])
def test_a_container_file_runs_our_command_as_nobody_special(name, command):
    found = instructions(f"Containerfile.{name}")
    assert {word for word, _ in found} <= INSTRUCTIONS
    assert found[0][0] == "FROM"
    (user,) = (text for word, text in found if word == "USER")
    assert int(user) > 0
    given = {word: json.loads(text) for word, text in found if word in ("ENTRYPOINT", "CMD")}
    assert parsed([*given["ENTRYPOINT"], *given["CMD"]]) == command
    for _, text in (line for line in found if line[0] == "COPY"):
        *sources, _ = text.split()
        assert all((ROOT / source).exists() for source in sources), text


def test_a_container_holds_nothing_of_a_site():
    copied = {
        source
        for word, text in instructions("Containerfile.site")
        if word == "COPY"
        for source in text.split()[:-1]
    }
    assert copied == {
        *("pyproject.toml", "README.md", "LICENSE", "constraints-flower.txt"),
        *("fedtree_secure", "secagg", "dp", "audits"),
    }


# --- systemd ------------------------------------------------------------------------------------


def unit(name):
    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.optionxform = str
    found.read(SERVICES / name)
    return found


def test_a_node_is_a_service_that_is_not_tried_for_ever():
    service = unit("fedtree-node.service")["Service"]
    assert parsed(shlex.split(service["ExecStart"])) == "node"
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"] == "2"  # refused: a person must look
    assert service["User"] != "root"


def test_a_superlink_listens_on_this_machine_alone():
    words = shlex.split(unit("fedtree-superlink.service")["Service"]["ExecStart"])
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert "--enable-supernode-auth" in words
    assert "--insecure" not in words


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", ["fedtree-node", "fedtree-superlink"])
def test_systemd_understands_a_unit(tmp_path, name):
    text = (SERVICES / f"{name}.service").read_text()
    copy = tmp_path / f"{name}.service"
    copy.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text))
    done = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if name in line]
    assert not said, said


# --- the proxy ----------------------------------------------------------------------------------


def blocks_of(text):
    """An nginx file as nested lists: statements are lists of words, blocks end in a list."""
    tokens = re.findall(r'"[^"]*"|[{};]|[^\s{};]+', re.sub(r"(?m)#.*$", "", text))

    def block(at):
        found, words = [], []
        while at < len(tokens):
            token, at = tokens[at], at + 1
            if token == ";":
                found.append(words)
                words = []
            elif token == "{":
                inner, at = block(at)
                found.append([*words, inner])
                words = []
            elif token == "}":
                assert not words, f"{words} lacks its semicolon"
                return found, at
            else:
                words.append(token)
        assert not words, f"{words} lacks its semicolon"
        return found, at

    found, end = block(0)
    assert end == len(tokens)
    return found


def test_a_proxy_exposes_the_fleet_path_alone():
    (server,) = blocks_of((SERVICES / "fleet-proxy.conf").read_text())
    assert server[0] == "server"
    locations = {words[1]: words[2] for words in server[1] if words[0] == "location"}
    assert locations.keys() == {"/", "/v1/fleet/"}
    assert locations["/"] == [["return", "404"]]
    (rule,) = (words for words in locations["/v1/fleet/"] if words[0] == "if")
    assert rule[1:3] == ["($request_uri", "!~"]
    assert rule[-1] == [["return", "404"]]
    allowed = re.compile(rule[3].removesuffix(")"))
    assert allowed.search("/v1/fleet/pull-messages")
    for other in (
        "/v1/control/start-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control",
        "/v1/fleet//v1/control/",
        "/v1/fleet/pull-messages?x=/v1/control",
        "/v1/control/../fleet/pull-messages",
    ):
        assert not allowed.search(other), other
    assert ["proxy_ssl_verify", "on"] in locations["/v1/fleet/"]
    (target,) = (words[1] for words in locations["/v1/fleet/"] if words[0] == "proxy_pass")
    port = unit("fedtree-superlink.service")["Service"]["ExecStart"].partition("--port ")[2]
    assert target == f"https://127.0.0.1:{port.split()[0]}"
