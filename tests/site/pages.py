"""The pages of the site that tests/test_readme.py does not run: their blocks, and what their tables name."""

import re
from dataclasses import dataclass
from pathlib import Path


DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.parent != DOCS or page.name == "index.md"]
FENCE = re.compile(r'^(?:<!-- (\w+) -->\n)?```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code: what it needs (`gpu`, `server`, `processes`, or nothing), and the file that it is, if any."""

    needs: str
    language: str
    file: str
    text: str

    def commands(self) -> list[str]:
        lines = [line.split(" #")[0].strip() for line in self.text.replace("\\\n", " ").splitlines()]
        return [line for line in lines if line]


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(page.read_text(encoding="utf-8"))]


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def section(page: Path, heading: str) -> str:
    """What stands below a heading of the second order."""
    (text,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", page.read_text(encoding="utf-8"), re.M | re.S)
    return text
