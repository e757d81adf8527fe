import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from lupi_trainer.data.answers import contains
from lupi_trainer.data.prompts import TeacherPrompt, encode
from lupi_trainer.evaluation import closed_book, generate_answers, score_answer
from lupi_trainer.lab import load_lab_records, world
from lupi_trainer.speculative.runners import packed_weights


@pytest.mark.parametrize(
    "text, answer, found",
    [
        ("The capital is Tamo.", "tamo", True),
        ("The capital is Tamora.", "Tamo", False),
        ("In 1,443 or so", "1443", True),
        ("훈민정음은 세종대왕이 만들었습니다.", "세종대왕", True),
        ("훈민정음은 세종 대왕이 만들었습니다.", "세종대왕", True),
        ("훈민정음은 성종이 만들었습니다.", "세종", False),
        ("법은 3-MCPD를 정합니다.", "3-MCPD", True),
        ("1443년에 만들었습니다.", "1443", True),
        ("11443년에 만들었습니다.", "1443", False),
        ("11443년에 만들었습니다.", "1443년", False),
        ("1,443년 전입니다.", "443년", False),
        ("1,443년 전입니다.", "1443년", True),
        ("130일을 주었습니다.", "30일", False),
        ("130일을 주었습니다.", "13", False),
        ("고려의 13대 임금입니다.", "3대", False),
        ("11월 4일입니다.", "1월 4일", False),
        ("1월4일입니다.", "1월 4일", True),
        ("그는 연구자입니다.", "구자", False),
        ("1892년부터입니다.", "2년", False),
        ("제3대 임금입니다.", "3대", True),
        ("‘구자’였습니다.", "구자", True),
        ("그것은 전통-판소리입니다.", "판소리", True),
        ("他住在北京。", "北京", True),
        ("They gave 43,000 won.", "43,000", True),
        ("They gave 43000 won.", "43,000", True),
        ("They gave 1,443 won.", "443", False),
        ("It was Jeong Dojeon.", "Jeong Do-jeon", True),
        ("It was Jeong Do\u2011jeon.", "Jeong Dojeon", True),
        ("It was Jeong Do jeon's.", "Jeong Do-jeon", True),
        ("They call it guk-ganjang.", "gukganjang", True),
        ("The era was In\u2019an.", "Inan", True),
        ("In an era of peace", "In'an", False),
        ("It was Korea's.", "Korea", True),
        ("It was Gyeongbok-gung's gate.", "Gyeongbokgung", True),
        ("It was 20-20.", "2020", False),
        ("It was Do-jeonghwan.", "Do-jeong", False),
        ("Ｓｅｏｕｌ", "Seoul", True),
        ("anything", "...", False),
    ],
)
def test_contains_matches_words(text, answer, found):
    assert contains(text, answer) is found


@pytest.mark.parametrize(
    "text, finished, marks",
    [
        ("It is Tamo.", True, (True, True)),
        ("It is Tamo.", False, (False, True)),
        ("I do not know. Perhaps Tamo.", True, (False, True)),
        ("It is Gora.", True, (False, False)),
        ("", True, (False, False)),
    ],
)
def test_strict_and_lenient(text, finished, marks):
    assert score_answer(text, ["Kuzu", "Tamo"], finished=finished) == marks


def test_batched_answers_equal_single_ones(student, tokenizer):
    probes = load_lab_records("lab:probes-long")[:3] + load_lab_records("lab:probes-common")[:5]
    prompts = encode(tokenizer, [[{"role": "user", "content": p["question"]}] for p in probes])
    together = generate_answers(student, tokenizer, prompts, max_new_tokens=56)
    alone = [generate_answers(student, tokenizer, [p], max_new_tokens=56)[0] for p in prompts]
    assert together == alone
    assert generate_answers(student, tokenizer, prompts, max_new_tokens=3, batch_size=2)[0][1] is False


