"""KD-LoRA, SFT and WMTP stop before a step on numbers that are not finite (LUPI-SKD: test_health.py)."""

import copy

import pytest
import torch
from peft import LoraConfig
from trl import ModelConfig, SFTConfig

from lupi_trainer import MTPHeads
from lupi_trainer.lab import load_lab_records
from lupi_trainer.scripts import sft
from tests.kd_lora.training import lab_tokenizer, make_kd_trainer
from tests.lupi_skd.training import Losses, make_trainer
from tests.wmtp.training import ALGORITHMS, make_wmtp_trainer


NAN = float("nan")


def make(tmp_path, name, model, **kwargs):
    """A trainer of the method over all weights of the model."""
    if name == "sft":
        keys = {key.removeprefix("config_"): value for key, value in kwargs.items()}
        args = SFTConfig(
            str(tmp_path / "run"),
            bf16=False,
            use_cpu=True,
            max_steps=3,
            logging_steps=1,
            report_to="none",
            gradient_checkpointing=False,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            disable_tqdm=True,
            **keys,
        )
        trainer = sft.build_trainer(sft.SFTDataArguments("lab:new"), args, ModelConfig("lab:student"))
        trainer.add_callback(losses := Losses())
        return trainer, losses
    if name == "kd-lora":
        return make_kd_trainer(tmp_path, model=model, peft_config=None, processing_class=lab_tokenizer(), **kwargs)
    return make_wmtp_trainer(tmp_path, name, model=model, processing_class=lab_tokenizer(), **kwargs)


def keep_weights(trainer, student) -> list[dict[str, torch.Tensor]]:
    """Fills with the student's weights before every batch."""
    kept, step = [], trainer.training_step
    trainer.training_step = lambda *args: (kept.append(copy.deepcopy(student.state_dict())), step(*args))[1]
    return kept


@pytest.mark.parametrize("name", ["kd-lora", "sft", *ALGORITHMS])
@pytest.mark.grid(3)
def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(tmp_path, student, name):
    """The first of two accumulated batches of the second step is spoilt."""
    trainer, losses = make(tmp_path, name, student, config_gradient_accumulation_steps=2)
    student = trainer.model if name == "sft" else student
    batches = keep_weights(trainer, student)

    def spoil(module, args, output):
        if len(batches) == 3 and module.training:
            output.last_hidden_state[0] = NAN
        return output

    student.model.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"^step 2: the loss is NaN or infinite\. The weights"):
        trainer.train()
    assert len(losses.losses) == 1 and losses.losses[0] > 0 and len(batches) == 4
    assert not torch.equal(batches[0]["lm_head.weight"], batches[2]["lm_head.weight"])
    assert all(torch.equal(weight, batches[2][key]) for key, weight in student.state_dict().items())


@pytest.mark.parametrize("name", ["kd-lora", "mtp-baseline"])
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(tmp_path, student, name):
    trainer, losses = make(tmp_path, name, student)
    student.model.layers[0].mlp.up_proj.weight.register_hook(lambda g: g + float("inf"))
    before = keep_weights(trainer, student)
    with pytest.raises(FloatingPointError, match="step 1: the gradient is NaN or infinite. The weights"):
        trainer.train()
    assert not losses.losses
    assert all(torch.equal(weight, before[0][key]) for key, weight in student.state_dict().items())


def test_a_teacher_without_numbers_is_named(tmp_path, student, teacher):
    with torch.no_grad():
        teacher.model.norm.weight[0] = NAN
    trainer, _ = make(tmp_path, "kd-lora", student, teacher_model=teacher)
    with pytest.raises(FloatingPointError, match="step 1: the loss is NaN or infinite by the teacher's part alone"):
        trainer.train()


@pytest.mark.parametrize("name", ["kd-lora", "sft", "mtp-baseline", "lupi-skd"])
def test_a_loss_that_does_not_reach_the_weights_stops_the_run(tmp_path, student, name):
    """With clipping, or without: then there is no norm yet."""
    keys = {"config_max_grad_norm": 0.0 if name in ("kd-lora", "lupi-skd") else 1.0}
    trainer, losses = (
        make_trainer(tmp_path, student, **keys) if name == "lupi-skd" else make(tmp_path, name, student, **keys)
    )
    trainer.model.requires_grad_(False)
    trained = trainer.model.lm_head.weight.requires_grad_(True)
    trained.register_hook(torch.zeros_like)  # as a layer that has no backward
    with pytest.raises(RuntimeError, match="step 1: the loss is not zero, but the gradient is, of every trainable"):
        trainer.train()
    assert not losses.losses


def test_a_student_of_which_nothing_is_trained_is_refused(tmp_path, student):
    student.requires_grad_(False)
    heads = MTPHeads.for_model(student, 4, "residual").requires_grad_(False)
    frozen = pytest.raises(ValueError, match="student .* has nothing to train: all of its weights are frozen")
    with frozen:
        make_trainer(tmp_path, student)
    with frozen:
        make(tmp_path, "kd-lora", student)
    nothing = "nothing can be trained: no parameter of the LlamaForCausalLM requires"
    with pytest.raises(ValueError, match=nothing):
        make(tmp_path, "mtp-baseline", student, heads=heads)
    make(tmp_path, "mtp-baseline", student)  # whose new heads learn


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.grid(3)
def test_a_student_that_is_its_teacher_still_goes_on(tmp_path, beta):
    """The loss is rounding alone, and the gradient may be zero: a new adapter on records without knowledge."""
    lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    common = load_lab_records("lab:common")[:12]
    trainer, losses = make_trainer(
        tmp_path, "lab:teacher", None, common, peft_config=lora, config_beta=beta, config_reuse_verification=False
    )
    trainer.train()
    assert len(losses.losses) == 3 and abs(losses.losses[0]) < 1e-6


@pytest.mark.parametrize("what, loss", [("loss", 0.0), ("gradient", 1e-6)])
def test_a_run_whose_first_steps_are_all_without_effect_is_stopped(tmp_path, student, what, loss):
    trainer, losses = make(tmp_path, "kd-lora", student, config_max_steps=7)
    compute, steps = trainer.compute_loss, []
    trainer.compute_loss = lambda *args, **options: compute(*args, **options) * 0 + loss
    with pytest.raises(RuntimeError, match=f"the {what} is exactly 0 in each of the first 5 steps: nothing"):
        trainer.train()
    assert len(losses.losses) == 4

    def once_with_effect(*args, **options):
        steps.append(1)
        return compute(*args, **options) * (len(steps) == 3)

    trainer.compute_loss = once_with_effect
    trainer.train()
    assert len(losses.losses) == 4 + 7
