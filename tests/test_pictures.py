"""Pictures of the pages: those that are there are what their script makes, for light and for dark readers."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.text import Text

from docs import figures, pictures
from lupi_trainer.scripts.demo_run import picture


DOCS = Path(__file__).parent.parent / "docs"
RUNS = json.loads((DOCS.parent / "data" / "smollm2_runs.json").read_text(encoding="utf-8"))["runs"]
NAME = "{http://www.w3.org/2000/svg}"


def test_those_that_are_there_are_what_the_script_makes():
    """Brought up to date by `python docs/figures.py`."""
    assert (DOCS / "reads.svg").read_text(encoding="utf-8") == pictures.reads_and_writes()
    assert (DOCS / "real.svg").read_text(encoding="utf-8") == pictures.curves(figures.real_arms(RUNS))


@pytest.mark.parametrize("name", ["reads", "real", "rollout"])
def test_light_and_dark_readers_see_it_and_nothing_comes_from_outside(name):
    text = (DOCS / f"{name}.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    style = root.find(f"{NAME}style").text
    assert "@media (prefers-color-scheme: dark)" in style and style.count("--text:") == 2
    assert "http" not in text.replace("http://www.w3.org", "") and "@import" not in text
    *_, width, height = map(float, root.get("viewBox").split())
    for word in root.iter(f"{NAME}text"):
        assert 0 <= float(word.get("x")) <= width + 2 and 0 <= float(word.get("y")) <= height, word.text


def test_curves_are_those_of_the_runs():
    run = {"curve": [{"step": s, "new": new, "general": 0.5} for s, new in ((0, 0.0), (50, 0.5), (100, 1.0))]}
    worse = {"curve": [{**point, "new": 0.0} for point in run["curve"]]}
    root = ElementTree.fromstring(pictures.curves({"a & b": [run, worse]}))
    lines = [path.get("d") for path in root.iter(f"{NAME}path") if "curve" in path.get("class")]
    assert lines[0] == "M60.0 254.0 245.0 201.5 430.0 149.0", "the mean: half of the height at the last step"
    assert lines[1] == "M530.0 149.0 715.0 149.0 900.0 149.0" and len(list(root.iter(f"{NAME}circle"))) == 12
    assert "a & b" in [word.text for word in root.iter(f"{NAME}text")]


def test_a_rollout_has_two_colors():
    before = Text.assemble(("It is ", "green"), ("[Ku]", "bold red"))
    root = ElementTree.fromstring(picture(before, Text("It is Ku", style="green")))
    style = root.find(f"{NAME}style").text
    written = {word.text.replace("\xa0", " "): word.get("class") for word in root.iter(f"{NAME}text")}
    assert f".{written['It is ']} {{ fill: var(--student) }}" in style
    assert f".{written['[Ku]']} {{ fill: var(--teacher);font-weight: bold }}" in style
    assert written["It is Ku"] == written["It is "]
