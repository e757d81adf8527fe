import math

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from lupi_trainer import KDLoRATrainer
from lupi_trainer.kd_lora import trainer as kd_lora_trainer
from lupi_trainer.lab import resolve_model
from lupi_trainer.losses.reference import kd_ce_loss
from lupi_trainer.wmtp import base_trainer
from tests.kd_lora.training import lab_tokenizer, labeled_dataset, make_kd_config, make_kd_trainer
from tests.lupi_skd.training import Losses
from tests.models.families import tiny_model, train_tokenizer
from tests.wmtp.training import make_wmtp_trainer


def batch_of(trainer, count=5):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(count)])


def dense_loss(trainer, batch):
    """The reference, from both models' own full logits."""
    read = {k: v for k, v in batch.items() if k != "labels"}
    student = trainer.model(**read).logits[:, :-1]
    teacher = trainer.teacher_model(**read).logits[:, :-1]
    args = trainer.args
    return kd_ce_loss(student, teacher, batch["labels"][:, 1:], args.kd_alpha, args.kd_temperature)


@pytest.mark.parametrize("alpha, temperature", [(0.1, 2.0), (0.3, 3.0), (1.0, 2.0)])
def test_loss_and_gradient_are_those_of_the_dense_reference_in_float64(tmp_path, alpha, temperature):
    trainer, _ = make_kd_trainer(tmp_path, config_kd_alpha=alpha, config_kd_temperature=temperature)
    trainer.model.double().eval()
    trainer.teacher_model.double()
    batch = batch_of(trainer)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    torch.manual_seed(0)
    for p in parameters:
        p.data.normal_(std=0.1)  # an adapter's B begins at 0: then half of the gradients are
    wanted = dense_loss(trainer, batch)
    gradients = torch.autograd.grad(wanted, parameters)
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.dtype == torch.float64 and abs(loss.item() - wanted.item()) < 1e-6
    assert wanted.item() > 0.1
    for got, gradient in zip(torch.autograd.grad(loss, parameters), gradients):
        torch.testing.assert_close(got, gradient, rtol=0, atol=1e-9)


@pytest.mark.parametrize("changes", [{"config_kd_alpha": 0.0}, {"config_use_kd": False, "teacher_model": None}])
def test_without_distillation_a_run_is_trl_s_sft(tmp_path, changes):
    ours, our_losses = make_kd_trainer(tmp_path, **changes)
    assert ours.teacher_model is None
    shared = {k: getattr(ours.args, k) for k in make_kd_config(tmp_path).to_dict() if k in SFTConfig.__annotations__}
    names = ("learning_rate", "lr_scheduler_type", "per_device_train_batch_size", "max_steps", "logging_steps")
    args = SFTConfig(
        str(tmp_path / "sft"),
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        **{**shared, **{n: getattr(ours.args, n) for n in names}},
    )
    their_losses = Losses()
    theirs = SFTTrainer(
        resolve_model("lab:student"),
        args=args,
        train_dataset=labeled_dataset(lab_tokenizer()),
        peft_config=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM"),
        callbacks=[their_losses],
    )
    ours.train()
    theirs.train()
    assert our_losses.losses == pytest.approx(their_losses.losses, abs=1e-5)
    for key in ("grad_norm", "entropy", "mean_token_accuracy", "num_tokens"):
        assert [log[key] for log in our_losses.logs] == pytest.approx(
            [log[key] for log in their_losses.logs], rel=1e-4
        )


def test_the_loss_is_the_same_however_a_batch_is_cut(tmp_path):
    runs = {}
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        student = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"))
        student.accepts_loss_kwargs = False  # as models whose own forward does not take the number of tokens
        trainer, losses = make_kd_trainer(
            tmp_path, student, config_per_device_train_batch_size=size, config_gradient_accumulation_steps=accumulation
        )
        trainer.train()
        runs[size] = losses
    for size in (4, 1):
        assert runs[size].losses == pytest.approx(runs[8].losses, abs=2e-5)
        for key in ("loss/kd", "loss/ce", "mean_token_accuracy", "num_tokens"):
            assert [x[key] for x in runs[size].logs] == pytest.approx([x[key] for x in runs[8].logs], abs=1e-4)


