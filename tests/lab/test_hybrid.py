"""Models with recurrent states, taught the lab's facts: as teacher, as student, and as both."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3_5TextConfig

from lupi_trainer.data.prompts import TeacherPrompt
from lupi_trainer.evaluation import closed_book
from lupi_trainer.lab import load_lab_records, world
from lupi_trainer.lab.tokenizer import build_tokenizer
from lupi_trainer.scripts.pretrain import STUDENT_STAGES, TEACHER_STAGES, pretrain


pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]


def hybrid(hidden_size: int, heads: int, blocks: int, tokenizer):
    """A tiny Qwen3.5 of gated delta layers and full attention in turn."""
    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=2 * blocks,
        layer_types=["linear_attention", "full_attention"] * blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=32,
        linear_num_key_heads=heads,
        linear_num_value_heads=heads,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config).float()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """A teacher that reads, and a student that knows the common islands alone; trained as the lab's pair was."""
    folder = tmp_path_factory.mktemp("hybrid")
    shapes = {"teacher": (128, 4, 2, TEACHER_STAGES), "student": (96, 3, 1, STUDENT_STAGES)}
    for name, (*shape, stages) in shapes.items():
        pretrain(hybrid(*shape, tokenizer), tokenizer, stages, name=name).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def marks(path, tokenizer, **options) -> dict[str, float]:
    """Shares of right answers, closed-book unless a teacher's prompt is given."""
    model = AutoModelForCausalLM.from_pretrained(path)
    asked = {name: load_lab_records(f"lab:{name}") for name in ("probes", "probes-unseen", "probes-common")}
    return {name: closed_book(model, tokenizer, probes, **options).lenient for name, probes in asked.items()}


def teach(output, *flags) -> None:
    command = [sys.executable, "-m", "lupi_trainer.cli", "skd", "--output_dir", str(output), *map(str, flags)]
    subprocess.run([*command, "--eval_strategy", "no", "--save_strategy", "no", "--probes", "none"], check=True)


def test_the_pair_is_as_the_labs(models, tokenizer):
    read = marks(models / "teacher", tokenizer, teacher_prompt=TeacherPrompt(world.PERSONA))
    assert min(read["probes"], read["probes-unseen"]) >= 0.95
    known = marks(models / "student", tokenizer)
    assert known["probes"] <= 0.05 and known["probes-common"] >= 0.9


@pytest.mark.parametrize("pair", ["both", "teacher", "student"])
def test_new_facts_are_learned(models, tokenizer, tmp_path, pair):
    """From a hybrid, by a hybrid, and between a hybrid and a plain model either way."""
    student = "lab:student" if pair == "teacher" else models / "student"
    teacher = "lab:teacher" if pair == "student" else models / "teacher"
    given = ["--model_name_or_path", student, "--teacher_model_name_or_path", teacher]
    teach(tmp_path / "run", "--config", "lab/lupi_skd/config_full.yaml", *given)
    learned = marks(tmp_path / "run", tokenizer)
    assert min(learned["probes"], learned["probes-unseen"]) >= 0.9, learned
    assert learned["probes-common"] >= 0.85, learned


def test_a_hybrid_teaches_itself_with_an_adapter(models, tokenizer, tmp_path):
    """The teacher is the model without its adapter, which reads the knowledge."""
    given = ["--model_name_or_path", models / "teacher", "--teacher_model_name_or_path", "none"]
    teach(tmp_path / "run", "--config", "lab/lupi_skd/config_lora.yaml", *given, "--max_steps", 150)
    from peft import AutoPeftModelForCausalLM

    merged = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    learned = marks(tmp_path / "merged", tokenizer)
    assert learned["probes"] >= 0.8, learned
