"""The teacher is asked in the words of its own chat template; a different first token is refused."""

import json

import pytest

from lupi_trainer.evaluation import closed_book, generate_answers
from lupi_trainer.lab import load_lab_records, world
from lupi_trainer.planning.lengths import find_lengths
from lupi_trainer.scripts import sdft
from lupi_trainer.scripts.dry_run.records import check_skd
from lupi_trainer.scripts.dry_run.report import Report
from lupi_trainer.scripts.lupi_skd import make_parser
from lupi_trainer.speculative import TopK, skd_rollout
from tests.conftest import lab
from tests.lupi_skd.training import make_config, make_trainer


ASKED = [{"role": "user", "content": "What is the capital of Fova?"}]
RECORDS = [*load_lab_records("lab:new")[:3], {"query": ASKED[0]["content"], "knowledge": None}]
THINKS = "{%- if add_generation_prompt and think -%}<think>{%- endif -%}"


def verbose(tokenizer):
    """Turns end with a line's end besides, before which a variable of the template puts dots."""
    own = lab("AutoTokenizer", "lab:student")
    own.chat_template = (
        tokenizer.chat_template.replace("<|end|>'", "<|end|>' + ('...' if dots else '') + '\n'") + THINKS
    )
    return own


def read(trainer) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Tokens of the student's prompts, of the teacher's, and of the texts, of one batch."""
    trainer.model.train()
    inputs = trainer.roll_out([trainer.train_dataset[i] for i in range(4)])
    names = ("prompt", "teacher_prompt", "completion")
    return tuple([i[m.bool()].tolist() for i, m in zip(inputs[f"{n}_ids"], inputs[f"{n}_mask"])] for n in names)


@pytest.mark.parametrize("kwargs", [None, {"dots": True}], ids=["", "dots"])
def test_each_model_reads_its_own_words(tmp_path, student, teacher, tokenizer, kwargs):
    """Prompts are those of the two templates, of records with knowledge and without; texts are of these prompts."""
    own = verbose(tokenizer)
    trainer, _ = make_trainer(
        tmp_path,
        teacher_model=teacher,
        train_dataset=RECORDS,
        teacher_processing_class=own,
        config_chat_template_kwargs={"dots": False},
        config_teacher_chat_template_kwargs=kwargs,
    )
    prompts, teacher_prompts, texts = read(trainer)

    def written(tokenizer, conversation, **kwargs) -> list[int]:
        return tokenizer.apply_chat_template(conversation, add_generation_prompt=True, **kwargs)["input_ids"]

    rows = [trainer.train_dataset[i] for i in range(4)]
    told = [trainer.teacher_prompt.messages(row["prompt"], row["privileged_context"]) for row in rows]
    assert prompts == [written(tokenizer, row["prompt"]) for row in rows]
    assert teacher_prompts == [written(own, messages, **(kwargs or {})) for messages in told]
    assert len(teacher_prompts[3]) > len(prompts[3])  # without knowledge, too
    rollout = skd_rollout(
        student,
        teacher,
        prompts,
        teacher_prompts,
        max_new_tokens=12,
        gamma=4,
        acceptance=TopK(5, 0.05),
        eos_token_id=trainer.eos_token_ids,
        seed=trainer.args.seed << 32,
        vocab_size=trainer.shared_vocab_size,
    )
    assert texts == rollout.completion_ids
    probe = load_lab_records("lab:probes")[:1]
    trainer.open_book_probes = probe
    assert trainer.ask_teacher()[1] == 1
    broken = lab("AutoTokenizer", "lab:student")
    broken.chat_template = "{{ raise_exception('the student\\'s') }}"
    said = closed_book(teacher, broken, probe, teacher_prompt=trainer.teacher_prompt, max_new_tokens=4)
    ids = written(
        own,
        trainer.teacher_prompt.messages([{"role": "user", "content": probe[0]["question"]}], probe[0]["knowledge"]),
        **(kwargs or {}),
    )
    assert said.answers[0]["answer"] == generate_answers(teacher, own, [ids], max_new_tokens=4)[0][0]


def test_the_students_words_or_no_others(tmp_path, teacher, tokenizer):
    """The student's template on request, and where the teacher has none; its variables may be the teacher's alone."""
    own, bare = verbose(tokenizer), lab("AutoTokenizer", "lab:student")
    bare.chat_template = None
    base = {"teacher_model": teacher, "train_dataset": RECORDS}
    wanted = read(make_trainer(tmp_path / "a", **base)[0])
    student = make_trainer(
        tmp_path / "b", **base, teacher_processing_class=own, config_teacher_chat_template="student"
    )[0]
    assert read(student) == wanted == read(make_trainer(tmp_path / "c", **base, teacher_processing_class=bare)[0])
    student = make_trainer(
        tmp_path / "d",
        **base,
        processing_class=own,
        config_teacher_chat_template="student",
        config_teacher_chat_template_kwargs={"dots": True},
    )[0]
    prompts, teacher_prompts, _ = read(student)
    assert "..." not in own.decode(prompts[3]) and "..." in own.decode(teacher_prompts[3])


def test_a_different_first_token_is_refused_before_anything_is_written(tmp_path, tokenizer):
    own = verbose(tokenizer)
    asked = {
        "train_dataset": RECORDS,
        "processing_class": own,
        "teacher_processing_class": own,
        "config_teacher_chat_template_kwargs": {"think": True},
    }
    with pytest.raises(
        ValueError, match="the student's has no thinking block, the teacher's an open thinking block"
    ) as e:
        make_trainer(tmp_path, **asked)
    assert r"'<|end|>\n<|assistant|>'" in str(e.value) and r"'<|end|>\n<|assistant|><think>'" in str(e.value)
    assert not (tmp_path / "run").exists()
    trainer, _ = make_trainer(tmp_path, **asked, config_allow_different_prompt_ends=True)
    assert own.decode(read(trainer)[1][3]).endswith("<|assistant|><think>")


def test_records_spell_out_no_control_token_of_the_teachers(tmp_path, tokenizer):
    own = verbose(tokenizer)
    own.add_special_tokens({"extra_special_tokens": ["?"]})  # for the student a token as any
    with pytest.raises(ValueError, match=r"its text holds the special token '\?'"):
        make_trainer(tmp_path, train_dataset=RECORDS, teacher_processing_class=own)


def test_keys_are_checked(tmp_path):
    assert make_config(tmp_path, teacher_chat_template_kwargs='{"a": 1}').teacher_chat_template_kwargs == {"a": 1}
    with pytest.raises(ValueError, match="teacher_chat_template_kwargs: 'padding' is no variable of a chat template"):
        make_config(tmp_path, teacher_chat_template_kwargs={"padding": True})
    with pytest.raises(ValueError, match=r"teacher_chat_template must be one of \['own', 'student'\], got 'teacher'"):
        make_config(tmp_path, teacher_chat_template="teacher")


def test_sdft_writes_both_prompts_with_one_template():
    flags = [
        "--model_name_or_path",
        "lab:student",
        "--dataset_name",
        "lab:new",
        "--bf16",
        "false",
        "--use_cpu",
        "true",
    ]
    arguments = make_parser().parse_args_and_config([*flags, "--teacher_chat_template_kwargs", '{"a": 1}'])
    with pytest.raises(ValueError, match="with SDFTTrainer, both sides read one template: leave out teacher_chat_te"):
        sdft.build_trainer(*arguments, {})


def test_a_plan_and_a_dry_run_read_the_teachers_words(tmp_path, tokenizer, teacher, capsys):
    own = verbose(tokenizer)
    teacher.save_pretrained(tmp_path / "teacher")
    own.save_pretrained(tmp_path / "teacher")
    records = tmp_path / "records.json"
    records.write_text(json.dumps(RECORDS))
    recipe = {
        "model_name_or_path": "lab:student",
        "teacher_model_name_or_path": str(tmp_path / "teacher"),
        "dataset_name": str(records),
        "teacher_system_prompt": world.PERSONA,
        "teacher_chat_template_kwargs": {"dots": True},
    }
    trainer, _ = make_trainer(
        tmp_path,
        teacher_model=teacher,
        teacher_processing_class=own,
        train_dataset=RECORDS,
        config_teacher_chat_template_kwargs={"dots": True},
    )
    longest = max(map(len, read(trainer)[1]))
    assert find_lengths(lambda key, default=None: recipe.get(key, default)).teacher == longest
    flags = [
        f
        for key, value in recipe.items()
        for f in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]
    run = [
        "--output_dir",
        str(tmp_path / "out"),
        "--bf16",
        "false",
        "--use_cpu",
        "true",
        "--max_completion_length",
        "8",
    ]
    arguments = make_parser().parse_args_and_config([*flags, *run])
    report = Report()
    check_skd(*arguments, None, report)
    assert not report.faults and f"{longest} tokens (max_teacher" in dict(report.rows)["prompts"]
