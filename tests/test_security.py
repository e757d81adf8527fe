"""SECURITY.md names a test for everything that it says is safe."""

import ast
import re
from pathlib import Path

from lupi_trainer.scripts.no_plugins import FLAG


ROOT = Path(__file__).parent.parent


def test_every_test_that_it_names_is_there():
    page, file = (ROOT / "SECURITY.md").read_text(encoding="utf-8"), ""
    named = re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", page)
    assert len(named) > 15
    for path, test in named:
        file = path or file
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"
    rows = [row for row in page.splitlines() if row.startswith("| ") and not row.startswith("| what |")]
    assert all("::test_" in row for row in rows)


def test_readme_says_it():
    assert FLAG in (readme := (ROOT / "README.md").read_text(encoding="utf-8")) and "(SECURITY.md)" in readme