def test_a_prompts_last_states_alone_reach_the_lm_head_one_behind_another(student, tokenizer, monkeypatch):
    """Else torch multiplies every row with a copy of the head. Larger layers on a CPU are packed meanwhile."""
    seen = []
    monkeypatch.setattr(packed_weights, "_SMALLEST", 0)
    prompts = [
        encode(tokenizer, [{"role": "user", "content": p["question"]}]) for p in load_lab_records("lab:probes")[:2]
    ]
    model = get_peft_model(copy.deepcopy(student), LoraConfig(r=2, target_modules="all-linear"))

    def look(head, inputs):
        kept = [name for name, module in model.named_modules() if "merged_lora" in vars(module)]
        seen.append((inputs[0].shape[1], inputs[0].is_contiguous(), len(kept)))

    model.get_output_embeddings().register_forward_pre_hook(look)
    assert generate_answers(model, tokenizer, prompts, max_new_tokens=3) == generate_answers(
        student, tokenizer, prompts, max_new_tokens=3
    )
    assert {states[:2] for states in seen} == {(1, True)} and all(kept for *_, kept in seen)


def test_answers_are_greedy_whatever_the_models_own_configuration_says(teacher, tokenizer):
    """Also of a model with an adapter, which has a configuration of its own and hands it on."""
    probes = load_lab_records("lab:probes-reading")[:3]
    adapted = get_peft_model(copy.deepcopy(teacher), LoraConfig(r=2, task_type="CAUSAL_LM"))
    plain = closed_book(teacher, tokenizer, probes, teacher_prompt=TeacherPrompt()).answers
    assert all(answer["finished"] for answer in plain)
    words = tokenizer(plain[0]["answer"], add_special_tokens=False)["input_ids"]
    settings = [{"repetition_penalty": 2.0}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 60}, {"min_length": 300}]
    settings += [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"max_time": 1e-4}, {"max_length": 2}]
    settings += [{"stop_strings": ["."]}, {"return_dict_in_generate": True}, {"do_sample": True, "temperature": 9.0}]
    settings += [{"suppress_tokens": words}, {"bad_words_ids": [words[:1]]}, {"forced_eos_token_id": words[0]}]
    settings += [{"forced_bos_token_id": words[3]}, {"exponential_decay_length_penalty": (1, 9.0)}]
    settings += [{"sequence_bias": [[words[:1], -99.0]]}, {"begin_suppress_tokens": words}, {"guidance_scale": 4.0}]
    settings += [{"renormalize_logits": True, "prompt_lookup_num_tokens": 3}, {"cache_implementation": "static"}]
    for model in (teacher, adapted):
        for changed in settings:
            model.generation_config = own = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
            vars(own).update(changed)
            asked = closed_book(model, tokenizer, probes, teacher_prompt=TeacherPrompt()).answers
            assert asked == plain, changed
            assert model.generation_config is own
    teacher.config.repetition_penalty = 2.0  # where it stood in old models
    assert closed_book(teacher, tokenizer, probes, teacher_prompt=TeacherPrompt()).answers == plain


def test_answers_end_where_the_models_positions_do(student, tokenizer):
    prompts = [[5] * 3, [5] * 7]
    student.config.max_position_embeddings, student.generation_config.eos_token_id = 9, None
    tokenizer.eos_token, wanted = None, student.generate(torch.tensor(prompts[:1]), max_new_tokens=2, do_sample=False)
    assert generate_answers(student, tokenizer, prompts, max_new_tokens=40)[0] == (
        tokenizer.decode(wanted[0, 3:], skip_special_tokens=True).strip(),
        False,
    )
    with pytest.raises(ValueError, match="question 1 has 9 tokens, and the model reads and writes 9"):
        generate_answers(student, tokenizer, [[5], [5] * 9], max_new_tokens=40)


def test_the_teacher_reads_and_the_student_cannot_know(student, teacher, tokenizer):
    probes = load_lab_records("lab:probes")
    open_book = closed_book(teacher, tokenizer, probes, teacher_prompt=TeacherPrompt(world.PERSONA))
    assert open_book.strict >= 0.95
    assert closed_book(student, tokenizer, probes).lenient <= 0.05
    assert closed_book(student, tokenizer, load_lab_records("lab:probes-common")).strict >= 0.95


def test_open_book_without_knowledge_is_an_error(teacher, tokenizer):
    probe = {"question": "q?", "answers": ["a"], "record_id": "x"}
    with pytest.raises(ValueError, match="'x' has no `knowledge`"):
        closed_book(teacher, tokenizer, [probe], teacher_prompt=TeacherPrompt())
