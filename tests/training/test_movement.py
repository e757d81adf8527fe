"""Steps that a weight's type would round away: refused before training, and none of them lost in the ways that are
shipped."""

import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.training_args import OptimizerNames

from lupi_trainer.lab import resolve_model
from lupi_trainer.training import movement
from lupi_trainer.training.movement import share_that_stays, stays
from tests.kd_lora.training import make_kd_trainer
from tests.lupi_skd.training import make_trainer
from tests.wmtp.training import make_wmtp_trainer


RATE = 1e-5
BF16, FP32 = torch.bfloat16, torch.float32


def small_student(dtype=FP32):
    """The lab's student before any training: weights with a standard deviation of 0.02."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(resolve_model("lab:student")))
    return model.to(dtype)


def neighbors(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The next number of bfloat16 farther from zero, and the next one nearer to it."""
    bits = weight.view(torch.int16)
    return (bits + 1).view(BF16).double(), (bits - 1).view(BF16).double()


def test_a_weight_stays_where_both_its_neighbors_are_more_than_two_steps_away():
    torch.manual_seed(0)
    weights = (torch.randn(2000) * 0.02).to(BF16)
    weights = torch.cat([weights, torch.tensor([0.0039, 0.00390625, 0.0078125, 1.0, -1.0], dtype=BF16)])
    for step in (1e-6, RATE, 1e-4, 1e-3):
        out, back = ((other - weights.double()).abs() for other in neighbors(weights))
        nearest = torch.minimum(out, back)
        assert torch.equal(stays(weights, step)[nearest != 2 * step], (nearest > 2 * step)[nearest != 2 * step])
    assert not stays(torch.zeros(3, dtype=BF16), RATE).any() and not stays(weights.float(), RATE)[weights != 0].any()


def test_the_share_is_that_of_all_weights_of_all_sizes():
    torch.manual_seed(0)
    parts = [(torch.randn(300, 70) * 0.02).to(BF16), torch.ones(50_000, dtype=BF16), torch.zeros(9000, dtype=BF16)]
    whole = torch.cat([stays(part.flatten(), RATE) for part in parts]).double().mean().item()
    assert share_that_stays((part, RATE) for part in parts) == pytest.approx(whole, abs=0.01)
    assert 0 < share_that_stays([(parts[0], RATE), (torch.randn(21_000), RATE)]) < 0.5  # float32 moves, and counts
    assert share_that_stays([(torch.ones(5, dtype=BF16, device="meta"), RATE)]) == share_that_stays([]) == 0


MAKERS = {
    "lupi-skd": make_trainer,
    "kd-lora": partial(make_kd_trainer, peft_config=None),
    "wmtp": make_wmtp_trainer,
}


@pytest.mark.parametrize("method", MAKERS)
def test_every_trainer_refuses_it_and_names_the_ways_out(tmp_path, method):
    refused = r"^8\d% of the weights that are trained would never move: they are bfloat16, in which a step of "
    refused += r"learning_rate=1e-05 .*dtype: float32.*bf16: true.*use_peft.*ZeRO-2.*bf16_stochastic_round=True"
    make = partial(MAKERS[method], tmp_path, model=small_student(BF16), config_lr_scheduler_type="cosine")
    if method == "wmtp":  # new heads are as many weights as the trunk, and of its type
        refused = refused.replace(r"8\d", r"\d\d")
    with pytest.raises(ValueError, match=refused):
        make(config_learning_rate=RATE)
    make(config_learning_rate=RATE, config_optim="sgd")  # whose steps may have any size
    make(config_learning_rate=1e-3)


@pytest.mark.parametrize("there", [False, True])
def test_a_refusal_leaves_no_folder_that_was_not_there(tmp_path, there):
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    with pytest.raises(ValueError, match="would never move"):
        make_trainer(tmp_path, model=small_student(BF16), config_learning_rate=RATE)
    assert folder.exists() == there


