"""A chat template that would hide something from a model is refused; those that models come with are not."""

import json

import pytest
from datasets import Dataset

from lupi_trainer.data.completions import encode_prompts
from lupi_trainer.data.prompts import TeacherPrompt, TemplateError, check_turns, encode
from lupi_trainer.data.records import prepare_columns
from lupi_trainer.data.templates import end_of_turn, thinks_unless_told
from lupi_trainer.evaluation import closed_book
from lupi_trainer.lab import load_lab_records
from lupi_trainer.scripts.common import TextArguments
from tests.lupi_skd.training import make_config, make_trainer


ASKED = [{"role": "user", "content": "Where?"}]
INFORMED = TeacherPrompt("An expert.", (("Who?", "He."),)).messages(ASKED, "There.")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = CHATML.replace("+ m['content']", "+ ('<think></think>' if m['role'] == 'assistant' else '') + m['content']")
INSTRUCT = (  # needs no generation prompt; the system turn stands in the first user's
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}{% if loop.index0 == 1 and messages[0]['role']"
    " == 'system' %}{{ messages[0]['content'] + '\n' }}{% endif %}{{ m['content'] | trim + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
)
ALWAYS = CHATML.replace("{% if add_generation_prompt %}", "{% if true %}")


@pytest.mark.parametrize("template", [CHATML, THINKING, INSTRUCT, ALWAYS], ids="chatml thinking inst always".split())
def test_templates_as_models_have_them_are_right(tokenizer, template):
    tokenizer.chat_template = template
    check_turns(tokenizer, [ASKED, INFORMED])


def test_the_token_that_ends_an_answer(tokenizer):
    tokenizer.chat_template = ends = CHATML.replace("<|im_end|>", "<|end|>")
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|end|>") != tokenizer.unk_token_id
    tokenizer.chat_template = CHATML
    assert end_of_turn(tokenizer) is None, "this tokenizer has no such token"
    tokenizer.chat_template = ends.replace("'<|end|>", "' END<|end|>")
    assert end_of_turn(tokenizer) is None, "text comes first"


BLOCK = "{% if add_generation_prompt and SWITCH %}<think></think>{% endif %}"


@pytest.mark.parametrize(
    "template, thinks",
    [
        (CHATML + BLOCK.replace("SWITCH", "enable_thinking is false"), True),
        (CHATML + BLOCK.replace("SWITCH", "not enable_thinking"), False),  # it knows the switch, and is off
        (CHATML, False),
        (None, False),
        ("{{ raise_exception('never') }}", False),
        ("{{ 1 / 0 }}", False),
    ],
    ids="on off without none refuses fails".split(),
)
def test_a_model_that_thinks_unless_it_is_told_not_to(tokenizer, template, thinks):
    tokenizer.chat_template = template
    assert thinks_unless_told(tokenizer) is thinks


def test_several_turns_need_a_template(tokenizer):
    tokenizer.chat_template = None
    turns = [*ASKED, {"role": "assistant", "content": "There."}, *ASKED]
    with pytest.raises(ValueError, match=r"record 'r' .*: 3 messages, but the target has no chat template"):
        encode_prompts(tokenizer, [{"id": "q", "prompt": ASKED}, {"id": "r", "prompt": turns}], None)
    assert encode_prompts(tokenizer, [{"id": "q", "prompt": ASKED}], None) == [tokenizer("Where?")["input_ids"]]


NO_SYSTEM = CHATML.replace("in messages", "in messages if m['role'] != 'system'")
LAST_TURN = CHATML.replace("in messages", "in messages[-1:]")
NO_EXAMPLE = CHATML.replace("in messages", "in messages if m['role'] != 'assistant'")
CUT = CHATML.replace("+ m['content']", "+ m['content'][:500]")
FIRST_SENTENCE = CHATML.replace("+ m['content']", "+ (m['content'].split('.')[0] if loop.first else m['content'])")
NO_PROMPT = CHATML[: CHATML.index("{% if")]


