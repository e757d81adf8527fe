"""The three trainers: the loss that they train on, ways to cut a batch, packing, precision, controls."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from lupi_trainer.lab import resolve_model
from lupi_trainer.losses.reference import compute_weighted_mtp_loss
from lupi_trainer.losses.token_weights import align_to_heads
from lupi_trainer.wmtp.weighted_loss import means, row_sums, weighted_loss
from tests.wmtp.training import (
    ALGORITHMS,
    OVER_TOKENS,
    SELECTED,
    answers,
    batch_of,
    make_wmtp_trainer,
)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.grid(3)
def test_all_figures_are_logged_and_the_heads_learn(tmp_path, algorithm):
    trainer, losses = make_wmtp_trainer(
        tmp_path,
        algorithm,
        config_max_steps=12,
        config_horizon=3,
        eval_dataset=answers(10),
        config_draft_eval_prompts=4,
    )
    if algorithm == "critic-wmtp":
        with pytest.raises(ValueError, match="the critic is not trained yet"):
            trainer.evaluate()
        trainer.train_critic()
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    first = losses.logs[0]
    names = {f"{name}{k}" for name in ("loss/head_", "top1/head_", "top5/head_", "head_weight/") for k in (1, 2, 3)}
    assert all(math.isfinite(first[name]) for name in names)
    drafting = {"eval_accept_length", "eval_accept_rate/head_2", "eval_accept_rate/head_3"}
    assert {f"eval_{name}" for name in names} | drafting <= after.keys()
    assert {"head_weight/entropy", "num_tokens", "loss", "grad_norm"} <= first.keys()
    if algorithm == "mtp-baseline":
        assert [first[f"head_weight/{k}"] for k in (1, 2, 3)] == [1, 1, 1]
    else:
        assert len({first[f"head_weight/{k}"] for k in (1, 2, 3)}) == 3
    for k in (2, 3):  # at first every head says what the model's own says
        assert after[f"eval_loss/head_{k}"] < before[f"eval_loss/head_{k}"] - 1
    assert after["eval_accept_length"] > before["eval_accept_length"]
    assert "eval_loss/head_4" not in after


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_loss_is_the_dense_one_with_the_algorithms_weights(tmp_path, algorithm):
    trainer, _ = make_wmtp_trainer(tmp_path, algorithm)
    if algorithm == "critic-wmtp":
        trainer.train_critic()
    trainer.model.eval()
    inputs, model = batch_of(trainer), trainer.model
    out, batch = weighted_loss(model, inputs, trainer._weigh, trainer.reduction)
    hidden = model.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    logits = torch.stack([model.lm_head(state) for state in model.mtp_heads(hidden)], dim=2)
    expected, _, ce = compute_weighted_mtp_loss(logits, inputs["labels"], out.weights, 4)
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    guessed, figures = logits.topk(5).indices == batch.targets[..., None], means(row_sums(out, batch).sum(dim=0))
    for guesses in (1, 5):
        hits = (guessed[..., :guesses].any(dim=-1).sum(dim=(0, 1)) / batch.has_target.sum(dim=(0, 1))).tolist()
        assert [figures[f"top{guesses}/head_{k}"] for k in (1, 2, 3, 4)] == pytest.approx(hits)
    if algorithm == "rho1-wmtp":
        reference = AutoModelForCausalLM.from_pretrained(resolve_model("lab:teacher"))
        with torch.no_grad():
            logits = reference(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        ref_ce = compute_weighted_mtp_loss(logits[:, :, None], inputs["labels"], torch.ones(*logits.shape[:2], 1), 1)[
            2
        ][..., 0]
        gaps = (align_to_heads(ref_ce, 4) - ce).abs().masked_fill(~batch.has_target, -torch.inf)
        torch.testing.assert_close(out.weights, (gaps / 0.7).softmax(-1).nan_to_num(0), atol=1e-5, rtol=0)
        assert trainer.reference.forwards == 1


@pytest.mark.parametrize(
    "algorithm, options",
    [("mtp-baseline", {}), ("rho1-wmtp", {}), ("rho1-wmtp", OVER_TOKENS), ("rho1-wmtp", SELECTED)],
)
@pytest.mark.grid(2)
def test_a_batch_and_its_parts_give_the_same_steps(tmp_path, algorithm, options):
    """Eight texts at once, or one at a time: texts with more positions count more in both."""
    runs = {}
    for size, steps in ((8, 1), (1, 8)):
        _, losses = run = make_wmtp_trainer(
            tmp_path,
            algorithm,
            config_per_device_train_batch_size=size,
            config_gradient_accumulation_steps=steps,
            **options,
        )
        run[0].train()
        runs[size] = losses.logs
    for one, parts in zip(runs[8], runs[1]):
        assert one["loss"] == pytest.approx(parts["loss"], abs=2e-5)
        assert one["grad_norm"] == pytest.approx(parts["grad_norm"], rel=1e-3)
        assert one["loss/head_3"] == pytest.approx(parts["loss/head_3"], abs=2e-5)


@pytest.mark.parametrize("algorithm, options", [("mtp-baseline", {}), ("rho1-wmtp", OVER_TOKENS)])
@pytest.mark.grid(2)
def test_packing_trains_on_the_same_texts(tmp_path, algorithm, options):
    data = answers(8)
    runs = []
    for packed in (False, True):
        trainer, losses = make_wmtp_trainer(
            tmp_path,
            algorithm,
            train_dataset=data,
            config_max_steps=1,
            config_per_device_train_batch_size=8,
            config_packing=packed,
            config_max_length=512 if packed else 128,
            **options,
        )
        trainer.train()
        runs.append(losses.logs[0])
    assert runs[0]["loss"] == pytest.approx(runs[1]["loss"], abs=1e-5)
    assert runs[0]["loss/head_4"] == pytest.approx(runs[1]["loss/head_4"], abs=1e-5)
    assert runs[0]["num_tokens"] == runs[1]["num_tokens"]


def test_a_frozen_trunk_stays_and_only_heads_learn(tmp_path):
    trainer, losses = make_wmtp_trainer(tmp_path, config_freeze_trunk=True, config_max_steps=4)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith("mtp_heads."), name
    assert losses.logs[-1]["loss/head_2"] < losses.logs[0]["loss/head_2"]


@pytest.mark.parametrize("options", [{"config_freeze_trunk": True}, {"peft_config": LoraConfig(r=2)}])
def test_heads_beside_a_half_precision_trunk_learn_in_float32(tmp_path, options):
    student = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"), dtype=torch.bfloat16)
    trainer, losses = make_wmtp_trainer(tmp_path, model=student, config_max_steps=1, **options)
    out, batch = weighted_loss(trainer.model, batch_of(trainer), trainer._weigh, trainer.reduction)
    assert (batch.hidden.dtype, out.factors.dtype, trainer.model.mtp_heads.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    # the mean is over about 200 positions, a number that is not to be rounded to eight bits
    assert out.factors.sum().item() == pytest.approx(1.0, abs=1e-6)
    trainer.train()
    assert math.isfinite(losses.losses[0])


def test_plain_text_is_trained_on_too(tmp_path):
    trainer, losses = make_wmtp_trainer(
        tmp_path, train_dataset=Dataset.from_list([{"text": "Fova has the river Vabe. It is an island."}] * 8)
    )
    trainer.train()
    assert losses.logs[-1]["loss/head_2"] < losses.logs[0]["loss/head_2"]


def test_uniform_is_the_baseline(tmp_path):
    logs = []
    for algorithm, weighting in (("mtp-baseline", "own"), ("rho1-wmtp", "uniform"), ("critic-wmtp", "uniform")):
        trainer, losses = make_wmtp_trainer(tmp_path, algorithm, config_head_weighting=weighting)
        trainer.train()
        logs.append([log["loss"] for log in losses.logs])
    assert logs[0] == logs[1] == logs[2]


def test_shuffled_weights_have_the_same_mean_and_another_loss(tmp_path):
    logs = []
    for weighting in ("own", "shuffled"):
        trainer, losses = make_wmtp_trainer(tmp_path, "rho1-wmtp", config_head_weighting=weighting, config_max_steps=1)
        trainer.train()
        logs.append(losses.logs[0])
    assert logs[0]["head_weight/3"] == pytest.approx(logs[1]["head_weight/3"], abs=1e-6)
    assert logs[0]["head_weight/entropy"] == pytest.approx(logs[1]["head_weight/entropy"], abs=1e-5)
    assert abs(logs[0]["loss"] - logs[1]["loss"]) > 1e-3
