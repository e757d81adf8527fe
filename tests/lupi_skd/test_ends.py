"""A text ends where either model's does, and a student that would not learn to stop is said."""

import logging

import pytest
from transformers import GenerationConfig

from lupi_trainer.data.templates import end_of_turn
from lupi_trainer.models.generation import common_ends
from tests.lupi_skd.training import make_trainer


OTHER = "{% for m in messages %}{{ '<|user|>' + m['content'] + SEP }}{% endfor %}"


def completions(trainer) -> list[list[int]]:
    trainer.model.train()
    inputs = trainer.roll_out([trainer.train_dataset[i] for i in range(8)])
    return [ids[mask.bool()].tolist() for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"])]


@pytest.mark.parametrize("ends", ["of the model", "of the template", "of the tokenizer"])
def test_a_text_ends_where_the_teacher_ends_its_turn(tmp_path, teacher, tokenizer, ends, caplog):
    """A frequent token of the lab is an end of the teacher's alone."""
    trainer, _ = make_trainer(tmp_path / "a", teacher_model=teacher)
    assert trainer.eos_token_ids == [tokenizer.eos_token_id] and not caplog.records
    before = completions(trainer)
    often = before[0][3]
    other = tokenizer.__class__.from_pretrained(tokenizer.name_or_path)
    if ends == "of the model":
        teacher.generation_config.eos_token_id = [tokenizer.eos_token_id, often]
    elif ends == "of the template":
        often = tokenizer.convert_tokens_to_ids("<|system|>")
        other.chat_template = OTHER.replace("SEP", "'<|system|>'")
    else:
        other.eos_token = tokenizer.convert_ids_to_tokens(often)
    with caplog.at_level(logging.WARNING):
        trainer, _ = make_trainer(
            tmp_path / "b",
            teacher_model=teacher,
            teacher_processing_class=other,
            config_teacher_chat_template="student",
        )
    assert trainer.eos_token_ids == sorted([tokenizer.eos_token_id, often])
    name = tokenizer.convert_ids_to_tokens(often)
    assert f"texts end at {name!r} ({often}) too" in caplog.text and "does not stop there" in caplog.text
    cut = [ids[: ids.index(often) + 1] if often in ids else ids for ids in before]
    assert completions(trainer) == cut and (cut != before) == (ends != "of the template")


def test_a_template_s_end_of_turn_is_found_where_it_is_a_token(tokenizer, student, caplog):
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    for separator, found in (
        ("' \n<|pad|>\n'", tokenizer.pad_token_id),
        ("' end <|pad|>'", None),
        ("''", None),
        ("raise_exception('no')", None),
    ):
        tokenizer.chat_template = OTHER.replace("SEP", separator)
        assert end_of_turn(tokenizer) == found
    tokenizer.chat_template = OTHER.replace("SEP", "'<|pad|>'")
    assert common_ends(student, tokenizer, student) == sorted([tokenizer.eos_token_id, tokenizer.pad_token_id])
    assert "texts end at '<|pad|>' (1) too" in caplog.text  # the student's own template ends turns with it
    caplog.clear()
    student.generation_config.eos_token_id = [1, 2]
    assert common_ends(student, tokenizer, GenerationConfig(eos_token_id=[9000]), vocab_size=568) == [1, 2]
    assert not caplog.records  # what neither can write is no end
