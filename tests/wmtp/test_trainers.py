"""The three trainers: the loss that they train on, ways to cut a batch, packing, adapters, checkpoints, controls."""

import json
import math
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig
from transformers import AutoModelForCausalLM

from lupi_trainer import MTPHeads, WMTPConfig
from lupi_trainer.lab import resolve_model
from lupi_trainer.losses.reference import compute_weighted_mtp_loss
from lupi_trainer.losses.token_weights import align_to_heads, critic_weights
from lupi_trainer.models.mtp_heads import ValueHead
from lupi_trainer.training.checkpoints import seal
from lupi_trainer.wmtp import BaseWMTPTrainer
from lupi_trainer.wmtp.weighted_loss import means, row_sums, weighted_loss
from tests.models.families import train_tokenizer
from tests.wmtp.training import ALGORITHMS, answers, make_wmtp_config, make_wmtp_trainer


def batch_of(trainer, rows=6):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(rows)])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
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


OVER_TOKENS = {"config_rho1_over": "token", "config_rho1_score": "signed"}
SELECTED = {**OVER_TOKENS, "config_rho1_select": "top"}


@pytest.mark.parametrize(
    "algorithm, options",
    [("mtp-baseline", {}), ("rho1-wmtp", {}), ("rho1-wmtp", OVER_TOKENS), ("rho1-wmtp", SELECTED)],
)
def test_a_batch_and_its_parts_give_the_same_steps(tmp_path, algorithm, options):
    """Eight texts at once, or one at a time: texts with more positions count more in both."""
    runs = {}
    for size, steps in ((8, 1), (1, 8)):
        _, losses = run = make_wmtp_trainer(
            tmp_path, algorithm, config_per_device_train_batch_size=size, config_gradient_accumulation_steps=steps,
            **options,
        )  # fmt: skip
        run[0].train()
        runs[size] = losses.logs
    for one, parts in zip(runs[8], runs[1]):
        assert one["loss"] == pytest.approx(parts["loss"], abs=2e-5)
        assert one["grad_norm"] == pytest.approx(parts["grad_norm"], rel=1e-3)
        assert one["loss/head_3"] == pytest.approx(parts["loss/head_3"], abs=2e-5)


@pytest.mark.parametrize("algorithm, options", [("mtp-baseline", {}), ("rho1-wmtp", OVER_TOKENS)])
def test_packing_trains_on_the_same_texts(tmp_path, algorithm, options):
    data = answers(8)
    runs = []
    for packed in (False, True):
        trainer, losses = make_wmtp_trainer(
            tmp_path, algorithm, train_dataset=data, config_max_steps=1, config_per_device_train_batch_size=8,
            config_packing=packed, config_max_length=512 if packed else 128, **options,
        )  # fmt: skip
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


def adapted(tmp_path, **options):
    config = LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return make_wmtp_trainer(tmp_path, peft_config=config, config_horizon=2, **options)


