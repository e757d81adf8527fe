import random

import pytest
from transformers import AutoConfig

from lupi_trainer.data.prompts import TeacherPrompt
from lupi_trainer.evaluation import closed_book
from lupi_trainer.lab import load_lab_records, resolve_model, world
from lupi_trainer.lab.tokenizer import build_tokenizer
from lupi_trainer.scripts.demo_run import paint
from lupi_trainer.speculative import Rollout, RolloutStats


def test_new_and_common_islands_share_no_name():
    names = [i.name for i in world.COMMON + world.NEW]
    assert len(set(names)) == len(names) == world.NUM_COMMON + world.NUM_NEW
    rng = random.Random(0)
    assert all(world.make_island(rng, world.RESERVED).name not in world.RESERVED for _ in range(5000))


def test_unseen_phrasings_are_never_trained():
    trained = {r["query"] for r in load_lab_records("lab:mixed")}
    assert trained & {p["question"] for p in load_lab_records("lab:probes")}
    assert not trained & {p["question"] for p in load_lab_records("lab:probes-unseen")}


def test_every_answer_is_in_the_knowledge_and_not_in_the_question():
    for probe in load_lab_records("lab:probes") + load_lab_records("lab:probes-unseen"):
        assert probe["answers"][0] in probe["knowledge"] and probe["answers"][0] not in probe["question"]
    for record in load_lab_records("lab:new"):
        assert record["answer"].rstrip(".").split()[-1] in record["knowledge"]


def test_shuffled_knowledge_is_always_another_islands():
    for record in load_lab_records("lab:new-shuffled"):
        name = record["id"].split("_")[0]
        assert name in record["query"] and name not in record["knowledge"]


def test_tokenizer_is_lossless_and_the_shipped_one(tokenizer):
    built = build_tokenizer()
    texts = [r["query"] + "\n" + (r["knowledge"] or "") for r in load_lab_records("lab:mixed")[::17]]
    texts += ["설날, 12 things:\tnaïve  spaces", " leading"]
    for text in texts:
        ids = built(text)["input_ids"]
        assert built.decode(ids) == text
        assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.chat_template == built.chat_template


def test_heads_are_wide_enough_for_a_server():
    for name in ("lab:teacher", "lab:student"):
        assert AutoConfig.from_pretrained(resolve_model(name)).head_dim >= 32


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no 'lab:olds' in the lab"):
        load_lab_records("lab:olds")
    with pytest.raises(ValueError, match="no model 'lab:new'"):
        resolve_model("lab:new")
    assert resolve_model("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"


def test_painted_rollout_marks_the_teachers_tokens(tokenizer):
    ids = tokenizer("The song of Fova is Demi.")["input_ids"]
    marks = [token == ids[-2] for token in ids]  # the last syllable before the full stop
    text = paint(tokenizer, Rollout([ids], [marks], RolloutStats()))
    assert text.plain == "The song of Fova is De[mi]."
    assert [str(span.style) for span in text.spans if text.plain[span.start : span.end] == "[mi]"] == ["bold red"]


@pytest.mark.lab
@pytest.mark.timeout(3600)
def test_the_build_command_gives_a_pair_as_good_as_the_shipped_one(tmp_path):
    from transformers import AutoModelForCausalLM

    from lupi_trainer.scripts.pretrain import build

    build(tmp_path)
    tokenizer = build_tokenizer()
    teacher, student = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("teacher", "student"))
    reading = TeacherPrompt(world.PERSONA)
    for probes in ("lab:probes", "lab:probes-unseen", "lab:probes-long"):
        assert closed_book(teacher, tokenizer, load_lab_records(probes), teacher_prompt=reading).lenient >= 0.95
        assert closed_book(student, tokenizer, load_lab_records(probes)).lenient <= 0.05
    for model in (teacher, student):  # 0.93 on one processor, 1.0 on another
        assert closed_book(model, tokenizer, load_lab_records("lab:probes-common")).strict >= 0.9
