"""Sphinx's settings: `make docs` builds the site, and a warning is an error."""

import os
import re
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from notebook_pages import page_of

ROOT = Path(__file__).parents[1]
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

project = "fedtree-secure"
author = "the fedtree-secure authors"
release = version = _PROJECT["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fedtree-secure {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False

default_role = "code"  # docstrings mark code by single quotes
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header",  # an included document begins at a heading of its own
    "ref.python",  # three packages have a ConfigurationError each
]

# Documents that lie beside the code are pages of the site as well.
PAGES = {
    "SECURITY.md": "site/security",
    "CONTRIBUTING.md": "site/contributing",
    "CHANGELOG.md": "site/changelog",
    "secagg/SPEC.md": "site/secagg-spec",
    "secagg/README.md": "site/secagg",
    "dp/SPEC.md": "site/dp-spec",
    "dp/README.md": "site/dp",
    "audits/README.md": "site/audits",
    "README.md": "index",
}
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)]*)?\)")


def _home(page: str) -> Path:
    """Folder that a page's links are relative to: of the document that it shows."""
    shown = next((name for name, made in PAGES.items() if made == page and page != "index"), None)
    return (ROOT / shown).parent if shown else (ROOT / "docs" / page).parent


def _link(page: str, text: str, target: str, place: str) -> str:
    """One link of a document as the site needs it: to its page, or to the file itself."""
    found = Path(os.path.normpath(_home(page) / target))
    inside = found.relative_to(ROOT).as_posix() if found.is_relative_to(ROOT) else ""
    here = (ROOT / "docs" / page).parent
    if inside in PAGES:
        return f"[{text}]({os.path.relpath(ROOT / 'docs' / PAGES[inside], here)}.md{place})"
    if found.is_dir():  # nothing to offer: the text alone
        return text
    where = os.path.relpath(found, here)
    return f"[{text}]({where}{place})" if inside.startswith("docs/") else f"[{text}](path:{where})"


def _rewrite(_app: object, page: str, source: list[str]) -> None:
    """Links lead to pages where a document has one, and else offer the file itself."""
    text = source[0]
    include = re.fullmatch(r"```\{include\} (\S+)\n```\n", text)
    if include:
        text = ((ROOT / "docs" / page).parent / include[1]).read_text("utf-8")
    if notebook := re.fullmatch(r"```\{notebook\} (\S+)\n```\n", text):
        text = page_of((ROOT / "docs" / page).parent / notebook[1])
    source[0] = _LINK.sub(lambda m: _link(page, m[1], m[2], m[3] or ""), text)


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _rewrite)
