"""What `make docs` does beside mkdocs: files of the repository that pages link to are pages of the site, too.

A page says `../data/RESULTS.md`, as GitHub reads it. On the site that file is `repository/data/RESULTS.md`, and so are
the files that it links to in turn. Links are rewritten, so that mkdocs checks them all.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File, Files


ROOT = Path(__file__).parent.parent
DOCS = "docs/"
OUTSIDE = "repository/"
LINK = re.compile(r"""(\]\(|\b(?:href|src|srcset)=")(?![a-z]+:|#|/)([^)#"\s]+)""")
CODE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def in_repository(uri: str) -> str:
    """The file of the repository that a file of the site is: `trainers/x.md` is `docs/trainers/x.md`."""
    return uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else DOCS + uri


def site_path(path: str) -> str:
    """The file of the site that a file of the repository is."""
    return path.removeprefix(DOCS) if path.startswith(DOCS) else OUTSIDE + path


def prose(text: str):
    """(text, whether it is code), piece by piece."""
    end = 0
    for code in CODE.finditer(text):
        yield text[end : code.start()], False
        yield code[0], True
        end = code.end()
    yield text[end:], False


def links(path: str, text: str) -> set[str]:
    """Files of the repository that a page there links to, and that exist."""
    targets = (link for part, is_code in prose(text) if not is_code for _, link in LINK.findall(part))
    paths = (os.path.normpath(PurePosixPath(path).parent / target) for target in targets)
    return {found for found in paths if not found.startswith("..") and (ROOT / found).is_file()}


def on_files(files: Files, config) -> Files:
    waiting = list(files.documentation_pages())
    while waiting:
        page = waiting.pop()
        for path in sorted(links(in_repository(page.src_uri), page.content_string)):
            if files.get_file_from_path(site_path(path)) is None:
                found = File.generated(config, site_path(path), abs_src_path=str(ROOT / path))
                files.append(found)
                waiting += [found] if found.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    here = page.file.src_uri
    path = PurePosixPath(in_repository(here))

    def moved(match: re.Match) -> str:
        target = os.path.normpath(path.parent / match[2])
        if target.startswith("..") or not (ROOT / target).is_file():
            return match[0]  # mkdocs says that it leads nowhere
        return match[1] + os.path.relpath(site_path(target), PurePosixPath(here).parent)

    return "".join(part if is_code else LINK.sub(moved, part) for part, is_code in prose(markdown))
