"""Loads a command or an example, which no package holds, as a module that tests can call."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


def loaded(path: Path, name: str = "") -> ModuleType:
    """Return a new module that ran a file, under its stem's name or another."""
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def loaded_with_neighbours(path: Path, name: str = "") -> Iterator[ModuleType]:
    """The same, with the file's neighbours on the path while the module is in use."""
    sys.path.insert(0, str(path.parent))
    try:
        yield loaded(path, name)
    finally:
        sys.path.remove(str(path.parent))
