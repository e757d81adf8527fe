"""Tokens weighted by what the knowledge changes: the loss beside its definition, its control, its refusals."""

import contextlib
import logging
import math

import pytest
import torch
from peft import LoraConfig

from lupi_trainer.lab import load_lab_records, world
from tests.lupi_skd.test_teacher_words import verbose
from tests.lupi_skd.test_trainer import assert_same, loss_and_gradients, one_batch
from tests.lupi_skd.training import make_config, make_trainer


RECORDS = load_lab_records("lab:new")[:3] + [load_lab_records("lab:common")[0] | {"knowledge": None}]
WEIGHTED = {"config_loss_weighting": "knowledge", "config_temperature": 0.8, "train_dataset": RECORDS}


def self_taught(teacher) -> dict:
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return {"model": teacher, "teacher_model": None, "peft_config": lora}


def logits(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """[C, V] of one text, read alone and without a cache."""
    return model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1 : -1]


def weights_of(gain: torch.Tensor, select: str) -> torch.Tensor:
    """gain [C] -> [C]: by their definitions, with the settings' defaults."""
    if select == "softmax":
        return 0.1 + 0.9 * gain.softmax(0) * len(gain)
    count = math.ceil(0.3 * len(gain) - 1e-6)
    chosen = torch.zeros(len(gain)).index_fill(0, gain.argsort(descending=True, stable=True)[:count], 1.0)
    return 0.1 + 0.9 * chosen * len(gain) / count


def reference(trainer, batch, tokenizer) -> tuple[torch.Tensor, float]:
    """The weighted divergence, text by text; and the largest gain of a token, in nats."""
    total, tokens, largest = torch.zeros(()), 0, 0.0
    for row in range(len(RECORDS)):
        names = ("prompt", "teacher_prompt", "completion")
        prompt, told, text = (batch[f"{n}_ids"][row][batch[f"{n}_mask"][row].bool()].tolist() for n in names)
        asked = trainer.train_dataset[row]["prompt"]
        bare = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        own = trainer.teacher_model is not trainer.model and not hasattr(trainer.model, "disable_adapter")
        teacher = trainer.teacher_model if own else trainer.model
        with torch.no_grad(), contextlib.nullcontext() if own else trainer.model.disable_adapter():
            knowing, unknowing = logits(teacher, told, text), logits(teacher, bare, text)
        gain = (knowing.softmax(-1) * (knowing.log_softmax(-1) - unknowing.log_softmax(-1))).sum(-1)
        weights = weights_of(gain, trainer.args.knowledge_select)
        if RECORDS[row]["knowledge"] is None:
            weights = torch.ones(len(text))
        else:
            largest = max(largest, gain.max().item())
        p, log_q = (knowing / 0.8).softmax(-1), (logits(trainer.model, prompt, text) / 0.8).log_softmax(-1)
        total = total + (weights * (p * (p.log() - log_q)).sum(-1)).sum()
        tokens += len(text)
    return total / tokens, largest


@pytest.mark.parametrize("kind, reuse, select", [
    ("loaded", True, "top"),
    ("loaded", False, "softmax"),
    ("self", True, "softmax"),
    ("self", False, "top"),
    ("own template", True, "top"),
])  # fmt: skip
def test_the_loss_is_its_definition(tmp_path, teacher, tokenizer, kind, reuse, select):
    changes = self_taught(teacher) if kind == "self" else {}
    if kind == "own template":
        tokenizer = verbose(tokenizer)
        changes = {"teacher_processing_class": tokenizer, "config_allow_different_prompt_ends": True}
    changes |= {"config_reuse_verification": reuse, "config_knowledge_select": select}
    trainer, _ = make_trainer(tmp_path, **WEIGHTED, **changes)
    batch = one_batch(trainer)
    found = loss_and_gradients(trainer, batch)
    wanted, largest = reference(trainer, batch, tokenizer)
    assert largest > 1
    trainer.model.zero_grad()
    wanted.backward()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert_same(found, (wanted.item(), gradients), tolerance=2e-5)


def run(tmp_path, name: str, **settings):
    trainer, losses = make_trainer(tmp_path / name, train_dataset=RECORDS, config_max_steps=4, **settings)
    trainer.train()
    return trainer, losses


@pytest.mark.slow
def test_a_floor_of_one_is_uniform_and_the_control_is_neither(tmp_path):
    runs = {
        name: run(tmp_path, name, **{f"config_{key}": value for key, value in settings.items()})[1]
        for name, settings in {
            "uniform": {},
            "floor": {"loss_weighting": "knowledge", "knowledge_floor": 1.0},
            "knowledge": {"loss_weighting": "knowledge"},
            "shuffled": {"loss_weighting": "shuffled"},
            "again": {"loss_weighting": "shuffled"},
        }.items()
    }
    losses = {name: its.losses for name, its in runs.items()}
    assert losses["floor"] == pytest.approx(losses["uniform"], abs=1e-6)
    assert losses["again"] == losses["shuffled"]
    first = [losses[name][0] for name in ("uniform", "knowledge", "shuffled")]
    assert min(abs(a - b) for a, b in zip(first, first[1:] + first[:1])) > 1e-3
    logs = {name: its.logs for name, its in runs.items()}
    assert not any(key.startswith("knowledge/") for log in logs["uniform"] for key in log)
    assert all(log["knowledge/gain"] > 0 for log in logs["knowledge"])
    assert all(log["knowledge/effective_tokens"] == pytest.approx(1) for log in logs["floor"])
    assert all(0 < log["knowledge/effective_tokens"] < 0.9 for log in logs["knowledge"])