def test_the_optimizer_that_was_given_says_how_far_it_goes(tmp_path):
    student = small_student(BF16)
    make = partial(make_trainer, tmp_path, model=student)
    for kind in (torch.optim.AdamW, torch.optim.Adam):
        optimizer = kind(student.parameters(), lr=RATE)
        with pytest.raises(ValueError, match="would never move.*learning_rate=1e-05"):
            make(optimizers=(optimizer, None))
    warm = kind(student.parameters(), lr=1e-3)
    begun = torch.optim.lr_scheduler.LambdaLR(warm, lambda step: step / 1000)
    assert warm.param_groups[0]["lr"] == 0  # its first step, which is not its longest
    make(optimizers=(warm, begun), config_learning_rate=RATE)
    make_wmtp = partial(make_wmtp_trainer, tmp_path, model=student, config_learning_rate=1e-3)
    with pytest.raises(ValueError, match="would never move"):
        make_wmtp(optimizer_cls_and_kwargs=(torch.optim.AdamW, {"lr": RATE}))
    make_wmtp(optimizer_cls_and_kwargs=(torch.optim.AdamW, {}))


@pytest.mark.parametrize("options", ["bf16_stochastic_round=True", "block_size=128, bf16_stochastic_round = true"])
def test_stochastic_rounding_passes_in_one_process_alone(tmp_path, monkeypatch, options):
    make = partial(make_trainer, tmp_path, model=small_student(BF16), config_learning_rate=RATE)
    trainer, _ = make(config_optim="adamw_torch_8bit", config_optim_args=options)
    for other in (None, "bf16_stochastic_round=False"):
        with pytest.raises(ValueError, match="would never move"):
            make(config_optim="adamw_torch_8bit", config_optim_args=other)
    monkeypatch.setattr(trainer.accelerator.state, "distributed_type", movement.DistributedType.MULTI_GPU)
    with pytest.raises(ValueError, match="each would round its bfloat16 weights by chances of its own"):
        movement.require_movement(trainer)


Params4bit = type("Params4bit", (torch.nn.Parameter,), {})  # by which accelerate knows them


@pytest.mark.parametrize(
    "kind, mixed, options, kept",
    [
        ("MULTI_GPU", "bf16", {}, False),
        ("DEEPSPEED", "bf16", {}, True),
        ("DEEPSPEED", "no", {"bf16": {"enabled": True}}, True),
        ("DEEPSPEED", "bf16", {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}, False),
        ("FSDP", "bf16", {}, True),
        ("FSDP", "no", {}, False),
        ("FSDP", "bf16", {"quantized": True}, False),
        ("FSDP", "bf16", {"quantized": True, "is_fsdp2": False}, True),
    ],
)
def test_who_keeps_float32_weights_beside_those_that_were_loaded(kind, mixed, options, kept):
    config = {key: value for key, value in options.items() if key == "bf16"}
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(hf_ds_config=HfDeepSpeedConfig(config)))
    accelerator = SimpleNamespace(
        distributed_type=movement.DistributedType[kind],
        mixed_precision=mixed,
        state=state,
        is_fsdp2=options.get("is_fsdp2", True),
        is_main_process=True,
    )
    model = torch.nn.Linear(64, 64, bias=False, dtype=BF16)
    torch.nn.init.ones_(model.weight)
    if options.get("quantized"):
        model.frozen = Params4bit(torch.zeros(1), requires_grad=False)
    args = SimpleNamespace(optim="adamw_torch", optim_args=None, learning_rate=RATE)
    given = {"optimizer": None, "optimizer_cls_and_kwargs": None}
    trainer = SimpleNamespace(accelerator=accelerator, model=model, args=args, **given)
    if kept:
        return movement.require_movement(trainer)
    with pytest.raises(ValueError, match="100% of the weights that are trained would never move"):
        movement.require_movement(trainer)


def test_modules_that_an_adapter_saves_have_the_type_of_the_student(tmp_path):
    make = partial(make_trainer, tmp_path, config_learning_rate=RATE)
    lora = LoraConfig(r=2, task_type="CAUSAL_LM", modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match=r"`modules_to_save` in float32 \(`dtype: float32`\).*learning_rate to"):
        make(model=small_student(BF16), peft_config=lora)
    adapted = get_peft_model(small_student(BF16), LoraConfig(r=2, task_type="CAUSAL_LM")).to(BF16)
    for weight in (p for p in adapted.parameters() if p.requires_grad):
        weight.data.fill_(torch.inf)  # which no step moves
    with pytest.raises(ValueError, match=r"`dtype: float32`\)$"):
        make(model=adapted)