def test_an_adapter_is_saved_with_its_heads_beside_it_and_both_resume(tmp_path):
    options = {"config_save_strategy": "steps", "config_save_steps": 2, "config_max_steps": 3}
    trainer, unbroken = adapted(tmp_path, **options)
    trainer.train()
    trainer.save_model()
    again, losses = adapted(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert [log["step"] for log in losses.logs] == [3]
    for key in ("loss", "loss/head_2", "grad_norm"):
        assert losses.logs[0][key] == pytest.approx(unbroken.logs[2][key], rel=1e-5), key
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter_model.safetensors", "mtp_heads.safetensors", "mtp_heads.json"} <= names
    assert "model.safetensors" not in names
    heads = MTPHeads.from_pretrained(tmp_path / "run")
    for name, tensor in trainer.model.mtp_heads.state_dict().items():
        assert torch.equal(heads.state_dict()[name], tensor)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_resumed_it_goes_on_as_if_unbroken_and_keeps_few_checkpoints(tmp_path, algorithm):
    options = {"config_save_strategy": "steps", "config_save_steps": 1, "config_save_total_limit": 2}
    whole, unbroken = make_wmtp_trainer(tmp_path / "whole", algorithm, config_max_steps=5, **options)
    whole.train()
    whole.save_model()
    folder = tmp_path / "whole" / "run"
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    assert (folder / "model.safetensors").is_file() and (folder / "mtp_heads.json").is_file()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not any("mtp" in name for name in model.state_dict())

    broken, first = make_wmtp_trainer(tmp_path / "broken", algorithm, config_max_steps=5, **options)
    shutil.copytree(folder / "checkpoint-4", tmp_path / "broken" / "run" / "checkpoint-4")
    broken.train(resume_from_checkpoint=True)
    assert [log["step"] for log in first.logs] == [5]
    for key in ("loss", "loss/head_4", "head_weight/2", "grad_norm"):
        assert first.logs[0][key] == pytest.approx(unbroken.logs[4][key], rel=1e-5), key


def test_a_critic_resumes_where_the_model_is_loaded_in_another_way(tmp_path, monkeypatch):
    """DeepSpeed loads its own checkpoints, and never asks for `load_checkpoint`."""
    options = {"config_save_strategy": "steps", "config_save_steps": 1}
    first, _ = make_wmtp_trainer(tmp_path, "critic-wmtp", config_max_steps=1, **options)
    first.train()
    monkeypatch.setattr(BaseWMTPTrainer, "load_checkpoint", lambda *args: None)
    again, losses = make_wmtp_trainer(tmp_path, "critic-wmtp", config_max_steps=2, **options)
    again.train(resume_from_checkpoint=True)
    assert [log["step"] for log in losses.logs] == [2]
    for name, tensor in first.value_head.state_dict().items():
        assert torch.equal(again.value_head.state_dict()[name], tensor)
    again.save_student(str(tmp_path / "ungathered"), {})  # ZeRO-3's, where it does not gather for a save
    assert MTPHeads.from_pretrained(tmp_path / "ungathered").horizon == 4


@pytest.mark.parametrize("options", [{"config_freeze_trunk": True}, {"peft_config": LoraConfig(r=2)}])
def test_heads_beside_a_half_precision_trunk_learn_in_float32(tmp_path, options):
    student = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"), dtype=torch.bfloat16)
    trainer, losses = make_wmtp_trainer(tmp_path, model=student, config_max_steps=1, **options)
    out, batch = weighted_loss(trainer.model, batch_of(trainer), trainer._weigh, trainer.reduction)
    assert (batch.hidden.dtype, out.factors.dtype, trainer.model.mtp_heads.dtype) == (
        torch.bfloat16, torch.float32, torch.float32,
    )  # fmt: skip
    # the mean is over about 200 positions, a number that is not to be rounded to eight bits
    assert out.factors.sum().item() == pytest.approx(1.0, abs=1e-6)
    trainer.train()
    assert math.isfinite(losses.losses[0])


def test_heads_missing_from_a_checkpoint_are_an_error(tmp_path):
    options = {"config_save_strategy": "steps", "config_save_steps": 1}
    make_wmtp_trainer(tmp_path, config_max_steps=1, **options)[0].train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    (checkpoint / "mtp_heads.safetensors").unlink()
    again = make_wmtp_trainer(tmp_path, config_max_steps=2, **options)[0]
    with pytest.raises(ValueError, match="cannot resume from .* mtp_heads.safetensors is missing"):
        again.train(resume_from_checkpoint=str(checkpoint))
    seal(checkpoint)  # as if another trainer had written it
    with pytest.raises(FileNotFoundError, match="no mtp_heads.safetensors"):
        again.train(resume_from_checkpoint=str(checkpoint))


def test_trained_heads_are_taken_up_again(tmp_path):
    trainer, _ = make_wmtp_trainer(tmp_path, config_freeze_trunk=True)
    trainer.train()
    trainer.save_model()
    folder = str(tmp_path / "run")
    again, _ = make_wmtp_trainer(tmp_path / "joint", model=folder, config_heads_name_or_path=folder)
    for name, tensor in trainer.model.mtp_heads.state_dict().items():
        assert torch.equal(again.model.mtp_heads.state_dict()[name], tensor)
    with pytest.raises(ValueError, match="horizon=4 .* the configuration says horizon=3"):
        make_wmtp_trainer(tmp_path / "other", config_heads_name_or_path=folder, config_horizon=3)


# The controls


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


# The reference


def test_the_reference_reads_a_text_once_if_it_may_keep_what_it_read(tmp_path):
    runs = []
    for _ in range(2):
        trainer, losses = make_wmtp_trainer(
            tmp_path, "rho1-wmtp", config_reference_cache_dir=str(tmp_path / "cache"), config_max_steps=6
        )
        trainer.train()
        runs.append((trainer.reference.forwards, losses.losses))
    assert runs[0][0] == 6 and runs[1][0] == 0
    assert runs[0][1] == pytest.approx(runs[1][1], abs=1e-6)
    plain, losses = make_wmtp_trainer(tmp_path, "rho1-wmtp", config_max_steps=6)
    plain.train()
    assert losses.losses == pytest.approx(runs[0][1], abs=1e-6)
    other, _ = make_wmtp_trainer(
        tmp_path, "rho1-wmtp", reference_model="lab:student", config_reference_cache_dir=str(tmp_path / "cache")
    )
    other.train()
    assert other.reference.forwards == 3, "another reference's figures are its own"


def test_token_selection_as_in_rho_1(tmp_path):
    trainer, losses = make_wmtp_trainer(tmp_path, "rho1-wmtp", config_rho1_share=0.5, **SELECTED)
    trainer.train()
    assert losses.logs[0]["head_weight/1"] == pytest.approx(1.0)
    assert losses.logs[-1]["loss/head_2"] < losses.logs[0]["loss/head_2"]


# The critic


def test_a_critic_judges_each_token_by_what_it_is_worth_itself(tmp_path):
    """Hand-made: where the reference is better at token 5, that is earned at token 5, not before or after."""
    trainer, _ = make_wmtp_trainer(tmp_path, "critic-wmtp", config_critic_decay=0.5)
    trainer.model.eval()
    inputs = batch_of(trainer, rows=1)
    inputs["labels"] = inputs["input_ids"].clone()  # every token is learned
    with torch.no_grad():
        log_probs = trainer.model(inputs["input_ids"]).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0]
    ce = [0.0] + [-log_probs[t - 1, ids[t]].item() for t in range(1, len(ids))]  # of token t
    gain = torch.zeros(len(ids))
    gain[5] = 2.0  # nats, by which the reference is better at token 5
    reference = torch.tensor(ce) - gain
    trainer.reference.next_token_ce = lambda inputs, targets: torch.nn.functional.pad(reference[1:], (0, 1))[None]
    with torch.no_grad():
        hidden, returns, places = trainer._judged(inputs)
    wanted = torch.zeros(len(ids))
    wanted[5:] = 2.0 * 0.5 ** torch.arange(len(ids) - 5)
    torch.testing.assert_close(returns[0], wanted, atol=1e-4, rtol=0)
    assert places.all() and hidden.shape[:2] == places.shape
    # weights of the heads by these values: at place 3, head 2 predicts token 5
    batch = weighted_loss(trainer.model, inputs, lambda batch: batch.has_target.float(), "position")[1]
    weights = critic_weights(returns, batch.has_target, decay=0.5)
    assert weights[0, 3].argmax() == 1 and weights[0, 4].argmax() == 0 and weights[0, 3, 1] > 0.8


