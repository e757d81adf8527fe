"""Every block of the site's own pages runs, in the order of its page, in one folder a page, on the lab's pair.

Models that the pages name stand for the lab's. A block below `<!-- server -->` meets a server: a stand-in here, and a
real one by `make test-vllm`. One below `<!-- gpu -->` waits for a GPU (`python -m pytest -m gpu tests/site`).
"""

import re
import shlex
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from lupi_trainer.cli import main
from lupi_trainer.lab import resolve_model, world
from lupi_trainer.scripts.recipe_files import recipes_dir
from lupi_trainer.teachers.remote import RemoteStats
from tests.conftest import lab
from tests.documents.islands import Teacher
from tests.documents.stand_in import StandIn
from tests.evaluation.lab_server import LabServer
from tests.site.pages import DOCS, PAGES, Block, blocks, name_of
from tests.teachers.vllm_stand_in import VLLMStandIn
from tests.test_readme import LAUNCHED


NAMES = {"Qwen/Qwen3-0.6B": "lab:student", "Qwen/Qwen3-4B": "lab:teacher", "Qwen/Qwen3-32B": "lab:teacher"}
PORT = "http://localhost:8000"
FEWER = {
    "skd": "--max_steps 1 --eval_strategy no --per_device_train_batch_size 3 --max_completion_length 8 "
    "--save_strategy no",
    "kd": "--max_steps 1 --save_strategy no --eval_strategy no",
    "wmtp": "--max_steps 1 --save_strategy no --eval_strategy no",
    "evaluate": "--max_new_tokens 2",
}
# of which tests elsewhere tell: the demo, which is minutes of training
ELSEWHERE = ("lupi demo",)
MARKS = {"gpu": pytest.mark.gpu, "vllm": [pytest.mark.vllm, pytest.mark.timeout(900)]}


def runs() -> list:
    """(page, what it is run with): every page here; those that need more, once more with that."""
    found = [pytest.param(page, "", id=name_of(page)) for page in PAGES if blocks(page)]
    for page in PAGES:
        needs = {block.needs for block in blocks(page)}
        found += [pytest.param(page, "gpu", id=f"{name_of(page)} gpu", marks=MARKS["gpu"])] if "gpu" in needs else []
        found += (
            [pytest.param(page, "vllm", id=f"{name_of(page)} vllm", marks=MARKS["vllm"])] if "server" in needs else []
        )
    return found


class Reader:
    """Runs the blocks of a page, one after the other."""

    def __init__(self, folder, stack: ExitStack, real: str):
        self.folder, self.stack, self.real, self.url = folder, stack, real, PORT
        self.names: dict = {}

    def run(self, block: Block) -> None:
        text = re.sub("|".join(map(re.escape, NAMES)), lambda m: NAMES[m[0]], block.text)
        text = text if block.language == "bash" else text.replace(PORT, self.url)
        if block.file:
            (self.folder / block.file).write_text(text, encoding="utf-8")
        if block.language == "python":
            exec(
                compile(text, block.file or "block", "exec"), self.names if not block.file else {"__name__": "module"}
            )
        elif block.language == "bash":
            for command in Block(block.needs, "bash", "", text).commands():
                self.command(command.replace(PORT, self.url))  # of a server that an earlier one has started
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(text), dict)
        else:
            assert block.language in ("", "json")

    def command(self, command: str) -> None:
        if command.startswith("pip install"):
            extras = re.findall(r"\[(.*?)\]", command)
            project = (DOCS.parent / "pyproject.toml").read_text()
            assert all(f"\n{extra} = [" in project for group in extras for extra in group.split(","))
        elif command.startswith("vllm serve"):
            self.serve(shlex.split(command)[2], "--middleware" in command)
        elif not command.startswith(ELSEWHERE):
            program, *words = shlex.split(command)
            assert program == "lupi", f"a command that this test does not know how to run: {command}"
            assert main(self.shorter(words)) == 0, command

    def shorter(self, words: list[str]) -> list[str]:
        """The command with fewer steps, records and tokens, where it does not say how many."""
        flags = shlex.split(FEWER.get(words[0], ""))
        for flag, value in zip(flags[::2], flags[1::2]):
            words = words if flag in words else [*words, flag, value]
        if words[:2] == ["data", "make"]:  # the lab's teacher reads, and cannot write
            place = words.index("--teacher")
            persona = self.folder / "prompts" / "en" / "read.txt"
            persona.parent.mkdir(parents=True)
            persona.write_text(world.PERSONA)
            server = StandIn(Teacher())
            self.stack.callback(server.close)
            more = ["--teacher_server", server.url, "--reader", words[place + 1], "--facts", "20"]
            words = [*words[:place], *words[place + 2 :], *more, "--prompts", "prompts", "--device", "cpu"]
        return words

    def serve(self, model: str, scores: bool) -> None:
        folder = model if (self.folder / model).is_dir() else resolve_model(model)
        if self.real == "vllm":
            from tests.vllm.server import Server

            server = Server(self.folder / "server.log", folder).wait()
            self.stack.callback(server.stop)
            self.url = server.url
        elif folder == model:  # a student, that is asked
            served = LabServer(folder)
            self.stack.callback(served.close)
            self.url = served.url.removesuffix("/v1")
        else:
            self.url = self.stack.enter_context(
                VLLMStandIn(lab("AutoModelForCausalLM", model), lab("AutoTokenizer", model), scores=scores)
            ).url


