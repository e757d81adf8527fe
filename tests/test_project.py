"""What stands beside the code: the changelog, the citation, the forms for issues and the workflow agree with it."""

import re
import tomllib
from datetime import date
from pathlib import Path

import pytest
import yaml

import lupi_trainer
from lupi_trainer.publishing import papers


ROOT = Path(__file__).parent.parent
CFF = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def test_the_changelog_has_this_version_first_and_dates_that_go_back():
    page = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[([\d.]+)\] - (\S+)$", page, re.M)
    assert versions[0][0] == lupi_trainer.__version__ and len(versions) == page.count("\n## ")
    dates = [date.fromisoformat(day) for _, day in versions]
    assert dates == sorted(dates, reverse=True) and dates[0] == CFF["date-released"]
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", page, re.M)) <= kinds


def test_the_commands_of_the_changelog_are_there():
    from lupi_trainer.cli import make_parser

    page = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (commands,) = (a.choices for a in make_parser()._actions if a.dest == "command")
    named = set(re.findall(r"`lupi (\w+)", page))
    assert len(named) > 15 and named <= set(commands)
    assert {target for text in re.findall(r"`make ([\w-]+)`", page) for target in [text]} <= TARGETS


def test_the_citation_is_of_this_version():
    """Keys that the schema 1.2.0 requires, and what the package says of itself elsewhere."""
    assert {"cff-version", "message", "title", "authors"} <= set(CFF) and CFF["cff-version"] == "1.2.0"
    assert CFF["version"] == lupi_trainer.__version__ and CFF["license"] == PROJECT["license"]
    assert CFF["type"] == "software" and all("name" in a or "family-names" in a for a in CFF["authors"])
    (paper,) = CFF["references"]
    assert paper["title"] == papers.SPECULATIVE_KD.title and paper["year"] == papers.SPECULATIVE_KD.year
    names = " and ".join(f"{a['given-names']} {a['family-names']}" for a in paper["authors"])
    assert names == papers.SPECULATIVE_KD.authors and papers.SPECULATIVE_KD.id in paper["identifiers"][0]["value"]


def test_the_workflow_runs_what_is_promised():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    pythons = flow["jobs"]["test"]["strategy"]["matrix"]["python"]
    promised = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert pythons == promised and PROJECT["requires-python"] == f">={pythons[0]}"
    runs = [step["run"] for job in flow["jobs"].values() for step in job["steps"] if "run" in step]
    made = {run.split()[1] for run in runs if run.startswith("make ")}
    assert {"lint", "test", "dist"} <= made <= TARGETS
    assert all("PYTHON=" in run for run in runs if run.split()[1] in ("lint", "test"))
    assert flow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_for_issues_are_forms(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert asked and all(part["attributes"]["label"] for part in asked)
    assert len({part["id"] for part in asked}) == len(asked)
    assert any(part.get("validations", {}).get("required") for part in asked)


def test_there_is_a_form_for_what_is_wrong_and_one_for_what_is_missing():
    assert [path.stem for path in FORMS] == ["bug", "feature"]