def test_batches_cut_in_another_way_have_the_same_losses(tmp_path):
    whole = run(tmp_path, "whole", config_loss_weighting="knowledge")[1]
    cut = {"config_per_device_train_batch_size": 1, "config_gradient_accumulation_steps": 4}
    assert run(tmp_path, "cut", config_loss_weighting="knowledge", **cut)[1].losses == pytest.approx(
        whole.losses, abs=1e-5
    )


@pytest.mark.parametrize(
    "setting",
    [
        {"loss_weighting": "knowledge"},
        {"acceptance_rule": "knowledge", "acceptance_kwargs": {"k": 400, "min_prob": 0.0, "threshold": 8.0}},
    ],
    ids=["weights", "rule"],
)
@pytest.mark.grid(2)
def test_each_row_s_own_teacher_reads_without_the_knowledge(tmp_path, setting):
    """Two names of one teacher: what one has, the other has."""
    settings = {f"config_{key}": value for key, value in setting.items()}
    one = run(tmp_path, "one", **settings)[1]
    other = {"other": {"model_name_or_path": "lab:teacher", "system_prompt": world.PERSONA}}
    records = [record | ({"teacher": "other"} if n % 2 else {}) for n, record in enumerate(RECORDS)]
    trainer, two = make_trainer(
        tmp_path / "two", train_dataset=records, config_max_steps=4, config_teachers=other, **settings
    )
    trainer.train()
    assert two.losses == pytest.approx(one.losses, abs=1e-5) and len(set(one.losses)) == 4
    plain = run(tmp_path, "plain")[1]
    assert max(abs(a - b) for a, b in zip(plain.losses, one.losses)) > 1e-3


def test_evaluations_are_uniform(tmp_path):
    found = {}
    for weighting in ("uniform", "knowledge"):
        trainer, _ = make_trainer(
            tmp_path / weighting, train_dataset=RECORDS, eval_dataset=RECORDS, config_loss_weighting=weighting
        )
        found[weighting] = trainer.evaluate()["eval_loss"]
    assert found["knowledge"] == pytest.approx(found["uniform"], abs=1e-7)


def test_the_control_goes_on_from_a_checkpoint(tmp_path):
    saved = {"config_save_strategy": "steps", "config_save_steps": 2, "config_loss_weighting": "shuffled"}
    whole = run(tmp_path, "run", **saved)[1]
    trainer, losses = make_trainer(tmp_path / "run", train_dataset=RECORDS, config_max_steps=4, **saved)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "run" / "checkpoint-2"))
    assert losses.losses == whole.losses[2:]


def test_the_measures_of_an_open_interval_survive_a_kill(tmp_path):
    """They are means over all steps since the last log, resumed or not."""
    saved = {"config_save_strategy": "steps", "config_save_steps": 2, "config_loss_weighting": "knowledge"}
    saved |= {"config_logging_steps": 4, "config_max_steps": 4, "config_max_completion_length": 40}
    trainer, whole = make_trainer(tmp_path, **saved)
    trainer.train()
    trainer, resumed = make_trainer(tmp_path, **saved)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name in ("knowledge/gain", "knowledge/effective_tokens"):
        assert resumed.logs[-1][name] == pytest.approx(whole.logs[-1][name], rel=1e-6), name


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("loss_weighting", "other", r"loss_weighting must be one of \['uniform', 'knowledge', 'shuffled'\]"),
        ("knowledge_select", "other", "knowledge_select must be one of"),
        ("knowledge_temperature", 0.0, "knowledge_temperature must be above 0"),
        ("knowledge_share", 0.0, r"knowledge_share must be in \(0, 1\]"),
        ("knowledge_floor", 1.5, r"knowledge_floor must be in \[0, 1\]"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, key, value, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path, **{key: value})


def test_a_teacher_on_a_server_has_not_read_without_the_knowledge(tmp_path):
    with pytest.raises(ValueError, match="loss_weighting='knowledge' does not go with a teacher on a server"):
        make_config(tmp_path, loss_weighting="knowledge", teacher_model_server_url="http://localhost:1")


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"knowledge_floor": 0.2}, "knowledge_floor=0.2: no effect, since loss_weighting='uniform'"),
        ({"loss_weighting": "knowledge", "knowledge_temperature": 0.5}, "knowledge_temperature=0.5: no effect"),
        (
            {"loss_weighting": "knowledge", "knowledge_select": "softmax", "knowledge_share": 0.5},
            "knowledge_share=0.5: no effect",
        ),
    ],
)
def test_keys_without_effect_are_named(tmp_path, caplog, settings, said):
    with caplog.at_level(logging.WARNING):
        make_config(tmp_path, **settings)
    assert said in caplog.text