@pytest.fixture
def folder(tmp_path, monkeypatch, small_lab):
    """Where a reader of the pages is: beside the recipes, with modules that can be imported."""
    (tmp_path / "recipes").symlink_to(recipes_dir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page, real", runs())
def test_every_block_runs(page, real, folder):
    with ExitStack() as stack:
        reader = Reader(folder, stack, real)
        for block in blocks(page):
            if block.needs == "processes":  # run there
                assert set(block.commands()) <= set(LAUNCHED)
            elif block.needs != "gpu" or real == "gpu":
                reader.run(block)
        if page.parent.name == "trainers" and "trainer" in reader.names:
            logged_metrics_are_documented(page, reader.names["trainer"].state.log_history)


OWN = re.compile(
    r"^(eval_)?(runtime|samples_per_second|steps_per_second|model_preparation_time)$|^train_|^total_flos$|^step$"
)


def documented(page) -> set[str]:
    """The metrics in the tables of a trainer's page; those of the page that it refers to are named in its text."""
    text = page.read_text(encoding="utf-8").split("## Logged metrics")[1].split("\n## ")[0]
    return {
        name
        for name in re.findall(r"`([\w/]+)`", text)
        if "/" in name or "_" in name or name in ("loss", "entropy", "epoch")
    }


def logged_metrics_are_documented(page, history) -> None:
    known = documented(page) | {"num_tokens", "grad_norm", "learning_rate", "epoch"}
    for name in {name for log in history for name in log}:
        plain = re.sub(r"(?<=head_)\d+$|(?<=head_weight/)\d+$", "k", name)
        told = {plain, plain.removeprefix("eval_"), f"eval_{plain}"} & known
        assert told or OWN.match(name), (name_of(page), name)


def test_what_is_documented_is_logged_somewhere():
    """Each name of a metric is in the source of the package or of TRL."""
    import trl

    import lupi_trainer

    source = "".join(
        path.read_text(encoding="utf-8")
        for root in (lupi_trainer.__path__[0], f"{trl.__path__[0]}/trainer")
        for path in sorted(Path(root).rglob("*.py"))
    )
    asked = {f"teacher_server/{field.name}" for field in fields(RemoteStats)}
    for page in PAGES:
        if page.parent.name == "trainers" and "## Logged metrics" in page.read_text(encoding="utf-8"):
            for name in documented(page) - asked:
                stem = name.removeprefix("eval_").removesuffix("k")
                assert stem in source, (name_of(page), name)
