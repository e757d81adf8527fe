import json

import pytest

from lupi_trainer.data.prompts import TeacherPrompt, encode, load_few_shot_examples


PROMPT = [{"role": "user", "content": "What is {it}?"}]


def test_every_role_is_kept():
    teacher = TeacherPrompt("An expert.", (("q1", "a1"), ("q2", "a2")))
    assert teacher.messages(PROMPT, "It is {x}.") == [
        {"role": "system", "content": "An expert."},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "a2"},
        {"role": "user", "content": "[Background Knowledge]\nIt is {x}.\n\nWhat is {it}?"},
    ]


def test_without_knowledge_the_teacher_sees_what_the_student_sees():
    assert TeacherPrompt("An expert.", (("q", "a"),)).messages(PROMPT, None) == PROMPT


def test_earlier_turns_and_a_system_turn_of_the_prompt_are_kept():
    prompt = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Why?"},
    ]
    messages = TeacherPrompt("An expert.").messages(prompt, "Because.")
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == "An expert.\n\nBe short."
    assert messages[1:3] == prompt[1:3]
    assert messages[-1]["content"].endswith("Because.\n\nWhy?")


def test_knowledge_that_looks_like_a_slot_is_left_alone():
    content = TeacherPrompt().messages(PROMPT, "{query} {privileged_context}")[-1]["content"]
    assert content == "[Background Knowledge]\n{query} {privileged_context}\n\nWhat is {it}?"


@pytest.mark.parametrize("template", ["{query}", "{privileged_context}", "{query}{query}{privileged_context}"])
def test_a_template_needs_both_slots_once(template):
    with pytest.raises(ValueError, match="exactly once"):
        TeacherPrompt(knowledge_template=template)


def test_few_shots_from_list_text_or_file(tmp_path):
    examples = [{"query": "q", "answer": "a"}]
    path = tmp_path / "shots.json"
    path.write_text(json.dumps(examples))
    for source in (examples, json.dumps(examples), str(path)):
        assert load_few_shot_examples(source) == (("q", "a"),)
    assert load_few_shot_examples(None) == ()
    with pytest.raises(ValueError, match="example 1"):
        load_few_shot_examples([*examples, {"query": "q"}])


def test_encode_ends_where_the_assistant_begins(tokenizer):
    ids = encode(tokenizer, [PROMPT, TeacherPrompt("An expert.").messages(PROMPT, "It.")])
    assert [tokenizer.decode(row[-1:]) for row in ids] == ["<|assistant|>"] * 2
    assert len(ids[0]) < len(ids[1])
