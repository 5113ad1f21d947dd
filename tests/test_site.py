"""The documentation builds without a warning, every page is in it, and no page loads anything from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -r requirements-dev.txt")
ROOT = Path(__file__).parents[1]
LOADING = {"src", "srcset", "data", "poster"}  # attributes that a browser follows by itself
PAGES = sorted(path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("site")
    # with --quiet a warning would not be counted
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


class Loaded(HTMLParser):
    """Addresses that a browser loads for a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in LOADING or (tag == "link" and name == "href")]


def test_every_page_is_there_and_in_the_navigation(site):
    built = {path.relative_to(site) for path in site.rglob("*.html")} - {Path("404.html")}
    assert built == set(PAGES)
    start = (site / "index.html").read_text(encoding="utf-8")
    assert not [page for page in PAGES if f'href="{page}"' not in start]


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = Loaded()
        text.feed(page.read_text(encoding="utf-8"))
        assert text.found
        assert not [address for address in text.found if re.match(r"(https?:)?//", address or "")], page.name
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//[^)]*|@import", sheet.read_text(encoding="utf-8")), sheet.name


@pytest.mark.parametrize("name", ["EagleModel.generate", "Session.add", "verify.verify", "TrainConfig", "TreeSettings"])
def test_the_reference_has_the_docstrings(site, name):
    text = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    assert re.search(rf'id="[\w.]*{re.escape(name)}"', text)
    assert "the emitted distribution is the target's own under the sampling settings" in text.replace("&#39;", "'")