def rewarded(values):
    data = answers(len(values))
    return data.add_column("reward", values)


def test_a_critic_learns_rewards_from_a_column(tmp_path):
    """A reward that the text shows (does the answer name the river?) is learned; noise is not."""
    data = answers(240)
    about = [float("river" in row["completion"][0]["content"]) for row in data]
    explained = {}
    for name, values in (
        ("river", about),
        ("noise", torch.rand(240, generator=torch.Generator().manual_seed(0)).tolist()),
    ):
        trainer, losses = make_wmtp_trainer(
            tmp_path, "critic-wmtp", train_dataset=data.add_column("reward", values), reference_model=None,
            config_critic_steps=150, config_critic_learning_rate=5e-3, config_per_device_train_batch_size=8,
        )  # fmt: skip
        trainer.train_critic()
        explained[name] = trainer.state.log_history[-1]["critic/explained_variance"]
        assert trainer.reference is None and trainer.value_head.scale > 0.1
    assert explained["river"] > 0.4 and explained["noise"] < 0.1


def test_the_critic_alone_learns_in_its_stage(tmp_path):
    trainer, _ = make_wmtp_trainer(tmp_path, "critic-wmtp")
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train_critic()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert not any(p.requires_grad for p in trainer.value_head.parameters())
    trainer.save_model(str(tmp_path / "saved"))
    again, _ = make_wmtp_trainer(
        tmp_path, "critic-wmtp", reference_model=None, config_value_head_name_or_path=str(tmp_path / "saved")
    )
    hidden = torch.randn(2, 3, trainer.value_head.hidden_size)
    torch.testing.assert_close(again.value_head(hidden), trainer.value_head(hidden))
    again.train()


