"""The parts of a plan, each beside what it stands for."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import MixtralConfig, Qwen3MoeConfig

from lupi_trainer.lab import lab_path
from lupi_trainer.planning import check, held, plan, speed
from lupi_trainer.planning.gpus import GPUS
from lupi_trainer.planning.recipe import Lengths, make_run
from lupi_trainer.planning.rollout import left_by_rollouts, rollout_moments
from lupi_trainer.planning.run import STUDENT, TEACHER, Run, Sharding
from lupi_trainer.planning.sizes import Bits, size_of
from lupi_trainer.planning.training import training_moments
from lupi_trainer.speculative.runners.runner import Runner
from tests.lupi_skd.training import make_config
from tests.planning.shapes import qwen3


@pytest.fixture(scope="module")
def run() -> Run:
    config = qwen3(2, 64, 128, 8, vocabulary=512)
    student = size_of(config, "student", torch.bfloat16, trains=True, mixed=torch.bfloat16)
    teacher = size_of(config, "teacher", torch.bfloat16)
    return Run(student, teacher, STUDENT, False, False, 4, 2, 8, 20, 200, 0, 100, 5)


def test_what_recorded_rollouts_leave_is_held_in_training_too(run):
    recorded = replace(run, compiled=True, home=TEACHER)
    anew = replace(recorded, graphs_stay=False)
    for device, model in ((STUDENT, "student"), (TEACHER, "teacher")):
        kept = {item: size for where, item, size in left_by_rollouts(recorded) if where == device}
        (reserved,) = {m.items[f"K/V of the {model}"] for m in rollout_moments(recorded)[device]}
        assert kept == {"graphs": 512 << 20, f"K/V of the {model}": reserved}
        for mine, others in zip(training_moments(recorded)[device], training_moments(anew)[device]):
            assert mine.items == others.items | kept
    for other in ({"offloaded": True}, {"sharding": Sharding("fsdp2", 2)}, {"compiled": False}, {"writes": False}):
        assert not [*left_by_rollouts(replace(recorded, **other))], other
    mixed = replace(recorded, mixed=True, student=replace(run.student, dtype=torch.float32))
    assert [size for _, item, size in left_by_rollouts(mixed) if item == "bfloat16 copy"] == [2 * run.student.weights]


@pytest.mark.parametrize("nested", [False, True])
def test_four_bits_take_what_bitsandbytes_takes(nested):
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(1024, 512, bias=False, compress_statistics=nested, quant_type="nf4").to("cpu")
    state = layer.weight.quant_state
    taken = layer.weight.numel() * layer.weight.element_size() + state.absmax.numel() * state.absmax.element_size()
    if nested:
        taken += state.state2.absmax.numel() * state.state2.absmax.element_size()
    assert Bits(4, nested).bytes(1024 * 512, 2) == taken


@pytest.mark.parametrize("name, make", [
    ("adamw_torch_fused", torch.optim.AdamW),
    ("adagrad", torch.optim.Adagrad),
    ("rmsprop", torch.optim.RMSprop),
    ("sgd", torch.optim.SGD),
])  # fmt: skip
def test_an_optimizer_keeps_what_is_planned(name, make, run):
    weight = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = make([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    kept = [part for part in optimizer.state[weight].values() if isinstance(part, torch.Tensor) and part.dim()]
    student = replace(run.student, trained=weight.numel(), trained_width=2)
    planned = held.optimizer(replace(run, student=student, optimizer=name))
    assert planned == sum(part.numel() * part.element_size() for part in kept)


@pytest.mark.parametrize("kind, whole", [("zero2", ["student_weights"]), ("zero3", []), ("fsdp2", [])])
def test_what_is_sharded_adds_up_to_what_one_process_has(kind, whole, run):
    alone, of_four = (replace(run, sharding=Sharding(kind, processes, gathers=False)) for processes in (1, 4))
    for part in (held.optimizer, held.gradients, held.master):
        assert 4 * part(of_four) == pytest.approx(part(alone), abs=4)
    weights = [held.student_weights(each, "training") for each in (alone, of_four)]
    assert weights[0] == weights[1] if whole else weights[0] > weights[1]


def test_a_cache_has_the_bytes_that_a_runner_reserves(run):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(run.teacher.config, dtype=torch.bfloat16).eval()
    prompts = [[5] * 200, [6] * 150]
    runner = Runner(model, prompts, 2, 100, 512, widest=5)
    with torch.no_grad():
        runner.admit([0, 1], [0, 1])
    taken = sum(
        part.numel() * part.element_size() for layer in runner.cache.layers for part in (layer.keys, layer.values)
    )
    slots = runner.size + (run.gamma - 1)  # a kernel, which there is on a GPU, looks so far
    assert run.slots_of(run.teacher, 200) == slots
    assert 2 * runner.capacity * run.teacher.slot == taken


@pytest.mark.parametrize("home", [STUDENT, TEACHER])
def test_prompts_that_are_kept_stay_where_the_teacher_is(run, home):
    """In rollouts and in training, whatever else there is."""
    here = replace(run, home=home)
    for before, after in zip(plan.plan_bytes(here), plan.plan_bytes(replace(here, prompts_kept=5 << 20))):
        for phase in plan.PHASES:
            more = getattr(after, phase).total - getattr(before, phase).total
            assert more == (5 << 20) * (before.device == home)


def test_the_largest_batch_is_the_last_that_fits(run):
    memory = 2 << 30
    rows = plan.largest_batch(run, memory)
    assert plan.fits(plan.with_rows(run, rows), memory) and not plan.fits(plan.with_rows(run, rows + 1), memory)
    assert plan.largest_batch(run, 1 << 20) == 0


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("gamma", [1, 4])
def test_a_round_writes_the_expected_number_of_tokens(acceptance, gamma):
    expected = 0.0
    for accepted in itertools.product((True, False), repeat=gamma):
        chance = 1.0
        for each in accepted:
            chance *= acceptance if each else 1 - acceptance
        first = accepted.index(False) if False in accepted else gamma
        expected += chance * min(first + 1, gamma)  # the teacher writes one in place of the first that it rejects
    assert speed.tokens_a_round(acceptance, gamma) == pytest.approx(expected)


def test_more_accepted_or_a_faster_gpu_takes_less(run):
    recorded = replace(run, compiled=True)
    slow = speed.speed_of(recorded, GPUS["l4-24"], 100, 0.5)
    assert speed.speed_of(recorded, GPUS["h100-80"], 100, 0.5).step < slow.step
    assert speed.speed_of(recorded, GPUS["l4-24"], 100, 0.9).rounds < slow.rounds
    best = speed.best_gamma(recorded, GPUS["l4-24"], 100, 0.5)
    assert best.rollout <= slow.rollout and best.gamma >= 1


def test_a_run_without_room_is_warned_of_by_its_largest_item_and_the_ways_out(run):
    crowded = replace(run, completion=4_000)
    for phase in plan.plan_bytes(crowded):
        most, item = phase.worst.total, max(phase.worst.items, key=lambda item: phase.worst.items[item])

    def remake(keys):
        return replace(crowded, slots=keys.get("max_slots", 8), rows=keys.get("per_device_train_batch_size", 4))

    assert check.shortage(crowded, {STUDENT: most}, remake) is None
    said = check.shortage(crowded, {STUDENT: most - 1}, remake)
    assert said is not None and f"most of it is for {item}" in said and "per_device_train_batch_size: 2" in said


def test_the_check_before_a_run_plans_what_the_command_plans(tmp_path):
    keys = {"model_name_or_path": "lab:student", "teacher_model_name_or_path": "lab:teacher", "dtype": "bfloat16"}
    given = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "gamma": 7, "bf16": False}
    args = make_config(tmp_path, **given, model_init_kwargs={"dtype": "bfloat16"})
    lengths = Lengths(20, 200, 30, args.max_completion_length, 10, "stated")

    of_recipe = keys | given | {"gradient_checkpointing": False, "use_cpu": True, "max_completion_length": 12}

    def get(key, default=None):
        return of_recipe.get(key, default)

    mine = check.plan_of(args, lab_path("lab:student"), lab_path("lab:teacher"), False, lengths)[0]
    assert plan.plan_bytes(mine) == plan.plan_bytes(make_run(get, lengths))


@pytest.mark.parametrize("kind", [Qwen3MoeConfig, MixtralConfig])
def test_experts_in_float32_are_planned(kind):
    widths = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    config = kind(**widths, num_attention_heads=4, num_key_value_heads=2)
    half, full = (size_of(config, "m", dtype, trains=True) for dtype in (torch.bfloat16, torch.float32))
    assert full.slot == 2 * half.slot == 2 * 2 * 2 * 2 * 16 * 2  # layers, keys and values, heads, widths, bytes
    assert full.weights == half.weights


def test_a_run_of_which_no_plan_can_be_made_goes_on(tmp_path, caplog):
    args = SimpleNamespace(
        device=torch.device("cuda"),
        max_teacher_prompt_length=64,
        max_completion_length=64,
        world_size=1,
        ds3_gather_for_generation=True,
        model_init_kwargs={"cache_dir": "elsewhere"},
        trust_remote_code=False,
        bf16=True,
        fp16=False,
    )
    (tmp_path / "config.json").write_text("{")
    check.warn_of_memory(args, str(tmp_path), None, False, iter([]), None, None)
    (record,) = caplog.records
    assert "not known" in record.message and str(tmp_path) in record.message and "\n" not in record.message


def test_without_a_gpu_nothing_is_planned_before_a_run(caplog):
    args = SimpleNamespace(device=torch.device("cpu"))  # of which nothing more is asked
    check.warn_of_memory(args, "student", "teacher", False, Dataset.from_list([{"prompt": "x"}]), None, None)
    assert not caplog.records


def test_a_plan_that_cannot_be_made_is_said_and_the_run_goes_on(caplog, monkeypatch):
    def fails(*given):
        raise NotImplementedError("a model of its own kind")

    monkeypatch.setattr(check, "plan_of", fails)
    args = SimpleNamespace(device=torch.device("cuda"), max_teacher_prompt_length=20, max_completion_length=10)
    check.warn_of_memory(args, "student", "teacher", False, iter(()), None, None)
    assert "room for this run is not known: a model of its own kind" in caplog.text
