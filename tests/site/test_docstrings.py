"""Every public name has one sentence, what it raises where it refuses something, and an example that runs."""

import doctest
import importlib
import inspect
import math
import re
from dataclasses import fields

import pytest

from lupi_trainer import LUPISKDConfig, skd_rollout
from lupi_trainer.lupi_skd.inherited import FIRST
from lupi_trainer.scripts.key_help import KEYS
from lupi_trainer.speculative import speculative_generate
from tests.teachers.vllm_stand_in import VLLMStandIn


MODULES = ("lupi_trainer", "lupi_trainer.speculative", "lupi_trainer.losses")
PUBLIC = {
    name: getattr(importlib.import_module(module), name)
    for module in MODULES
    for name in importlib.import_module(module).__all__
}
EXAMPLE = re.compile(r"^Example:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TRAINERS = [name for name in PUBLIC if name.endswith("Trainer")]


def docstring(name: str) -> str:
    return inspect.cleandoc(PUBLIC[name].__doc__)


class Unasked(doctest.OutputChecker):
    """What an example says nothing of may be anything: a training returns what it did."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def run(name: str, globs: dict) -> dict:
    """Runs the example; returns the names that it leaves."""
    (text,) = EXAMPLE.findall(docstring(name))
    test = doctest.DocTestParser().get_doctest(text, globs, name, None, None)
    found: list[str] = []
    runner = doctest.DocTestRunner(Unasked(), optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False)
    failed, tried = runner.run(test, out=found.append, clear_globs=False)
    assert tried and not failed, "".join(found)
    return test.globs


@pytest.fixture
def shown(tmp_path, monkeypatch, student, teacher, tokenizer):
    """What docs/api/index.md says that examples have."""
    monkeypatch.chdir(tmp_path)
    prompt_ids = [tokenizer(question).input_ids for question in ("What is Fova's capital?", "What is Peho's river?")]
    given = {"student": student, "teacher": teacher, "tokenizer": tokenizer, "prompt_ids": prompt_ids, "math": math}
    return given | {"skd_rollout": skd_rollout, "speculative_generate": speculative_generate}


def test_every_example_of_a_function_or_a_class_runs(shown):
    for name in PUBLIC:
        if name not in (*TRAINERS, "TeacherServer"):
            run(name, shown)


def test_the_example_of_a_served_teacher_runs(shown, monkeypatch):
    (text,) = EXAMPLE.findall(docstring("TeacherServer"))
    with VLLMStandIn(shown["teacher"], shown["tokenizer"]) as server:
        monkeypatch.setattr(
            PUBLIC["TeacherServer"], "__doc__", docstring("TeacherServer").replace("http://localhost:8000", server.url)
        )
        assert run("TeacherServer", shown)["served"].stats.requests > 0


@pytest.mark.slow
def test_every_example_of_a_trainer_trains(shown):
    for name in TRAINERS:
        assert run(name, shown)["trainer"].state.global_step == 1, name


def test_an_example_that_is_wrong_is_found(monkeypatch):
    monkeypatch.setattr(PUBLIC["TopP"], "__doc__", "Example:\n\n```python\n>>> 1 + 1\n3\n```")
    with pytest.raises(AssertionError, match="Expected:"):
        run("TopP", {})


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_begins_with_a_sentence(name):
    first = docstring(name).split("\n\n")[0]
    assert first.rstrip().endswith((".", "`.")) and len(EXAMPLE.findall(docstring(name))) == 1
    made = vars(PUBLIC[name]) if inspect.isclass(PUBLIC[name]) else {"__init__": PUBLIC[name]}
    steps = (made.get(step) for step in ("__init__", "__post_init__"))
    written = [step for step in steps if inspect.isfunction(step) and "lupi_trainer" in step.__code__.co_filename]
    refused = re.findall(r"\braise (\w+)", "".join(map(inspect.getsource, written)))
    assert all(error in docstring(name) for error in refused)


def test_the_twenty_keys_that_matter_come_first():
    """In the groups in which they are listed, among them those of `lupi skd --help` that the configuration has."""
    twenty = [name for names in FIRST.values() for name in names]
    keys = re.findall(r"^        (\w+) \(.*\):$", LUPISKDConfig.__doc__, re.MULTILINE)
    assert len(twenty) == 20 and keys[:20] == twenty
    groups = re.findall(r"^        > Parameters that matter: (.*)$", LUPISKDConfig.__doc__, re.MULTILINE)
    assert groups == list(FIRST)
    own = {field.name for field in fields(LUPISKDConfig)}
    assert {key.name for members in KEYS["skd"].values() for key in members} & own <= set(twenty)
    assert LUPISKDConfig.__doc__.index("[!NOTE]") > LUPISKDConfig.__doc__.index("logging_nan_inf_filter (")
