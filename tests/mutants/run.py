"""How many faults the tests see: mutants of the engine, losses, data and evaluation, each run against its tests.

    make test-mutants ARGS="--seed 0 --count 80 --json runs/mutants.json"

Each mutant is made in a copy of the tree, and the test files of its module are run on it, quick ones first, until one
fails. What is done is kept in the JSON file after every mutant, so that a run can be ended and started again.
"""

import argparse
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from tests.mutants.draw import Mutant, draw


ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
FOLDERS = ("speculative", "losses", "data", "evaluation")
SLOW = "slow"
NOTHING = 5  # pytest's: no test was selected
FIRST, FACTOR = 20, 5  # a file may take FIRST seconds, and FACTOR times what it takes without a mutant

PLUGINS = [word for name in ("anyio", "cacheprovider", "xdist") for word in ("-p", f"no:{name}")]  # quicker without

# test files beside those of the mirrored folder that test a folder's modules
ELSEWHERE = {
    "data": ["tests/evaluation/test_closed_book.py"],  # answers.py
    "evaluation": ["tests/lupi_skd/test_trainer.py"],
    "speculative": ["tests/distributed/test_lockstep.py", "tests/models/test_head_check.py"],  # lockstep; probe.py
}


def marks() -> str:
    """What `make test` selects."""
    return re.search(r'^test:.*\n.*-m "([^"]+)"', (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]


def modules() -> list[str]:
    return [
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in sorted((ROOT / "lupi_trainer" / folder).rglob("*.py"))
    ]


def test_files(module: str) -> list[list[str]]:
    """The test files of a module in three groups: of its name, of its folder, and others that run it.

    Everything of `speculative/` is run by the tests of all its folders.
    """
    path = Path(module).relative_to("lupi_trainer")
    folder = ROOT / "tests" / path.parent
    named = sorted(folder.glob(f"test_{path.stem}.py"))
    beside = [file for file in sorted(folder.glob("test_*.py")) if file not in named]
    others = [ROOT / name for name in ELSEWHERE.get(path.parts[0], [])]
    if path.parts[0] == "speculative":
        others = [file for file in sorted((ROOT / "tests/speculative").rglob("test_*.py")) if file.parent != folder]
    return [[str(file.relative_to(ROOT)) for file in files] for files in (named, beside, others)]


class Tree:
    """A copy of the tree, with a server that runs its tests."""

    def __init__(self, folder: str):
        self.root = Path(folder) / "tree"
        hidden = shutil.ignore_patterns(".*", "runs", "build", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, self.root, ignore=hidden)
        self.log = Path(folder) / "log.txt"
        self.server = subprocess.Popen(
            [PYTHON, ROOT / "tests" / "mutants" / "server.py"],
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": str(self.root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def test(self, file: str, expression: str, seconds: float) -> dict:
        arguments = ["-q", "-x", "--no-header", *PLUGINS, "-m", expression, file]
        print(
            json.dumps({"arguments": arguments, "seconds": seconds, "log": str(self.log)}),
            file=self.server.stdin,
            flush=True,
        )
        answer = self.server.stdout.readline()
        if not answer:
            raise RuntimeError("the server of the tests has ended")
        return json.loads(answer)

    def failed(self) -> str:
        found = re.findall(r"^(?:FAILED|ERROR) (.*)", self.log.read_text(errors="replace"), re.MULTILINE)
        return found[0][:300] if found else self.log.read_text(errors="replace")[-300:]

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()


class Results:
    """The file in which everything done is kept."""

    def __init__(self, path: Path | None):
        self.path, self.lock = path, threading.Lock()
        known = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
        self.unmutated: dict[str, float | None] = known.get("unmutated", {})  # seconds; None: it has no such test
        self.mutants: dict[str, dict] = known.get("mutants", {})

    def save(self) -> None:
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"unmutated": self.unmutated, "mutants": self.mutants}, indent=1)
            (beside := self.path.with_suffix(".part")).write_text(text + "\n", encoding="utf-8")
            os.replace(beside, self.path)


def stages(module: str) -> list[list[tuple[str, str]]]:
    """Test files with what is selected of them: `make test`'s of each group, then `make test-slow`'s of the folder."""
    quick, slow = marks(), marks().replace("not slow", SLOW)
    named, beside, others = test_files(module)
    groups = (named, quick), (beside, quick), (others, quick), (named, slow), (beside, slow)
    return [[(file, selected) for file in files] for files, selected in groups]