def test_packing_trains_on_the_same_answers(tmp_path):
    runs = []
    for packed in (False, True):
        trainer, losses = make_kd_trainer(
            tmp_path,
            train_dataset=labeled_dataset(lab_tokenizer(), count=8),
            config_max_steps=1,
            config_per_device_train_batch_size=8,
            config_packing=packed,
            config_max_length=512,
        )
        trainer.train()
        runs.append(losses.logs[0])
    for key in ("loss", "loss/kd", "loss/ce", "grad_norm", "num_tokens"):
        assert runs[1][key] == pytest.approx(runs[0][key], rel=1e-4), key


def test_both_terms_are_logged_and_add_up_to_the_loss(tmp_path):
    trainer, losses = make_kd_trainer(tmp_path, config_max_steps=20)
    trainer.train()
    for log in losses.logs:
        assert log["loss"] == pytest.approx(0.3 * log["loss/kd"] + 0.7 * log["loss/ce"], abs=2e-4)
    assert losses.logs[-1]["loss/ce"] < losses.logs[0]["loss/ce"]


def test_only_the_adapter_moves(tmp_path):
    trainer, _ = make_kd_trainer(tmp_path)
    teacher = {k: v.clone() for k, v in trainer.teacher_model.state_dict().items()}
    student = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    for name, value in trainer.teacher_model.state_dict().items():
        assert torch.equal(value, teacher[name])
    assert not any(p.requires_grad for p in trainer.teacher_model.parameters()) and not trainer.teacher_model.training
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, student[name])}
    assert moved and all("lora_" in name for name in moved)


