"""The site builds without a warning, no link or anchor of it is dead, and it needs nothing from outside."""

import re
from pathlib import Path

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from tests.site.pages import DOCS


CONFIG = str(DOCS.parent / "mkdocs.yml")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    build(load_config(CONFIG, strict=True, site_dir=str(tmp_path)))
    pages = {
        page.relative_to(tmp_path).as_posix(): page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")
    }
    for page in DOCS.rglob("*.md"):
        assert page.relative_to(DOCS).with_suffix(".html").as_posix() in pages
    loaded = (
        r'<(?:script|img|iframe)[^>]*\bsrc="(?:https?:)?//|<link[^>]*rel="(?!canonical)[^"]*"[^>]*href="(?:https?:)?//'
    )
    assert not [name for name, text in pages.items() if re.search(loaded, text)]
    assert "repository/data/RESULTS.html" in pages["index.html"]  # a file of the repository is a page of the site
    assert "Draft length: tokens that the student drafts" in pages["trainers/lupi_skd.html"]
    assert "logging_nan_inf_filter" in pages["trainers/lupi_skd.html"]  # of the parents' keys, too
    assert not [name for name, text in pages.items() if re.search(r"\[<code>\w+</code>\](?!\()", text)]


@pytest.mark.parametrize(
    "text, fault",
    [
        ("[gone](gone.md)", "gone.md"),
        ("[gone](../data/GONE.md)", "data/GONE.md"),
        ("[speed](../tests/benchmarks/RESULTS_2026_11.md#nowhere)", "#nowhere"),
        ("[speed](../tests/benchmarks/RESULTS_2026_11.md) [here](#here)\n\n## Here", None),
    ],
)
def test_a_dead_link_ends_the_build(tmp_path, text, fault, caplog):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n{text}\n")
    place = {"docs_dir": str(tmp_path / "docs"), "site_dir": str(tmp_path / "site")}
    config = load_config(CONFIG, strict=True, nav=[{"Home": "index.md"}], plugins=[], theme="mkdocs", **place)
    if fault is None:
        return build(config)
    with pytest.raises(Abort):
        build(config)
    assert fault in caplog.text


def test_every_page_is_in_the_nav_once():
    """As mkdocs warns of as well; here with the name of what is missing."""
    nav = re.findall(r"[\w/]+\.md", Path(CONFIG).read_text().split("\nnav:\n")[1])
    own = [name for name in nav if not name.startswith("repository/")]
    assert sorted(own) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
    assert len(nav) == len(set(nav)) and all((DOCS.parent / name[11:]).is_file() for name in set(nav) - set(own))


def test_nothing_is_fetched_and_both_palettes_are_there():
    config = yaml.safe_load(Path(CONFIG).read_text())
    assert config["theme"]["font"] is False and [p["scheme"] for p in config["theme"]["palette"]] == [
        "default",
        "slate",
    ]