def seconds_unmutated(tree: Tree, results: Results, part: tuple[str, str]) -> float | None:
    """What the selected tests of a file take on the tree as it is, measured once."""
    key = " -m ".join(part)
    with results.lock:
        if key in results.unmutated:
            return results.unmutated[key]
    done = tree.test(*part, seconds=3600)
    if done["status"] not in (0, NOTHING):
        raise RuntimeError(f"{part[0]} fails without a mutant: {tree.failed()}")
    with results.lock:
        results.unmutated[key] = None if done["status"] == NOTHING else round(done["seconds"], 1)
        results.save()
        return results.unmutated[key]


def judge(tree: Tree, results: Results, mutant: Mutant) -> dict:
    """Whether a test fails on a mutant, and which."""
    path = tree.root / mutant.module
    before = path.read_text(encoding="utf-8")
    after, difference = mutant.apply(tree.root)
    outcome, by, taken, quick = "survived", "", 0.0, True
    for stage in stages(mutant.module):
        known = [(part, seconds_unmutated(tree, results, part)) for part in stage]
        limits = sorted(((part, seconds) for part, seconds in known if seconds is not None), key=lambda k: k[1])
        path.write_text(after, encoding="utf-8")
        try:
            for part, seconds in limits:
                quick = not part[1].startswith(SLOW)
                done = tree.test(*part, seconds=FIRST + FACTOR * seconds)
                taken += done["seconds"]
                if done["status"] is None:
                    outcome, by = "timeout", part[0]
                elif done["status"] == NOTHING:
                    raise RuntimeError(f"{part[0]} has tests without a mutant and none with it")
                elif done["status"]:
                    outcome, by = "caught", tree.failed()
                if outcome != "survived":
                    break
        finally:
            path.write_text(before, encoding="utf-8")
        if outcome != "survived":
            break
    found = {"module": mutant.module, "line": mutant.line, "operator": mutant.operator, "difference": difference}
    target = "test" if quick else "test-slow"
    return found | {"outcome": outcome, "by": by, "target": target, "seconds": round(taken, 1)}


def work(todo: queue.SimpleQueue, results: Results, errors: list[Exception]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(folder)
        try:
            while not errors:
                try:
                    name, mutant = todo.get_nowait()
                except queue.Empty:
                    break
                found = judge(tree, results, mutant)
                with results.lock:
                    results.mutants[name] = found
                    results.save()
                print(f"{name:>4} {found['outcome']:8} {found['seconds']:6.1f} s  {found['module']}:{found['line']}")
                print(*found["difference"].splitlines()[3:], *filter(None, [f"by {found['by']}"]), sep="\n     ")
        except (RuntimeError, OSError) as error:
            errors.append(error)
        finally:
            tree.close()


def summary(results: Results) -> str:
    """The share that was caught, of all and of each folder; and those that were not."""
    lines, folders = [], {}
    for found in results.mutants.values():
        seen = found["outcome"] != "survived" and found["target"]
        folders.setdefault("/".join(found["module"].split("/")[1:-1]), Counter())[seen] += 1
    folders["all"] = sum(folders.values(), Counter())
    for name, counts in folders.items():
        caught = counts["test"] + counts["test-slow"]
        share = f"{caught / counts.total():.0%}, by `make test` {counts['test']}"
        lines.append(f"{name:24} {caught:3} of {counts.total():3} ({share})")
    for name, found in results.mutants.items():
        if found["outcome"] == "survived":
            lines.append(f"survived: {name} {found['module']}:{found['line']} {found['operator']}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--only", type=int, nargs="*", metavar="N", help="these of the mutants drawn, from 0, anew")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where results are kept, and what is done is found")
    parser.add_argument("--workers", type=int, default=1, choices=(1, 2))
    parser.add_argument("--list", action="store_true", help="shows the mutants and runs nothing")
    args = parser.parse_args()
    drawn = draw(ROOT, modules(), args.count, args.seed)
    results, todo = Results(args.json), queue.SimpleQueue()
    for number in range(args.count) if args.only is None else args.only:
        mutant, name = drawn[number], f"{args.seed}-{number}"
        known, (_, difference) = results.mutants.get(name), mutant.apply(ROOT)
        if known and known["difference"] != difference:
            parser.error(f"{args.json} holds results of another tree or count: mutant {name} is not the same")
        if args.list:
            print(name, difference, sep="\n")
        elif not known or args.only is not None:
            todo.put((name, mutant))
    if args.list:
        return 0
    errors: list[Exception] = []
    workers = [threading.Thread(target=work, args=(todo, results, errors)) for _ in range(args.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if results.mutants:
        print(summary(results))
    return bool(errors)


if __name__ == "__main__":
    sys.exit(main())