def test_evaluation_is_weighted_by_tokens_over_the_whole_set(tmp_path):
    data = labeled_dataset(lab_tokenizer(), count=13)
    trainer, _ = make_kd_trainer(tmp_path, eval_dataset=data, config_per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    nll, tokens, dense = 0.0, 0, 0.0
    for row in data:  # one record at a time
        batch = trainer.data_collator([row])
        count = int((batch["labels"][:, 1:] != -100).sum())
        with torch.no_grad():
            logits = trainer.model(batch["input_ids"]).logits[:, :-1]
            log_probs = logits.log_softmax(-1).gather(2, batch["labels"][:, 1:].clamp(min=0)[..., None])[..., 0]
            nll -= (log_probs * (batch["labels"][:, 1:] != -100)).sum().item()
            dense += dense_loss(trainer, batch).item() * count
        tokens += count
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert metrics["eval_loss/ce"] == pytest.approx(nll / tokens, rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(dense / tokens, rel=1e-5)
    assert trainer.state.log_history[-1]["eval_perplexity"] == metrics["eval_perplexity"]


def test_full_weights_can_be_distilled_too(tmp_path):
    trainer, losses = make_kd_trainer(tmp_path, peft_config=None, config_learning_rate=1e-3, config_max_steps=8)
    trainer.train()
    assert losses.losses[-1] < losses.losses[0]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_families_with_a_padded_teacher_vocabulary(tmp_path, family):
    """Tiny random weights with the layers of Llama-2 and of Qwen3; the teacher's vocabulary has more columns."""
    tokenizer = train_tokenizer(["Zuvi has the capital Kuzu and the river Vabe."] * 3)
    student, teacher = (
        tiny_model(family, tokenizer),
        tiny_model(family, tokenizer, vocab_size=640, hidden_size=48, seed=1),
    )
    rows = labeled_dataset(tokenizer, count=8)
    trainer, losses = make_kd_trainer(tmp_path, student, teacher, rows, processing_class=tokenizer)
    trainer.model.eval()
    batch = batch_of(trainer)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(
        dense_loss(trainer, batch).item(), rel=1e-5
    )
    trainer.train()
    assert all(math.isfinite(x) for x in losses.losses)


def test_a_teacher_by_name_has_its_own_dtype_and_the_run_resumes(tmp_path):
    changes = {"config_max_steps": 6, "config_save_strategy": "steps", "config_save_steps": 3}
    plain, plain_losses = make_kd_trainer(tmp_path, config_teacher_dtype="bfloat16", **changes)
    assert next(plain.teacher_model.parameters()).dtype == torch.bfloat16
    plain.train()
    resumed, resumed_losses = make_kd_trainer(tmp_path, config_teacher_dtype="bfloat16", **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert resumed_losses.losses == plain_losses.losses[3:]


def test_the_teacher_goes_to_a_device_of_its_own(tmp_path):
    trainer, _ = make_kd_trainer(tmp_path, config_teacher_device="meta")  # the only other device on every machine
    assert {p.device.type for p in trainer.teacher_model.parameters()} == {"meta"}
    assert {p.device.type for p in trainer.model.parameters()} == {"cpu"}
    with pytest.raises((ValueError, RuntimeError), match="nowhere"):
        make_kd_trainer(tmp_path, config_teacher_device="nowhere")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kd_alpha": 1.5}, r"kd_alpha must be in \[0, 1\], got 1.5"),
        ({"kd_alpha": -0.1}, r"kd_alpha must be in \[0, 1\], got -0.1"),
        ({"kd_temperature": 0.0}, "kd_temperature must be above 0, got 0.0"),
        ({"teacher_load_in_4bit": True, "teacher_load_in_8bit": True}, "exclude each other"),
        ({"teacher_bnb_4bit_quant_type": "int4"}, "must be 'nf4' or 'fp4', got 'int4'"),
        ({"teacher_quantization_samples": -1}, "teacher_quantization_samples must be 0 or more"),
        ({"teacher_quantization_samples": 2, "kd_alpha": 0.0}, "with `use_kd: false` or `kd_alpha: 0` there is none"),
        ({"loss_type": "dft"}, "leave `loss_type` at 'nll'"),
    ],
)
def test_options_out_of_range_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_kd_config(tmp_path, **changes)


def test_what_cannot_work_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="no teacher: pass `teacher_model`"):
        make_kd_trainer(tmp_path, teacher_model=None)
    small = AutoModelForCausalLM.from_pretrained(resolve_model("lab:teacher"))
    small.resize_token_embeddings(300)
    with pytest.raises(
        ValueError,
        match="row number 0 holds the token .* of the tokenizer's 568 tokens the models have the first 300 alone",
    ):
        make_kd_trainer(tmp_path, teacher_model=small)
    tokenizer = train_tokenizer(["another vocabulary"], vocab_size=len(lab_tokenizer()) + 40)
    with pytest.raises(ValueError, match="the vocabularies do not match"):
        make_kd_trainer(
            tmp_path, teacher_processing_class=tokenizer, teacher_model=tiny_model("llama", tokenizer, vocab_size=700)
        )
    with pytest.raises(ValueError, match="teacher_quantization_samples needs a teacher"):
        make_kd_trainer(tmp_path, config_teacher_quantization_samples=2)
    prompted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(resolve_model("lab:student")),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    )
    with pytest.raises(ValueError, match="PromptTuningConfig is not supported"):
        make_kd_trainer(tmp_path, model=prompted, peft_config=None)
    longest = max(map(len, labeled_dataset(lab_tokenizer())["input_ids"]))
    with pytest.raises(ValueError, match=rf"row number \d+ has {longest} tokens and labels: cut to max_length"):
        make_kd_trainer(tmp_path, config_max_length=longest - 1)
    silent = labeled_dataset(lab_tokenizer(), count=2).map(lambda row: {"labels": [-100] * len(row["labels"])})
    with pytest.raises(ValueError, match="eval dataset: no token of its 2 rows is labeled"):
        make_kd_trainer(tmp_path, eval_dataset=labeled_dataset(lab_tokenizer()))[0].evaluate(silent)
    tokenizer = lab_tokenizer()
    long = labeled_dataset(tokenizer, count=4).map(lambda row: {k: v * 60 for k, v in row.items()})
    trainer, _ = make_kd_trainer(tmp_path, train_dataset=long)
    with pytest.raises(ValueError, match="beyond the 512 positions of the student model: lower `max_length`"):
        trainer.train()


@pytest.mark.parametrize("module, make", [(kd_lora_trainer, make_kd_trainer), (base_trainer, make_wmtp_trainer)])
def test_the_tokenizer_is_of_the_revision_of_the_weights(tmp_path, monkeypatch, module, make):
    data = labeled_dataset(lab_tokenizer())

    def load(name, revision=None, **_):
        raise InterruptedError(revision)

    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", load)
    with pytest.raises(InterruptedError, match="^v2$"):
        make(tmp_path, train_dataset=data, config_model_init_kwargs={"revision": "v2"})


def test_the_card_names_the_method(tmp_path):
    trainer, _ = make_kd_trainer(tmp_path, config_max_steps=1)
    trainer.train()
    trainer.create_model_card("tiny")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "KD-LoRA" in card and "2410.20777" in card and "kd-lora" in card
    assert KDLoRATrainer.method_name == "KD-LoRA"
