"""What the pages name exists: keys of recipes with their values, flags, and the answers to twenty questions."""

import argparse
import functools
import re

import pytest
import yaml

from lupi_trainer.cli import make_parser
from lupi_trainer.scripts.dry_run.key_types import key_types
from lupi_trainer.scripts.key_help import KEYS
from tests.site.pages import DOCS, PAGES, name_of


KEY = re.compile(r"`(\w+): ([^`]+)`")
FLAG = re.compile(r"(?<![\w-])--([a-z][\w]*)\b(?!-)")
# of `lupi` before it reads a recipe, of `teachers`, vLLM, torchrun and accelerate launch; and placeholders
OTHERS = {
    "check",
    "tiny",
    "enable_thinking",
    "middleware",
    "port",
    "served",
    "max",
    "gpu_ids",
    "num_processes",
    "config_file",
    "KEY",
}
QUESTIONS = re.findall(
    r"^\| (.+?\?.*?) \| (.*?) \| \[.*?\]\((.*?)\) \|$", (DOCS / "start/questions.md").read_text(), re.M
)


@functools.cache
def known_keys() -> dict:
    return {name: key for command in KEYS for name, key in key_types(command).items()}


@functools.cache
def known_flags() -> set[str]:
    """Flags of all commands, and of their actions."""
    found, parsers = set(), [make_parser()]
    while parsers:
        for action in parsers.pop()._actions:
            found |= {option.lstrip("-") for option in action.option_strings}
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_exist_and_may_have_the_values_that_are_named(page):
    text = page.read_text(encoding="utf-8")
    for name, value in KEY.findall(text):
        assert name in known_keys(), name
        choices = known_keys()[name].choices
        assert not choices or str(yaml.safe_load(value)) in map(str, choices) or value in map(str, choices), (
            name,
            value,
        )
    for flag in FLAG.findall(text):
        assert flag in known_keys() or flag in known_flags() or flag in OTHERS, flag


def test_twenty_questions_are_answered_at_the_top_of_a_page():
    """The first 2,500 characters, and so the first screen or two, have every word that the answer in short marks."""
    assert len(QUESTIONS) == 20 == len({question for question, _, _ in QUESTIONS})
    for question, answer, page in QUESTIONS:
        top = (DOCS / "start" / page).read_text(encoding="utf-8")[:2500]
        marked = re.findall(r"`(.+?)`", answer)
        assert marked and all(word in top for word in marked), (question, [word for word in marked if word not in top])