@pytest.mark.parametrize("bad", [None, float("nan"), "good", True])
def test_rewards_that_are_no_numbers_are_named(tmp_path, bad):
    values = [0.5, bad if not isinstance(bad, str) else None, 1.0, 0.0]
    if bad is True:
        values = [True, False, True, False]
    with pytest.raises(ValueError, match=r"record number \d: `reward` must be a finite number"):
        make_wmtp_trainer(tmp_path, "critic-wmtp", train_dataset=rewarded(values))


def test_what_cannot_work_is_said(tmp_path):
    with pytest.raises(ValueError, match="every record has the same `reward`"):
        make_wmtp_trainer(tmp_path, "critic-wmtp", train_dataset=rewarded([1.0, 1.0]))
    with pytest.raises(ValueError, match="cannot be packed"):
        make_wmtp_trainer(tmp_path, "critic-wmtp", train_dataset=rewarded([0.0, 1.0]), config_packing=True)
    with pytest.raises(ValueError, match="no reference"):
        make_wmtp_trainer(tmp_path, "rho1-wmtp", reference_model=None)
    with pytest.raises(ValueError, match="leaves nothing for an adapter"):
        make_wmtp_trainer(tmp_path, config_freeze_trunk=True, peft_config=LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(FileNotFoundError, match="no mtp_heads.json"):
        make_wmtp_trainer(tmp_path, config_heads_name_or_path=str(tmp_path))
    with pytest.raises(ValueError, match="PromptTuningConfig is not supported"):
        make_wmtp_trainer(tmp_path, peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    heads = MTPHeads(4, "transformer", hidden_size=64, window=7)
    with pytest.raises(ValueError, match="and head_window=7; the configuration says .* and head_window=32"):
        make_wmtp_trainer(tmp_path, heads=heads, config_head_type="transformer")
    shutil.copytree(resolve_model("lab:teacher"), tmp_path / "reference")
    train_tokenizer(["another vocabulary"], vocab_size=700).save_pretrained(tmp_path / "reference")
    with pytest.raises(ValueError, match="the vocabularies do not match: .* for the reference"):
        make_wmtp_trainer(tmp_path, "rho1-wmtp", reference_model=str(tmp_path / "reference"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"head_type": "medusa"}, "head_type must be one of"),
        ({"head_weighting": "mixed"}, "head_weighting must be one of"),
        ({"rho1_select": "bottom"}, "rho1_select must be one of"),
        ({"head_weight_temperature": 0.0}, "head_weight_temperature is out of range"),
        ({"rho1_share": 1.5}, "rho1_share is out of range"),
        ({"freeze_trunk": True, "horizon": 1}, "trains nothing"),
        ({"packing": True, "packing_strategy": "wrapped"}, "keeps no borders between texts"),
    ],
)
def test_configurations_that_cannot_work(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_wmtp_config(tmp_path, **options)


def test_every_option_is_documented():
    own = WMTPConfig.__dataclass_fields__.keys() - WMTPConfig.__mro__[1].__dataclass_fields__.keys()
    assert own and all(f"{name} (`" in WMTPConfig.__doc__ for name in own)


def test_value_head_files(tmp_path):
    ValueHead(8, scale=2.0).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "value_head.json").read_text()) == {"hidden_size": 8, "scale": 2.0}
    assert ValueHead.from_pretrained(tmp_path).scale == 2.0


def test_plain_text_is_trained_on_too(tmp_path):
    trainer, losses = make_wmtp_trainer(
        tmp_path, train_dataset=Dataset.from_list([{"text": "Fova has the river Vabe. It is an island."}] * 8)
    )
    trainer.train()
    assert losses.logs[-1]["loss/head_2"] < losses.logs[0]["loss/head_2"]
