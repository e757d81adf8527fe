"""Loading code for real models, on tiny random-weight models of the same families and the project's own data."""

import json

import pytest
import torch

from lupi_trainer.data.records import to_columns
from lupi_trainer.scripts.lupi_skd import build_trainer, make_parser
from tests.lupi_skd.training import make_trainer
from tests.models.families import tiny_model, train_tokenizer


RECORDS = [
    {
        "id": f"tradition_{n:03d}",
        "query": f"질문 {n}: 설날에 세배를 드릴 때 어떤 예절을 지켜야 하나요?",
        "knowledge": f"세배는 새해 첫날 웃어른께 드리는 절입니다. 남자는 왼손을 위로 합니다. {n}번째 기록입니다.",
    }
    for n in range(8)
]


@pytest.fixture(scope="module")
def culture_tokenizer():
    return train_tokenizer([r["query"] + r["knowledge"] for r in RECORDS])


def save_pair(folder, family: str, tokenizer, teacher_columns: int):
    """A student and a wider teacher with a differently padded vocabulary, each in a folder with its tokenizer."""
    pair = {
        "student": tiny_model(family, tokenizer, seed=1),
        "teacher": tiny_model(family, tokenizer, hidden_size=64, vocab_size=teacher_columns, seed=2),
    }
    for name, model in pair.items():
        model.to(torch.bfloat16 if name == "teacher" else torch.float32).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return str(folder / "student"), str(folder / "teacher")


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_real_family_trains_from_a_recipe(tmp_path, culture_tokenizer, family):
    student, teacher = save_pair(tmp_path, family, culture_tokenizer, len(culture_tokenizer) + 16)
    (tmp_path / "data.json").write_text(json.dumps(RECORDS, ensure_ascii=False))
    (tmp_path / "shots.json").write_text(json.dumps([{"query": "김치는?", "answer": "발효 음식입니다."}]))
    (tmp_path / "recipe.yaml").write_text(
        f"model_name_or_path: {student}\nteacher_model_name_or_path: {teacher}\n"
        f"dataset_name: {tmp_path}/data.json\nfew_shot_examples: {tmp_path}/shots.json\n"
        "teacher_system_prompt: 당신은 한국 문화 전문가입니다.\nteacher_dtype: auto\n"
        "teacher_attn_implementation: eager\nattn_implementation: sdpa\ndtype: float32\n"
        f"output_dir: {tmp_path}/run\nmax_steps: 6\nlearning_rate: 1.0e-2\nper_device_train_batch_size: 4\n"
        "max_completion_length: 6\ngamma: 3\nlogging_steps: 1\nbf16: false\nuse_cpu: true\n"
        "gradient_checkpointing: true\nreport_to: none\nsave_strategy: 'no'\nlr_scheduler_type: constant\n"
    )
    trainer = build_trainer(*make_parser().parse_args_and_config(["--config", str(tmp_path / "recipe.yaml")]))
    assert trainer.teacher_model.dtype == torch.bfloat16
    assert trainer.teacher_model.config._attn_implementation == "eager"
    assert not any(p.requires_grad for p in trainer.teacher_model.parameters())
    assert len(trainer.train_dataset) == len(RECORDS)  # no record lost
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(history[-3:]) < sum(history[:3])


def test_a_4bit_teacher_trains_on_the_cpu(tmp_path, culture_tokenizer):
    pytest.importorskip("bitsandbytes")
    student, teacher = save_pair(tmp_path, "llama", culture_tokenizer, len(culture_tokenizer))
    trainer, losses = make_trainer(
        tmp_path,
        model=student,
        teacher_model=teacher,
        train_dataset=to_columns(RECORDS),
        config_teacher_load_in_4bit=True,
        config_max_teacher_prompt_length=512,
    )
    kinds = {type(module).__name__ for module in trainer.teacher_model.modules()}
    assert "Linear4bit" in kinds
    trainer.train()
    assert all(torch.isfinite(torch.tensor(losses.losses)))


def test_mixed_precision_of_the_student_is_not_the_teachers(tmp_path):
    """With bf16 training, kept states and a fresh teacher forward still agree: the teacher runs in its own dtype."""
    from tests.lupi_skd.test_trainer import one_batch

    trainer, losses = make_trainer(tmp_path, config_bf16=True, config_max_steps=2)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(losses.losses)))
    inputs = one_batch(trainer)
    with trainer.accelerator.autocast():
        fresh = trainer._teacher_states(inputs)
    mask = inputs["completion_mask"].bool()
    assert inputs["teacher_hidden"].dtype == fresh.dtype == torch.float32
    torch.testing.assert_close(inputs["teacher_hidden"][mask], fresh[mask], atol=1e-4, rtol=1e-4)
