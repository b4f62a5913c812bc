"""What `lint-imports` cannot say: no cycle of files, nothing but numpy and cryptography, no torch.

The contracts themselves stand in pyproject.toml and are checked by `make check`.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fedtree_secure", "fedtree_secagg", "fedtree_dp", "fedtree_audits")


@pytest.fixture(scope="module")
def graph():
    """All imports of all modules, those for type checkers included."""
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def components(imports):
    """Strongly connected components of more than one module (Tarjan 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in imports(module):
            if other not in index:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == index[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    return visit, index, found


def cycles(modules, imports):
    visit, seen, found = components(imports)
    for module in modules:
        if module not in seen:
            visit(module)
    return found


def test_a_cycle_is_found():
    edges = {"a": ["b"], "b": ["c"], "c": ["b", "d"], "d": []}
    assert cycles(edges, edges.__getitem__) == [["b", "c"]]


def test_no_files_import_each_other_in_a_circle(graph):
    own = sorted(module for module in graph.modules if module.startswith("fedtree_"))
    assert len(own) > 100
    assert cycles(own, lambda m: graph.find_modules_directly_imported_by(m) & set(own)) == []


def test_secure_aggregation_imports_numpy_cryptography_and_a_codec_alone(graph):
    within = {m for m in graph.modules if m.split(".")[0] == "fedtree_secagg"}
    imported = {i for m in within for i in graph.find_modules_directly_imported_by(m)} - within
    outside = {name.split(".")[0] for name in imported} - sys.stdlib_module_names
    assert outside == {"numpy", "cryptography", "msgspec"}


@pytest.mark.parametrize(
    "module",
    [
        "fedtree_dp.account.planner",
        "fedtree_dp.ledger.ledger",
        "fedtree_secure.model.facts_file",
        "fedtree_secure.server.coordinator",
    ],
)
def test_accounting_the_ledger_and_the_server_load_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_contract_of_the_audits_names_every_other_door(graph):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = (
        found
        for found in settings["tool"]["importlinter"]["contracts"]
        if found.get("id") == "audits"
    )
    inner = graph.find_children("fedtree_secure") - {"fedtree_secure.testing"}
    assert set(contract["forbidden_modules"]) == inner
