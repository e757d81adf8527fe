"""Brings README.md's figures, and the pages and pictures beside this file, up to date.

They come from a run of the demo, from data/RESULTS.md and from data/smollm2_runs.json.

make figures              # runs the demo, then `python docs/figures.py runs/demo`
python docs/figures.py    # what is in data/ alone
"""

import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from lupi_trainer.inspection import Run, read_run, write_page


ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # where this file is run by its path

from docs import pictures  # noqa: E402


PAGES = ("README.md", "README.ko.md")  # with the same figures
ROWS = {
    "new facts, trained phrasings": ("student_closed_book_before", "student_closed_book_after"),
    "new facts, unseen phrasings": ("student_unseen_phrasing_before", "student_unseen_phrasing_after"),
    "old facts, not to be forgotten": ("common_facts_before", "common_facts_after"),
    "the teacher, reading the knowledge": ("teacher_open_book", None),
}
STEPS = (10, 50, 100, 150, 200)


def table(metrics: dict[str, float]) -> str:
    """The demo's result: `metrics` as in its metrics.json, fractions of 1."""
    lines = ["| share of questions answered right, closed-book | before | after |", "|---|---|---|"]
    for what, names in ROWS.items():
        before, after = ("" if name is None else f"{metrics[name]:.1%}" for name in names)
        lines.append(f"| {what} | {before} | {after} |")
    return "\n".join(lines)


def steps(run: Run) -> str:
    """Some of the lines that the demo prints while it trains, with a bar in place of lengths and times."""
    losses, rates = dict(run.points("loss")), dict(run.points("acc_rate/mean"))
    lines = [
        f"step {s:4d}   loss {losses[s]:.3f}   accepted {rates[s]:6.1%} {'█' * round(10 * rates[s])}" for s in STEPS
    ]
    return "\n".join(["```", *lines, "```"])


def drafts(folder: Path) -> str:
    """What the student is worth as a draft for its teacher, before and after, by `lupi generate`.

    Raises:
        CalledProcessError: the command failed.
    """
    lines = ["| draft model | tokens a round | drafted tokens accepted |", "|---|---|---|"]
    for name, draft in (("the student before", "lab:student"), ("the student after", folder / "student")):
        command = [sys.executable, "-m", "lupi_trainer.cli", "generate", "--target", "lab:teacher", "--draft", draft]
        command += ["--prompts", "lab:new", "--with_knowledge", "--max_new_tokens", "56", "--output", os.devnull]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        length, share = re.search(r"acceptance length ([\d.]+), (\d+%)", printed).groups()
        lines.append(f"| {name} | {length} | {share} |")
    return "\n".join(lines)


def results(text: str) -> str:
    """The ways of teaching, of the text of data/RESULTS.md: its first table that begins so, without the costs.

    Raises:
        ValueError: it has no such table.
    """
    head = "| arm | new | unseen | general |"
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith(head)), None)
    if start is None:
        raise ValueError(f"data/RESULTS.md has no table {head}")
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    return "\n".join("|".join(line.split("|")[:5]) + "|" for line in table)


def real_arms(runs: list[dict]) -> dict[str, list[dict]]:
    """The ways of teaching SmolLM2 at the recipe's temperature, by name, each with its runs, a run a seed.

    Raises:
        ValueError: two ways would have the same name.
    """
    arms: dict[str, list[dict]] = {}
    for run in runs:
        if "--student_temperature 0.7" in run["flags"]:
            continue  # what is tried beside the recipe is in data/RESULTS.md
        name = {"skd": "SKD", "sft": "SFT on gold answers"}.get(run["arm"], run["arm"])
        name += ", with rehearsal" * ("--base_dataset_name" in run["flags"])
        others = arms.setdefault(name, [])
        others.append(run)
        if len({other["flags"] for other in others}) > 1 or len({other["seed"] for other in others}) < len(others):
            raise ValueError(f"two ways of teaching are named {name}: {run['flags']}")
    return arms


def real_table(arms: dict[str, list[dict]]) -> str:
    """What the real model answers before and after, each way of teaching a row: means over seeds, and their spread."""

    def cell(runs: list[dict], score: str) -> str:
        before, after = ([run["curve"][end][score] for run in runs] for end in (0, -1))
        spread = f" ± {statistics.stdev(after):.1%}" if len(after) > 1 else ""
        return f"{statistics.mean(before):.1%} → {statistics.mean(after):.1%}{spread}"

    seeds = sorted({len(runs) for runs in arms.values()})
    lines = [f"| SmolLM2-135M ({'-'.join(map(str, seeds))} seed) | new | unseen | general |", "|---|---|---|---|"]
    for name, runs in arms.items():
        lines.append("| " + " | ".join([name, *(cell(runs, score) for score in ("new", "unseen", "general"))]) + " |")
    return "\n".join(lines)


def fill(text: str, parts: dict[str, str]) -> str:
    """`text` with the lines between `<!-- NAME -->` and `<!-- /NAME -->` replaced.

    Raises:
        ValueError: a name that the text does not have, or has twice.
    """
    for name, part in parts.items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", lambda m, p=part: m[1] + p + m[2], text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"the page must have <!-- {name} --> ... <!-- /{name} --> once, found {count}")
    return text


def example(rollouts: list[dict]) -> str:
    """The address of a training text of which the teacher wrote much, beside the last recording of the same."""
    train = [(number, r) for number, r in enumerate(rollouts) if r["split"] == "train" and r["privileged_context"]]
    number, first = max(train, key=lambda n: (n[1]["step"] < 20) * sum(n[1]["from_teacher"]))
    same = [n for n, r in train if all(r[key] == first[key] for key in ("prompt", "privileged_context"))]
    return f"#{number},{same[-1]}"


def screenshot(run: Run, picture: Path) -> None:
    """The run's page as headless Chromium shows it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("no Chromium for the picture of the page: `make test-browser` installs it")
    with tempfile.TemporaryDirectory() as folder:
        page = write_page(run, Path(folder) / "page.html")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1300,1240"]
        address = f"file://{page}{example(run.rollouts)}"
        subprocess.run([chromium, *flags, f"--screenshot={picture}", address], check=True, capture_output=True)


def main(folder: Path | None = None) -> None:
    """Rewrite what comes of data/ and, from the demo's folder, all other figures and the two pictures of it.

    The picture of the page comes last: it alone needs a browser.
    """
    parts = {"results": results((ROOT / "data" / "RESULTS.md").read_text(encoding="utf-8"))}
    arms = real_arms(json.loads((ROOT / "data" / "smollm2_runs.json").read_text(encoding="utf-8"))["runs"])
    parts["real"] = real_table(arms)
    pages = dict.fromkeys(PAGES, parts)
    if folder is not None:
        run, metrics = read_run(folder), json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        parts |= {"demo-table": table(metrics), "demo-steps": steps(run)}
        pages["docs/generation.md"] = {"drafts": drafts(folder)}
    for page, its_parts in pages.items():
        path = ROOT / page
        path.write_text(fill(path.read_text(encoding="utf-8"), its_parts), encoding="utf-8")
    (ROOT / "docs" / "reads.svg").write_text(pictures.reads_and_writes(), encoding="utf-8")
    (ROOT / "docs" / "real.svg").write_text(pictures.curves(arms), encoding="utf-8")
    if folder is not None:
        shutil.copyfile(folder / "rollout.svg", ROOT / "docs" / "rollout.svg")
        screenshot(run, ROOT / "docs" / "inspect.png")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
