"""Prompts of student and teacher must end so that an answer begins with the same token after both."""

from contextlib import nullcontext
from functools import cache
from importlib.resources import files

import pytest

from lupi_trainer.data.prompt_ends import check_prompt_ends
from lupi_trainer.data.prompts import TeacherPrompt, Words, encode, teacher_words
from lupi_trainer.data.special_tokens import SpecialTokens
from lupi_trainer.lab.tokenizer import build_tokenizer


def template(turn: str, prompt: str, answer: str = "", last: str = "") -> str:
    """Turns as `turn` (with ROLE and TEXT), those of assistants with `answer` before the text, and the last one with
    `last` besides; and a generation prompt."""
    lead = "{% if m['role'] == 'assistant' %}" + answer + "{% if loop.last %}" + last + "{% endif %}{% endif %}"
    turn = turn.replace("ROLE", "{{ m['role'] }}").replace("TEXT", lead + "{{ m['content'] }}")
    return "{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}" + prompt + "{% endif %}"


EMPTY = "<think>{{ '\\n\\n' }}</think>{{ '\\n\\n' }}"
TURN, HEADER = "<|im_start|>ROLE{{ '\\n' }}TEXT<|im_end|>{{ '\\n' }}", "<|im_start|>assistant{{ '\\n' }}"
TEMPLATES = {
    "chatml": template(TURN, HEADER),
    "zephyr": template("<|ROLE|>{{ '\\n' }}TEXT</s>{{ '\\n' }}", "<|assistant|>{{ '\\n' }}"),
    "mistral": template(
        "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}TEXT{% endif %}", ""
    ).replace("{% if m['role'] == 'assistant' %}", "{% if m['role'] == 'assistant' %}{{ ' ' }}"),
    # thinks unless `enable_thinking` is false: then the prompt has an empty block, as the last answer always has
    "qwen3": template(TURN, HEADER + "{% if enable_thinking is false %}" + EMPTY + "{% endif %}", last=EMPTY),
    "qwen3-2507": template(TURN, HEADER + "<think>{{ '\\n' }}", last=EMPTY),  # always thinks, and begins to
    "r1": template("<|ROLE|>TEXT", "<|assistant|><think>{{ '\\n' }}"),  # the same; answers are kept without thoughts
    "v3.1": template("<|ROLE|>TEXT", "<|assistant|>{{ '<think>' if thinking else '</think>' }}", "</think>"),
    "smollm3": template(  # a persona may switch it off
        TURN, HEADER + "{% if '/no_think' in messages[0]['content'] %}" + EMPTY + "{% endif %}"
    ),
    "glm": template("<|ROLE|>TEXT", "<|assistant|><think></think>", "<think></think>{{ '\\n' }}"),
    "bracket": template("<|ROLE|>TEXT", "<|assistant|>[THINK]"),
    "no prompt": template(TURN, ""),
    "other role": template(TURN, "<|im_start|>model{{ '\\n' }}"),
    "no answers": template(TURN.replace("TEXT", "{{ m['content'] if m['role'] != 'assistant' }}"), HEADER),
    "no answers, own header": template("<|ROLE|>{{ m['content'] if m['role'] != 'assistant' }}", "<|assistant|>"),
}
OFF, ON = {"enable_thinking": False}, {"enable_thinking": True}


@cache
def tokenizer_of(name: str):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def words(name: str, kwargs: dict | None = None) -> Words:
    return Words(tokenizer_of(name), kwargs or {})


@pytest.mark.parametrize(
    "student, teacher",
    [
        (("chatml",), ("zephyr",)),  # each its own header, after which an answer begins at once
        (("zephyr",), ("chatml",)),
        (("mistral",), ("mistral",)),
        (("qwen3", OFF), ("qwen3", OFF)),
        (("qwen3", ON), ("qwen3", {})),
        (("qwen3", OFF), ("v3.1", {"thinking": False})),  # both have thought, each in its own words
        (("r1",), ("r1",)),
        (("no answers",), ("no answers",)),
        (("no answers",), ("chatml",)),
        (("no prompt",), ("no prompt",)),  # which is refused elsewhere
    ],
    ids=lambda pair: " ".join(map(str, pair)),
)
def test_ends_after_which_an_answer_begins_alike_are_right(student, teacher):
    check_prompt_ends(words(*student), TeacherPrompt("An expert.", (("Q", "A"),), words=words(*teacher)))


