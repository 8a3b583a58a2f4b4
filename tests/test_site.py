"""The site is built without a warning: every page is in its navigation, and every link and anchor leads somewhere."""

import json
import re
from pathlib import Path

import pytest
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def make_site(script):
    return script("docs/make_site.py")


@pytest.fixture(scope="module")
def site(make_site, tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    make_site.make(out)
    return out / "html"


def test_every_page_of_docs_is_on_the_site(site):
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / "docs" / page.stem / "index.html").exists()


def test_every_tutorial_is_a_page_with_what_it_prints_and_draws(site):
    for notebook in (ROOT / "docs/tutorials").glob("*.ipynb"):
        folder = site / "docs/tutorials" / notebook.stem
        page = (folder / "index.html").read_text()
        cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
        assert page.count('<div class="highlight"') > len(cells)  # the code, and what it printed
        for picture in re.findall(r'<img[^>]+src="([^"]+)"', page):
            assert (folder / picture).exists()
        assert (folder / re.findall(r'href="([^"]+\.ipynb)"', page)[0]).exists()
    assert len(list((site / "docs/tutorials").glob("*.png"))) == 3


def test_search_finds_what_pages_say(site):
    index = json.loads((site / "search/search_index.json").read_text())["docs"]
    for words, place in {"validation loss rises": "docs/faq/", "flow map": "docs/glossary/"}.items():
        found = [entry["location"] for entry in index if words in f"{entry['title']} {entry['text']}"]
        assert any(location.startswith(place) for location in found), words


def test_no_list_or_table_is_left_as_text(site):
    """Markdown on GitHub begins a list without an empty line before it; here that would be a paragraph with dashes."""
    for page in site.rglob("index.html"):
        for paragraph in re.findall(r"<p>(.*?)</p>", page.read_text(), flags=re.DOTALL):
            assert not re.search(r"\n\s*(- |\d+\. |\|[ -])", paragraph), f"{page.parent.name}: {paragraph[:200]}"


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("index.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page.read_text()), page.parent.name


@pytest.mark.parametrize("link", ["[a](nothing.md)", "[a](results.md#nothing)"])
def test_a_broken_link_stops_the_build(link, make_site, tmp_path, monkeypatch):
    def with_a_fault(target, before=make_site.lay_out):
        before(target)
        for page in [*(target / "docs").glob("*.md"), *(target / "results").rglob("*.md")]:
            if page.name not in ("faq.md", "results.md"):
                page.unlink()  # quicker
        (target / "docs/faq.md").write_text(link)

    monkeypatch.setattr(make_site, "lay_out", with_a_fault)
    with pytest.raises(Abort):
        make_site.make(tmp_path)
