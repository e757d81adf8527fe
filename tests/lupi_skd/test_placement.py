"""Where the teacher goes, as far as a machine without GPUs can show it."""

import copy
import logging
import weakref

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env

from lupi_trainer.lab import resolve_model
from lupi_trainer.lupi_skd import placement
from lupi_trainer.lupi_skd.placement import Offloaded, backend_name
from lupi_trainer.scripts.recipe_files import find_accelerate_config, list_recipes
from lupi_trainer.teachers.loaded import load_teacher, paired_device, teacher_place
from tests.lupi_skd.training import make_config, make_trainer
from tests.wmtp.training import make_wmtp_trainer


def test_paired_gives_every_process_two_neighboring_gpus():
    """By the order of GPUs in the shipped configuration, whatever the number of processes."""
    config = yaml.safe_load(find_accelerate_config("paired_gpu").read_text())
    order = list(map(int, config["gpu_ids"].split(",")))
    processes = config["num_processes"]
    assert sorted(order) == list(range(2 * processes))
    for rank in range(processes):
        teacher = int(paired_device(rank, processes, len(order)).removeprefix("cuda:"))
        assert (order[rank], order[teacher]) == (2 * rank, 2 * rank + 1)
    assert paired_device(0, 1, 2) == "cuda:1"


@pytest.mark.parametrize(
    "name, message",
    [
        ("paired", "two GPUs for each of 1 processes, but 0 are visible"),
        ("cuda:1", "teacher_device='cuda:1', but 0 GPUs are visible"),
        ("gpu", "teacher_device='gpu' is no device"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without GPUs")
def test_a_device_that_is_not_there_is_refused(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, config_teacher_device=name)
    assert not (tmp_path / "run").exists()


def test_the_teacher_goes_where_it_is_sent():
    assert (
        teacher_place(None, torch.device("cpu")) == teacher_place("cpu", torch.device("cuda:0")) == torch.device("cpu")
    )


@pytest.mark.parametrize("name, gpus", [("meta", 1), (None, 2)])
def test_a_student_leaves_the_gpu_of_its_teacher_alone(tmp_path, name, gpus):
    """One process that sees two GPUs: the Trainer copies the student to as many as `n_gpu` says."""
    args = make_config(tmp_path, teacher_device=name)
    args._n_gpu = 2
    load_teacher(resolve_model("lab:teacher"), args, torch.device("cpu"))
    assert args.n_gpu == gpus


@pytest.mark.parametrize("role", ["teacher", "reference"])
def test_a_model_whose_weights_are_sharded_is_refused(tmp_path, teacher, role):
    sharded = copy.deepcopy(teacher)
    sharded.model.norm.weight.ds_id = 7  # as DeepSpeed marks them
    with pytest.raises(ValueError, match=f"ZeRO-3 shards the weights of the {role}.*pass its name or path"):
        if role == "teacher":
            make_trainer(tmp_path, teacher_model=sharded)
        else:
            make_wmtp_trainer(tmp_path, "rho1-wmtp", reference_model=sharded)


ELSEWHERE = torch.device("cpu", 0)  # to torch another place than "cpu": what goes there is a copy


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.grid(2)
def test_an_offloaded_teacher_is_on_its_device_for_its_work_alone(tmp_path, monkeypatch, teacher, reuse):
    """The same losses; it comes once a rollout, and once a loss where states are not kept."""
    runs, copies, dropped = [], [], []
    on, drop = Offloaded.on, Offloaded._drop
    monkeypatch.setattr(Offloaded, "on", lambda *args: copies.append(args[1]) or on(*args))
    monkeypatch.setattr(Offloaded, "_drop", lambda model: dropped.append(model) or drop(model))
    for offload in (False, True):
        trainer, losses = make_trainer(
            tmp_path / str(offload),
            teacher_model=teacher,
            config_teacher_offload=offload,
            config_reuse_verification=reuse,
        )
        trainer.teachers.first.device = ELSEWHERE
        trainer.train()
        runs.append(losses.losses)
        assert len(copies) == (3 * (1 if reuse else 2) if offload else 0)
    assert runs[0] == runs[1] and set(copies) == {ELSEWHERE}
    assert len(dropped) == len(copies) + 1  # when it was offloaded first


def storages(model) -> dict[str, int]:
    return {name: tensor.untyped_storage().data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}


def test_an_offloaded_model_has_one_master_and_its_copies_are_dropped(teacher, monkeypatch):
    model = copy.deepcopy(teacher).requires_grad_(False)
    model.register_buffer("extra", torch.arange(3.0), persistent=False)
    bytes_before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pins = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pins.append(tensor) or tensor.clone())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    offloaded = Offloaded(model)
    tensors = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert len(pins) == len(tensors)  # a tied weight once
    home, gone = storages(model), []
    for _ in range(2):
        with offloaded.on(ELSEWHERE):
            away = storages(model)
            assert not {*away.values()} & {*home.values()} and len({*away.values()}) == len({*home.values()})
            assert model.lm_head.weight is model.model.embed_tokens.weight
            assert model.extra.data_ptr() != offloaded.kept[-1][1].data_ptr()
            gone += [weakref.ref(parameter.untyped_storage()) for parameter in model.parameters()]
            assert gone[-1]() is not None
            model.model.norm.weight.zero_()  # a copy: what is written there is lost with it
        assert storages(model) == home and not any(storage() for storage in gone)
    with pytest.raises(KeyError), offloaded.on(ELSEWHERE):
        raise KeyError
    assert storages(model) == home and len(pins) == len(tensors)
    assert all(torch.equal(tensor, bytes_before[name]) for name, tensor in model.state_dict().items())
    with offloaded.on(torch.device("cpu")):  # where it is
        assert storages(model) == home


def test_offloading_what_cannot_move_is_refused(tmp_path, teacher):
    with pytest.raises(ValueError, match="not quantized"):
        make_config(tmp_path, teacher_offload=True, teacher_load_in_4bit=True)
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="no other model to offload"):
        make_trainer(tmp_path, model=teacher, teacher_model=None, peft_config=lora, config_teacher_offload=True)


def test_fsdp_that_became_ddp_is_said(tmp_path, monkeypatch, caplog):
    trainer, _ = make_trainer(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with caplog.at_level(logging.WARNING):
        assert backend_name(trainer.dist, trainer.accelerator) == trainer.backend == "one process"
    assert "FSDP was asked for, but this is one process" in caplog.text


def test_all_placements_of_the_issue_have_a_configuration():
    names = {
        name.split("/")[1].removesuffix(".yaml") for name in list_recipes() if name.startswith("accelerate_configs/")
    }
    wanted = {
        "single_cpu",
        "multi_cpu",
        "single_gpu",
        "multi_gpu",
        "paired_gpu",
        "multi_node",
        "fsdp2",
        "zero2",
        "zero2_paired",
        "zero3",
        "multi_node_paired",
    }
    assert wanted <= names


@pytest.mark.parametrize("name, machines", [("zero2_paired", 1), ("multi_node_paired", 2)])
def test_deepspeed_gives_every_process_of_a_machine_two_neighboring_gpus(name, machines):
    """What accelerate would start, and with which environment."""
    args = launch_command_parser().parse_args(["--config_file", str(find_accelerate_config(name)), "train.py"])
    args, *_ = _validate_launch_command(args)
    args.main_process_port, args.deepspeed_fields_from_accelerate_config = 0, "zero_stage"  # a port that is free
    _, environment = prepare_deepspeed_cmd_env(args)
    processes = int(args.nproc_per_node)
    order = list(map(int, environment["CUDA_VISIBLE_DEVICES"].split(",")))
    for rank in range(processes):
        teacher = int(paired_device(rank, processes, len(order)).removeprefix("cuda:"))
        assert (order[rank], order[teacher]) == (2 * rank, 2 * rank + 1)
    assert (processes, machines) == (4, int(getattr(args, "nnodes", None) or 1))
    assert (
        environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2" and environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    )


@pytest.mark.parametrize(
    "name",
    ["multi_node", "multi_node_paired", "paired_gpu", "multi_gpu", "fsdp2", "zero2", "zero2_paired", "zero3"],
)
def test_accelerate_reads_the_configuration(name):
    """As `accelerate launch` does it; the GPUs themselves are not here."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(find_accelerate_config(name)))
    assert config.num_processes >= 4 and config.distributed_type


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_processor_without_bfloat16_is_said(monkeypatch, caplog, student, dtype, able):
    monkeypatch.setattr(placement, "packed_types", lambda: (torch.float32, torch.bfloat16)[: 1 + able])
    model = copy.deepcopy(student).to(dtype)
    placement.warn_of_emulation(model, torch.device("cpu"))
    said = "no instructions: in float32" in caplog.text
    assert said == (dtype == torch.bfloat16 and not able)
    placement.warn_of_emulation(model, torch.device("cuda"))
    assert caplog.text.count("no instructions") == said