def test_the_optimizers_are_transformers_own():
    assert movement._NEAREST <= {name.value for name in OptimizerNames}


def test_the_bfloat16_adapter_of_a_quantized_student_is_told_a_learning_rate(tmp_path):
    student = small_student()
    adapted = get_peft_model(student, LoraConfig(r=4, task_type="CAUSAL_LM"))
    for parameter in adapted.parameters():
        parameter.data = parameter.to(BF16) if parameter.requires_grad else parameter.data  # as TRL does it
    make = partial(make_kd_trainer, tmp_path, model=adapted, peft_config=None)
    with pytest.raises(ValueError, match="would never move.* adapter of a quantized student in bfloat16") as refused:
        make(config_learning_rate=RATE)
    (least,) = re.findall("learning_rate to (\\S+) or more", str(refused.value))
    make(config_learning_rate=float(least))
    with pytest.raises(ValueError, match="would never move"):
        make(config_learning_rate=float(least) / 2.1)


# Movement: what a run of plain AdamW at 1e-5 in float32 adds to the weights, and what others add


def texts(rows: int = 8) -> Dataset:
    ids = torch.randint(0, 500, (rows, 12), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])


def make_mover(tmp_path, dtype=FP32, steps: int = 20, **changes):
    """A trainer of [`small_student`], all of whose weights learn from gold answers."""
    options = {"use_kd": False, "learning_rate": RATE, "weight_decay": 0.0, "max_steps": steps, "logging_steps": steps}
    options |= {"per_device_train_batch_size": 2} | changes
    peft_config = options.pop("peft_config", None)
    config = {f"config_{key}": value for key, value in options.items()}
    given = {"model": small_student(dtype), "teacher_model": None, "train_dataset": texts()}
    return make_kd_trainer(tmp_path, peft_config=peft_config, **given, **config)[0]


def run(tmp_path, dtype=FP32, **changes) -> torch.Tensor:
    """What a run adds to the weights that it trains, in a row."""
    trainer = make_mover(tmp_path, dtype, **changes)
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().float().clone() for name, p in trained.items()}
    trainer.train()
    return torch.cat([(p.detach().float() - before[name]).flatten() for name, p in trained.items()])


def shares(moved: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """The length of a movement, and how far it goes where it should go, both as shares of the wanted one's length."""
    return (moved.norm() / wanted.norm()).item(), (moved @ wanted / wanted.square().sum()).item()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    return run(tmp_path_factory.mktemp("float32"))


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [False, True])
def test_plain_adamw_on_bfloat16_weights_makes_little_of_it(tmp_path, monkeypatch, wanted, mixed):
    monkeypatch.setattr(movement, "STUCK", 1.0)
    length, way = shares(run(tmp_path, BF16, bf16=mixed), wanted)
    print(f"bfloat16 weights, plain AdamW, bf16={mixed}: {length:.1%} of the length, {way:.1%} of the way")
    assert length < 0.5 and way < 0.25


WAYS = {
    "float32 weights, autocast": {"bf16": True},
    "float32 weights, autocast, Adam in 8 bits": {"bf16": True, "optim": "adamw_bnb_8bit"},
    "bfloat16 weights, stochastic rounding": {
        "dtype": BF16,
        "optim": "adamw_torch_8bit",
        "optim_args": "bf16_stochastic_round=True",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_the_ways_out_make_all_of_it(tmp_path, wanted, name):
    if "stochastic" in name:
        pytest.importorskip("torchao", reason="needs torchao, which `make test` does without")
    length, way = shares(run(tmp_path, **WAYS[name]), wanted)
    print(f"{name}: {length:.1%} of the length, {way:.1%} of the way")
    assert length >= 0.95 and way >= 0.95


@pytest.mark.slow
def test_an_adapter_of_frozen_bfloat16_weights_makes_all_of_it(tmp_path):
    moved = {}
    for dtype in (FP32, BF16):
        torch.manual_seed(1)
        moved[dtype] = run(tmp_path, dtype, peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"))
    length, way = shares(moved[BF16], moved[FP32])
    print(f"float32 adapter of bfloat16 weights: {length:.1%} of the length, {way:.1%} of the way")
    assert length >= 0.95 and way >= 0.95