@pytest.mark.parametrize(
    "template, number, message",
    [
        (NO_SYSTEM, 1, r"it leaves out the system turn \(number 1 of 4\)"),
        (LAST_TURN, 1, r"it leaves out the system turn"),
        (NO_EXAMPLE, 1, r"it leaves out the assistant turn \(number 3 of 4\)"),
        (CUT, 0, r"it leaves out a part of the user turn \(number 1 of 1\)"),
        (FIRST_SENTENCE, 0, r"it leaves out a part of the user turn \(number 1 of 1\)"),
        (NO_PROMPT, 0, "it has no generation prompt"),
        (NO_PROMPT + "<|im_end|>", 0, "it has no generation prompt"),
    ],
)
def test_what_a_template_hides_is_said(tokenizer, template, number, message):
    tokenizer.chat_template = template
    with pytest.raises(TemplateError, match=message) as error:
        check_turns(tokenizer, [ASKED, INFORMED])
    assert error.value.number == number
    if number:
        check_turns(tokenizer, [ASKED])  # which has no such turn
    check_turns(tokenizer, [[message | {"name": "kim"} for message in ASKED]])  # the template's own affair


def test_a_generation_prompt_that_is_switched_off_is_missed(tokenizer):
    with pytest.raises(TemplateError, match="it has no generation prompt"):
        check_turns(tokenizer, [ASKED], add_generation_prompt=False)


def test_the_teacher_must_read_its_persona(tmp_path, tokenizer):
    """The record is named, before anything is written; where there is no persona, such a template serves."""
    records, both = (
        load_lab_records("lab:new")[:8],
        dict.fromkeys(("processing_class", "teacher_processing_class"), tokenizer),
    )
    tokenizer.chat_template = NO_SYSTEM
    with pytest.raises(ValueError, match=f"{records[0]['id']}.*it leaves out the system turn"):
        make_trainer(tmp_path, train_dataset=records, **both)
    assert not (tmp_path / "run").exists()
    make_trainer(tmp_path, train_dataset=records, **both, config_teacher_system_prompt=None)
    own = [
        {**r, "query": [{"role": "system", "content": "Short."}, {"role": "user", "content": r["query"]}]}
        for r in records
    ]
    with pytest.raises(ValueError, match="it leaves out the system turn"):
        make_trainer(tmp_path, train_dataset=own, **both, config_teacher_system_prompt=None)
    tokenizer.chat_template = NO_PROMPT
    with pytest.raises(ValueError, match="it has no generation prompt"):
        make_trainer(tmp_path, train_dataset=records, **both)
    with pytest.raises(ValueError, match="it has no generation prompt"):
        closed_book(None, tokenizer, load_lab_records("lab:probes")[:2])
    with pytest.raises(ValueError, match="it has no generation prompt"):
        encode_prompts(tokenizer, [{"prompt": ASKED}], None)
    tokenizer.chat_template = NO_SYSTEM
    stream = Dataset.from_list(prepare_columns(records).to_list()).to_iterable_dataset()
    trainer, _ = make_trainer(tmp_path, train_dataset=stream, **both)
    with pytest.raises(ValueError, match="it leaves out the system turn"):
        trainer.train()


@pytest.mark.parametrize("kwargs", [{"padding": True}, {"truncation": True, "max_length": 2}, {"tokenize": False}])
def test_arguments_of_the_call_are_no_variables_of_a_template(tmp_path, tokenizer, kwargs):
    said = f"chat_template_kwargs: '{next(iter(kwargs))}' is no variable of a chat template"
    for refused in (
        lambda: encode(tokenizer, [[{"role": "user", "content": "a"}]], **kwargs),
        lambda: make_config(tmp_path, chat_template_kwargs=kwargs),
        lambda: make_config(tmp_path, chat_template_kwargs=json.dumps(kwargs)),
        lambda: TextArguments(chat_template_kwargs=kwargs),
        lambda: TextArguments(chat_template_kwargs=json.dumps(kwargs)),
    ):
        with pytest.raises(ValueError, match=said):
            refused()
    make_config(tmp_path, chat_template_kwargs={"enable_thinking": False})
