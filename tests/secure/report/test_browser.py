"""The report as a browser lays it out: nothing hangs over, nothing is logged, and it prints."""

import html
import json
import re
import shutil
import subprocess

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (400, 800, 1400)
# The report runs no script and forbids it. The page around it measures each frame from outside.
MEASURING = """<!doctype html><meta charset="utf-8"><body>{frames}<pre id="found"></pre><script>
onload = () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, wide = page.documentElement.clientWidth;
    const clipped = node => node && node !== page.body &&
      (getComputedStyle(node).overflowX !== "visible" || clipped(node.parentElement));
    const over = [...page.body.querySelectorAll("*")].filter(node =>
      node.getBoundingClientRect().right > wide + 1 && !clipped(node.parentElement));
    return {{width: wide, scrolls: page.documentElement.scrollWidth, height: page.body.scrollHeight,
            over: over.map(node => node.outerHTML.slice(0, 80))}};
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


def browse(page, *arguments, cwd):
    """Return what Chromium prints for a page, and what it logs."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    ]
    profile = f"--user-data-dir={cwd / 'profile'}"
    call = [*command, profile, *arguments, page.as_uri()]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, check=True, cwd=cwd)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory):
    """A report with a long name: what hangs over is a name, first of all."""
    text = (finished / "report.html").read_text("utf-8")
    assert "t0-c0" in text
    page = tmp_path_factory.mktemp("browser") / "report.html"
    page.write_text(text.replace("t0-c0", "the-hospital-of-a-town-with-a-long-name"), "utf-8")
    return page


def measured(report, folder):
    """Return for each width what the browser found, and what it logged."""
    text = html.escape(report.read_text("utf-8"), quote=True)
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{text}"></iframe>'
        for width in WIDTHS
    )
    page = folder / "measuring.html"
    page.write_text(MEASURING.format(frames=frames), "utf-8")
    printed, logged = browse(page, "--window-size=1500,1000", "--dump-dom", cwd=folder)
    found = re.search(r'<pre id="found">(.*?)</pre>', printed, re.DOTALL)
    return json.loads(html.unescape(found[1])), logged


def test_nothing_hangs_over_at_any_width_and_nothing_is_logged(report, tmp_path):
    found, logged = measured(report, tmp_path)
    assert [frame["width"] for frame in found] == list(WIDTHS)
    for frame in found:
        assert frame["height"] > 1000
        assert (frame["scrolls"], frame["over"]) == (frame["width"], [])
    assert logged == []


def test_what_hangs_over_would_be_seen(report, tmp_path):
    wide = tmp_path / "wide.html"
    bar = '<div id="bar" style="width:900px">wide</div>'
    wide.write_text(report.read_text("utf-8").replace("</body>", f"{bar}</body>"), "utf-8")
    assert bar in wide.read_text("utf-8")
    found, _ = measured(wide, tmp_path)
    assert [bool(frame["over"]) for frame in found] == [True, True, False]
    assert found[0]["scrolls"] > found[0]["width"]


def test_it_prints(report, tmp_path):
    pages = tmp_path / "report.pdf"
    _, logged = browse(report, f"--print-to-pdf={pages}", "--no-pdf-header-footer", cwd=tmp_path)
    assert pages.read_bytes().startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pages.read_bytes())) >= 2
    assert logged == []
