"""README.md and the pages of docs/: every command and every block of Python runs; figures come from one command."""

import json
import os
import pydoc
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from docs import figures
from lupi_trainer import LUPISKDConfig, skd_rollout
from lupi_trainer.cli import main
from lupi_trainer.inspection import read_run
from lupi_trainer.lab import resolve_model
from lupi_trainer.publishing import papers
from lupi_trainer.scripts import pretrain
from tests import forks
from tests.inspection.runs import make_run


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# the site's home and what is in folders: tests/site
TOP = sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "index.md"})
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *TOP)}


RUNS = json.loads((ROOT / "data" / "smollm2_runs.json").read_text(encoding="utf-8"))["runs"]
KOREAN = (ROOT / "README.ko.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [block for page in PAGES.values() for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


def chains() -> list[list[str]]:
    """The commands of each block, which may need what those before them left."""
    found = []
    for block in blocks("bash"):
        lines = [line.split(" #")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
        found.append([line for line in lines if line and not line.startswith("make ")])
    return [chain for chain in found if chain]


MAKE = {line.split(" #")[0].strip() for line in "".join(blocks("bash")).splitlines() if line.startswith("make ")}
SHORT = ["--max_steps", "1", "--eval_strategy", "no"]
LESS = {
    # a block may begin where another has ended
    "lupi skd": [
        *SHORT,
        *"--per_device_train_batch_size 3 --max_completion_length 8 --overwrite_output_dir true".split(),
    ],
    "lupi teach": ["--max_completion_length", "8"],
    "lupi kd": [*SHORT, "--save_strategy", "no"],
    "lupi wmtp": [*SHORT, "--save_strategy", "no"],
    "lupi compare": [*SHORT[:2], "--arms", "untrained", "skd", "--every", "1", "--seeds", "0"],
}
LAUNCHED = [c for chain in chains() for c in chain if c.startswith("accelerate launch") or "--accelerate_config" in c]
PRETRAIN = "python -m lupi_trainer.scripts.pretrain"
# seven processes, run by tests/experiments/test_sweep.py; a teacher that writes questions, in tests/documents; tested
# below: a Hub, an installation, minutes of training; servers, in tests/evaluation and tests/served; a terminal
ELSEWHERE = ("lupi sweep", "lupi data make", "lupi data report", "lupi push")
ELSEWHERE += ("vllm serve", "lupi evaluate --server", "lupi chat")
ELSEWHERE += ("pip install", PRETRAIN)
HERE = [[c for c in chain if c not in LAUNCHED and not c.startswith(ELSEWHERE)] for chain in chains()]
HERE = [chain for chain in HERE if chain]


@pytest.fixture
def after_the_demo(tmp_path, monkeypatch):
    """A folder in which the demo and the first recipe have run."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "demo")
    for name in ("runs/demo/student", "runs/lab-full"):
        shutil.copytree(resolve_model("lab:student"), tmp_path / name)
    return tmp_path


def test_push(after_the_demo, hub):
    command = next(c for chain in chains() for c in chain if c.startswith("lupi push"))
    (after_the_demo / "runs" / "lab-full" / "README.md").write_text("# its card\n")
    assert main(shlex.split(command)[1:]) == 0
    assert "model.safetensors" in hub.repos["me/islands"]


@pytest.mark.slow
@pytest.mark.parametrize("chain", HERE, ids=lambda chain: " ".join(chain[0].split()[:2]))
def test_commands_of_a_block(chain, after_the_demo, small_lab):
    """With fewer steps, records and questions."""
    for command in chain:
        quoted = re.sub(r"\$'(.*?)'", lambda m: "'" + m[1].replace("\\n", "\n") + "'", command)
        program, *arguments = shlex.split(quoted)
        assert program == "lupi", "a command that this test does not know how to run"
        assert main([*arguments, *LESS.get(f"lupi {arguments[0]}", [])]) == 0, command
        for place, word in enumerate(arguments):
            if word in ("--output", "--output_dir"):
                assert (after_the_demo / arguments[place + 1]).exists()


def launched(command: str, folder: Path, forked: bool) -> list[float]:
    """The losses of two steps of a command that starts processes."""
    program, *arguments = shlex.split(command)
    module = {"lupi": "lupi_trainer.cli", "accelerate": "accelerate.commands.accelerate_cli"}[program]
    run = [sys.executable, "-m", module, *arguments, "--output_dir", str(folder), "--record_rollouts", "100"]
    run += "--max_steps 2 --max_completion_length 16 --eval_strategy no --logging_steps 1".split()
    run += "--save_strategy steps --save_steps 2".split()
    if forked:
        done = forks.run(*run[1:], cwd=ROOT)
    else:
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "model.safetensors").is_file()
    recorded = [(r["step"], r["row_id"]) for r in read_run(folder).rollouts if r["split"] == "train"]
    assert len(recorded) == len(set(recorded)) == 2 * 24, "all are recorded, by one process or by two"
    state = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.lab)], ids=["forks", "as a user does"])
def test_launched_commands_train_alike(tmp_path, forked):
    """On one and on two processes: the same records in the same order, shared out, so the same losses."""
    (two,) = [command for command in LAUNCHED if "multi_cpu" in command]
    (one,) = [command for command in LAUNCHED if "single_cpu" in command]
    losses = {name: launched(command, tmp_path / name, forked) for name, command in (("two", two), ("one", one))}
    assert sorted(LAUNCHED) == sorted((one, two)) and len(set(losses["one"])) == 2
    assert losses["two"] == pytest.approx(losses["one"], abs=1e-5)


def test_make_targets_are_there():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"make demo", "make test"} <= MAKE and {name.split()[1] for name in MAKE} <= targets


@pytest.mark.parametrize(
    "failing, fails", [("", False), ("browser", False), ("test-browser", True), ("test", True), ("lint", True)]
)
def test_ci_says_when_there_is_no_browser(tmp_path, failing, fails):
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "made $1"\ntest "$1" != "{failing}"\n')
    make.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run([ROOT / ".ci" / "run"], env={"PATH": path}, capture_output=True, text=True)
    assert (done.returncode != 0) == fails
    assert ("NOT RUN: make test-browser" in done.stdout) == (failing == "browser")
    assert ("made test\n" in done.stdout) == (failing != "lint")
    assert ("made test-browser" in done.stdout) == (failing in ("", "test-browser"))


def test_what_is_installed_without_make_is_there():
    """The extras' names; a plain install into an empty folder is tried by tests/scripts/test_recipes.py."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    first = next(chain for chain in chains() if chain)[0]  # the pip line comes before all others
    named = re.fullmatch(r'pip install -e "\.\[([\w,]+)\]"', first)[1].split(",")
    (others,) = re.findall(r"Further extras: (.*?)\.", README)
    named += re.findall(r"`(\w+)`", others)
    assert len(named) == 9 and all(re.search(rf"^{extra} = \[", project, re.M) for extra in named)
    (oldest,) = re.findall(r'^requires-python = ">=([\d.]+)"', project, re.M)
    assert f"Python {oldest} or newer" in README and f"Python {oldest} 이상" in KOREAN


@pytest.mark.slow
def test_the_pair_is_made_again(after_the_demo, monkeypatch):
    """The command, with a step a stage."""
    (command,) = [c for chain in chains() for c in chain if c.startswith(PRETRAIN)]
    for name in ("TEACHER_STAGES", "STUDENT_STAGES"):
        monkeypatch.setattr(pretrain, name, tuple(replace(stage, steps=1) for stage in getattr(pretrain, name)))
    monkeypatch.setattr(sys, "argv", shlex.split(command)[2:])
    pretrain.main()
    for name in ("teacher", "student"):
        made, shipped = (
            AutoModelForCausalLM.from_pretrained(path)
            for path in (after_the_demo / "runs" / "lab" / name, resolve_model(f"lab:{name}"))
        )
        shapes = ({key: value.shape for key, value in model.state_dict().items()} for model in (made, shipped))
        assert next(shapes) == next(shapes)


@pytest.mark.slow
def test_python_from_the_first_line_to_the_last(after_the_demo):
    """As a reader without a GPU does it: the lab's lines in place of those with the names of real models."""
    first, lab = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    head, *lines = first.splitlines()[:1] + first.splitlines()[2:]
    assert head.startswith("from lupi_trainer import ") and len(lines) == 6, "six lines"
    named = [line.split(" = ")[0] for line in lines[:3]]
    assert named == ["args", "data", "student, teacher"] == [line.split(" = ")[0] for line in lab.splitlines()[1:]]
    short, count = re.subn(r"(max_steps\W+)200", r"\g<1>2", "\n".join([head, lab, *lines[3:]]))
    assert count == 1
    exec(compile(short, "README.md", "exec"), names := {})
    assert names["trainer"].state.global_step == 2
    assert (after_the_demo / "runs" / "first" / "model.safetensors").is_file()


def test_real_names_of_the_first_code_are_read_as_they_stand(tmp_path, monkeypatch):
    """All but the models, which are not here: arguments and records."""
    monkeypatch.chdir(tmp_path)
    first = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    start = first.split("trainer = ")[0].replace("max_steps", "bf16=False, max_steps")
    exec(compile(start, "README.md", "exec"), n := {})
    assert n["args"].max_steps == 200 and len(n["data"]) > 100 and "/" in n["student"] and "/" in n["teacher"]


def test_a_rollout_from_python(student, teacher, tokenizer):
    (code,) = [block for block in blocks("python") if "rollout = skd_rollout(" in block]
    ids = [tokenizer("What is Fova's capital?").input_ids]
    names = {"student": student, "teacher": teacher, "student_prompt_ids": ids, "teacher_prompt_ids": ids}
    exec(compile(code, "README.md", "exec"), names)
    expected = skd_rollout(student, teacher, ids, ids, max_new_tokens=256, eos_token_id=2)
    assert names["rollout"].completion_ids == expected.completion_ids


def test_drafts_for_generate_from_python(student, teacher, tokenizer):
    (code,) = [block for block in blocks("python") if "custom_generate=" in block]
    head, call = code.rsplit("\n", 2)[0], code.splitlines()[-1]
    names = {"student": student, "teacher": teacher, "tokenizer": tokenizer}
    exec(compile(f"{head}\ntext = {call}", "README.md", "exec"), names)
    assert torch.equal(names["text"], teacher.generate(**names["inputs"], max_new_tokens=56))


def test_figures_are_written_by_one_command(tmp_path):
    """All but the picture of the page, for which `make test-browser` has the browser."""
    names = [name for row in figures.ROWS.values() for name in row if name]
    run = read_run(make_run(tmp_path / "run", steps=200, **dict.fromkeys(names, 0.12345)))
    parts = {"demo-table": figures.table(run.metrics), "demo-steps": figures.steps(run)}
    for page in (README, KOREAN):
        text = figures.fill(page, parts)
        assert text.count("12.3%") == len(names) and "step  200   loss 0.005   accepted 200.0%" in text
        assert figures.fill(text, parts) == text
        assert len(text.splitlines()) == len(page.splitlines())  # what stands there now has the same form
    with pytest.raises(ValueError, match="once, found 0"):
        figures.fill("nothing", parts)


def test_results_are_those_of_their_page():
    """Brought up to date by `python docs/figures.py`."""
    page = (ROOT / "data" / "RESULTS.md").read_text(encoding="utf-8")
    real = figures.real_table(figures.real_arms(RUNS))
    assert all(figures.fill(p, {"results": figures.results(page), "real": real}) == p for p in (README, KOREAN))
    assert all(arm in README for arm in ("| SKD | 9", "| untrained | 0.0% |", "| SFT on gold answers | 9"))
    assert "lupi compare --output_dir runs/compare" in page
    with pytest.raises(ValueError, match="no table"):
        figures.results("nothing")


def test_the_real_model_is_told_of_by_arms_and_seeds():
    arms = figures.real_arms(RUNS)
    assert {"SKD", "SFT on gold answers", "SKD, with rehearsal"} <= set(arms)
    other = {**arms["SKD"][0], "seed": 9}
    twice = figures.real_arms([*RUNS, other])
    assert len(twice["SKD"]) == len(arms["SKD"]) + 1 and "± " in figures.real_table(twice)
    for clash in ({**other, "flags": "--max_steps 3"}, arms["SKD"][0]):
        with pytest.raises(ValueError, match="two ways of teaching are named SKD"):
            figures.real_arms([*RUNS, clash])


@pytest.mark.parametrize("has_browser", [True, False])
def test_the_picture_of_the_page_comes_last(tmp_path, monkeypatch, has_browser):
    """README is written before a browser is asked for, and is where there is none."""
    names = [name for row in figures.ROWS.values() for name in row if name]
    run = make_run(tmp_path / "run", steps=200, **dict.fromkeys(names, 0.12345))
    (run / "rollout.svg").write_text("<svg/>")
    for name in ("docs", "data"):
        (tmp_path / name).mkdir()
    for page in ("README.md", "README.ko.md", "docs/generation.md", "data/smollm2_runs.json"):
        shutil.copyfile(ROOT / page, tmp_path / page)
    (tmp_path / "data" / "RESULTS.md").write_text("| arm | new | unseen | general | tokens |\n", encoding="utf-8")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "drafts", lambda folder: "drafted")
    monkeypatch.setattr(figures.shutil, "which", lambda name: "chromium" if has_browser else None)
    monkeypatch.setattr(figures.subprocess, "run", lambda command, **kwargs: pictures.append(command[-2]))
    pictures: list[str] = []
    if has_browser:
        figures.main(run)
        assert pictures == [f"--screenshot={tmp_path / 'docs' / 'inspect.png'}"]
    else:
        with pytest.raises(FileNotFoundError, match="make test-browser"):
            figures.main(run)
    written = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "12.3%" in written and "general | tokens" not in written
    assert "12.3%" in (tmp_path / "README.ko.md").read_text(encoding="utf-8")
    assert "<!-- drafts -->\ndrafted\n" in (tmp_path / "docs" / "generation.md").read_text(encoding="utf-8")
    assert (tmp_path / "docs" / "rollout.svg").read_text() == "<svg/>"


def test_every_paper_is_cited():
    entries = [paper.bibtex for paper in vars(papers).values() if isinstance(paper, papers.Paper)]
    assert (ROOT / "docs" / "papers.bib").read_text(encoding="utf-8") == "\n".join(entries) + "\n"
    keys = re.findall(r"@\w+\{(\w+),", "".join(entries))
    assert len(keys) == len(set(keys)) and all(f"`{key}`" in page for key in keys for page in (README, KOREAN))


def test_every_accelerate_configuration_is_explained():
    rows = [
        line.split("|")[1:-1]
        for line in PAGES[ROOT / "docs" / "recipes.md"].splitlines()
        if re.match(r"\| `(single|paired|fsdp|zero|multi)", line)
    ]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(path.stem for path in (ROOT / "recipes" / "accelerate_configs").glob("*.yaml"))
    assert all(what.strip() and run.strip() for _, what, run in rows)


def test_links_lead_somewhere():
    for path, page in {**PAGES, ROOT / "README.ko.md": KOREAN}.items():
        for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", page):
            assert (path.parent / link).exists(), (path.name, link)


def test_readme_is_short_and_leads_to_every_page():
    assert len(README.encode()) <= 9_000
    pages = [path.name for path in PAGES if path.parent.name == "docs"]
    assert all(f"](docs/{name})" in page for name in pages for page in (README, KOREAN))


def test_the_korean_page_has_the_same_facts():
    """The same code, figures, names, links and parts, in the same order; the words alone are others."""
    code = [re.findall(r"```.*?```", page, re.DOTALL) for page in (README, KOREAN)]
    assert code[0] == code[1] and len(code[0]) > 6
    prose = [re.sub(r"```.*?```", "", page, flags=re.DOTALL) for page in (README, KOREAN)]
    pictures, links = r"!\[.*?\]\((.*?)\)", r"(?<!!)\[.*?\]\((.*?)\)"
    for what in (pictures, r"^(#+) ", r"^\|.*\|$", r"<!-- (.*?) -->"):
        one, other = (re.findall(what, page, re.M) for page in prose)
        assert len(one) == len(other) > 0, what
        assert what != pictures or one == other
    for what in (links, r"`[^`]*`", r"\d[\d.,]*%"):
        one, other = (sorted(re.findall(what, page)) for page in prose)
        assert [x for x in one if "README" not in x] == [x for x in other if "README" not in x], what
    assert len(re.findall("[\uac00-\ud7a3]", KOREAN)) > 1_000


def test_help_explains_every_key():
    """Ours and the inherited ones, each once, in the docstring; all of them in the script's --help."""
    documented = re.findall(r"^        (\w+) \(.*\):\n            \S+", LUPISKDConfig.__doc__, re.M)
    assert sorted(documented) == sorted(field.name for field in fields(LUPISKDConfig))
    assert "teacher_model_server_url (`str`, *optional*):" in pydoc.render_doc(LUPISKDConfig, renderer=pydoc.plaintext)
    from lupi_trainer.scripts.lupi_skd import make_parser

    silent = [action.dest for action in make_parser()._actions if not action.help]
    assert silent == []