@pytest.mark.parametrize(
    "student, teacher, said",
    [
        (("qwen3", OFF), ("qwen3", ON), "the student's has a closed thinking block, the teacher's no thinking block"),
        (("chatml",), ("qwen3", OFF), "the student's has no thinking block, the teacher's a closed thinking block"),
        (("chatml",), ("qwen3", ON), r"the teacher's template writes '<think>\n\n</think>\n\n' between this and an"),
        (("qwen3", OFF), ("qwen3-2507",), "the student's has a closed thinking block, the teacher's an open thinking"),
        (("r1",), ("v3.1", {"thinking": True}), "'</think>' before an answer, and '<think>' in"),
        (("chatml",), ("bracket",), "the teacher's an open thinking block"),
        (("glm",), ("qwen3", OFF), r"the student's template writes '\n' between this and an answer"),
        (("mistral",), ("chatml",), "the student's template writes ' ' between this and an answer"),
        (("chatml",), ("no prompt",), r"writes '<|im_start|>assistant\n' between this and an answer"),
        (("chatml",), ("chatml", {"add_generation_prompt": False}), "the teacher's template writes '<|im_start|>"),
        (("chatml",), ("other role",), r"'assistant\n' before an answer, and 'model\n' in the prompt"),
        (("chatml",), ("no answers, own header",), "where an answer begins cannot be seen"),
    ],
    ids=lambda pair: " ".join(map(str, pair)) if isinstance(pair, tuple) else "",
)
def test_another_first_token_is_refused_with_both_ends(student, teacher, said):
    own, its = words(*student), words(*teacher)
    with pytest.raises(ValueError) as error:
        check_prompt_ends(own, TeacherPrompt(words=its))
    assert said in str(error.value)
    for one in (own, its):
        asked = {"add_generation_prompt": True, **one.template_kwargs}
        text = one.tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False, **asked)
        assert repr(text.partition("ab")[2]) in str(error.value)


@pytest.mark.parametrize("family", ["qwen3", "glm4moe"])
def test_templates_of_families_as_they_are(family):
    """TRL's copies: thinking on and off is told apart, and each alone is right."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = files("trl").joinpath(f"chat_templates/{family}.jinja").read_text(encoding="utf-8")
    for student in (OFF, ON):
        for teacher in (OFF, ON):
            with nullcontext() if student == teacher else pytest.raises(ValueError, match="closed thinking block"):
                check_prompt_ends(
                    Words(tokenizer, student), TeacherPrompt("An expert.", words=Words(tokenizer, teacher))
                )


def test_a_persona_that_switches_thinking_off_is_seen():
    own = words("smollm3")
    check_prompt_ends(own, TeacherPrompt("An expert.", words=own))
    with pytest.raises(ValueError, match="the student's has no thinking block, the teacher's a closed thinking block"):
        check_prompt_ends(own, TeacherPrompt("An expert. /no_think", words=own))
    tail = TeacherPrompt("An expert.", knowledge_template="{query} Know: {privileged_context}", words=own)
    check_prompt_ends(words("zephyr"), tail)  # what follows the question is no end


def test_what_a_template_refuses_is_left_to_the_records():
    own, its = words("chatml"), Words(build_tokenizer())
    for refusal in ("{{ raise_exception('no') }}", "{{ 1 / 0 }}"):
        its.tokenizer.chat_template = refusal
        check_prompt_ends(own, TeacherPrompt(words=its))


def test_the_teachers_words_are_its_own_where_they_are_known():
    own, its = words("qwen3", OFF), words("zephyr").tokenizer
    assert teacher_words(own) == own == teacher_words(own, its, "student")
    assert teacher_words(own, its) == Words(its, OFF) and teacher_words(own, its, "own", {}) == Words(its, {})
    asked = [[{"role": "user", "content": "Where?"}]]
    assert teacher_words(own, its).encode(asked) == encode(its, asked) != own.encode(asked)
    bare = build_tokenizer()
    bare.chat_template = None
    assert teacher_words(own, bare, template_kwargs=ON) == Words(own.tokenizer, ON)


def test_the_control_tokens_of_both_tokenizers_are_refused():
    own, its = build_tokenizer(), build_tokenizer()
    its.add_special_tokens({"extra_special_tokens": ["[INST]"]})
    assert SpecialTokens(own, other=its).found("a [INST] b <|end|>") == "<|end|>"
    assert SpecialTokens(own, other=its).found("a [INST] b") == "[INST]"
    assert SpecialTokens(own, other=own).found("a [INST] b") is None
    assert SpecialTokens(own, allowed=True, other=its).found("a [INST] b") is None
