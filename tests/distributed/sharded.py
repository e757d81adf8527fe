"""A short lab run on two processes, under each way of sharing out the student's weights."""

import contextlib
import importlib
import io
import os
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM

from lupi_trainer.lab import load_lab_records, resolve_model
from tests.kd_lora.training import make_kd_trainer
from tests.lupi_skd.training import make_trainer
from tests.training.test_movement import make_mover
from tests.wmtp.training import ALGORITHMS, make_wmtp_trainer, uneven_answers


HARDWARE = "transformers.training_args"
CONFIGS = Path(__file__).parents[2] / "recipes/accelerate_configs"


def fsdp2() -> dict[str, str]:
    """What `accelerate launch` puts into the environment for the configuration that is shipped, in float32."""
    config = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())["fsdp_config"]
    return {"ACCELERATE_USE_FSDP": "true", **{key.upper(): str(value) for key, value in config.items()}}


def settings(backend: str, device: str = "cpu") -> dict:
    if device == "cpu" and (backend == "fsdp2" or backend.startswith("zero")):
        os.environ.update(ACCELERATE_TORCH_DEVICE="cpu")
    if backend == "fsdp2":
        os.environ.update(fsdp2())
        return {"use_cpu": False}
    if backend.startswith("zero"):
        zero = {
            "stage": int(backend[4]),
            "reduce_bucket_size": 100_000,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
        config = {
            "zero_optimization": zero,
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
        }
        return {"use_cpu": False, "deepspeed": config, "ds3_gather_for_generation": not backend.endswith("lockstep")}
    return {"use_cpu": device == "cpu"}


@contextlib.contextmanager
def on_cpu(backend: str):
    """Inside, `backend` shares out weights on the CPU."""
    with contextlib.ExitStack() as stack:
        if backend == "fsdp2" or backend.startswith("zero"):
            # several CPU processes count as accelerators: the one place where accelerate turns FSDP down
            cpu = "gloo", DistributedType.MULTI_GPU
            stack.enter_context(mock.patch.object(PartialState, "_prepare_backend", lambda *args, **kwargs: cpu))
        if backend.startswith("zero"):
            os.environ["DS_ACCELERATOR"] = "cpu"
            from deepspeed import ops

            # gloo speaks for all: DeepSpeed's shared memory is compiled first, for minutes
            stack.enter_context(mock.patch.dict(ops.__compatible_ops__, deepspeed_shm_comm=False))
        yield


@contextlib.contextmanager
def as_one_of(rank: int, processes: int, backend: str, device: str = "cpu"):
    """Inside, this process is one of several, which `backend` may share weights out to; nothing is printed."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    with on_cpu(backend) if device == "cpu" else contextlib.nullcontext(), contextlib.redirect_stdout(io.StringIO()):
        yield


def run_script(rank: int, script: str, arguments: list[str], processes: int) -> None:
    """A script of `lupi_trainer.scripts` with its arguments, in a process that waits for no launcher."""
    with as_one_of(rank, processes, "ddp"):
        importlib.import_module(f"lupi_trainer.scripts.{script}").main(arguments)


def untied_student():
    """The lab's, with an `lm_head` of its own and eight columns that the teacher has not."""
    model = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"))
    weight = nn.functional.pad(model.lm_head.weight.detach(), (0, 0, 0, 8))
    model.config.tie_word_embeddings = False
    model.config.vocab_size = len(weight)
    model.lm_head = nn.Linear(*weight.shape[::-1], bias=False)
    model.lm_head.weight.data = weight
    model.model.embed_tokens = nn.Embedding.from_pretrained(weight.clone(), freeze=False)
    return model


def train(
    rank: int,
    backend: str,
    folder: str,
    processes: int = 2,
    untied: bool = False,
    judged: bool = False,
    resume: str | None = None,
    device: str = "cpu",
    lora: bool = False,
    **changes,
) -> dict:
    """Losses and marks of a run of four steps, which an evaluation precedes if `judged`; goes on from `resume`."""
    with as_one_of(rank, processes, backend, device):
        config = {
            "max_steps": 4,
            "per_device_train_batch_size": 4 // processes,
            "gradient_accumulation_steps": 2,
            "max_completion_length": 48,
            **settings(backend, device),
            **changes,
        }
        torch.manual_seed(0)  # of an adapter
        adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        trainer, losses = make_trainer(
            Path(folder),
            untied_student() if untied else "lab:student",
            train_dataset=load_lab_records("lab:mixed")[::9],
            eval_dataset=load_lab_records("lab:eval")[:2] if judged else None,
            probes=load_lab_records("lab:probes-common")[:5],
            peft_config=adapter if lora else None,
            **{f"config_{key}": value for key, value in config.items()},
        )
        if judged:
            trainer.evaluate()
        trainer.train(resume_from_checkpoint=resume)
        marks = trainer.ask_probes()
    return {
        "losses": losses.losses,
        "drafted": [log["tokens/total_drafted"] for log in losses.logs],
        "lengths": [log["completions/max_length"] - log["completions/min_length"] for log in losses.logs],
        "marks": marks,
        "backend": trainer.backend,
        "lockstep": trainer._lockstep is not None,
        "device": trainer.accelerator.device.type,
        "speaks": torch.distributed.get_backend(),
        "of_teachers": sorted({key for log in losses.logs for key in log if "_of_" in key}),
    }


def move(rank: int, backend: str, folder: str, processes: int = 2, bf16: bool = True) -> torch.Tensor:
    """What a run of full fine-tuning adds to the weights that its optimizer steps on, in a row; `bf16`: they are
    loaded in bfloat16, and it computes in it."""
    with as_one_of(rank, processes, backend), mock.patch(f"{HARDWARE}.is_torch_bf16_gpu_available", lambda: True):
        shared = settings(backend)
        shared.pop("ds3_gather_for_generation", None)
        if "deepspeed" in shared:
            shared["deepspeed"]["bf16"] = {"enabled": "auto"}
        changes = {"per_device_train_batch_size": 4 // processes, "bf16": bf16, **shared}
        trainer = make_mover(Path(folder), torch.bfloat16 if bf16 else torch.float32, **changes)
        before = [p.detach().float().clone() for p in trainer.model.parameters()]
        trainer.train()
        after = [whole(p) for p in trainer.model.parameters()]
    return torch.cat([(a - b).flatten() for a, b in zip(after, before)])


def train_recipe(rank: int, config: str, arguments: list[str], processes: int = 2) -> None:
    """`lupi skd` with arguments, as it is started with an accelerate configuration of DeepSpeed, on the CPU."""
    args = launch_command_parser().parse_args(["--config_file", str(CONFIGS / config), "train.py"])
    args, *_ = _validate_launch_command(args)
    args.main_process_port, args.deepspeed_fields_from_accelerate_config = 0, "zero_stage"
    _, environment = prepare_deepspeed_cmd_env(args)
    with as_one_of(rank, processes, "zero2"), mock.patch(f"{HARDWARE}.is_torch_bf16_gpu_available", lambda: True):
        os.environ.update({key: value for key, value in environment.items() if key.startswith("ACCELERATE_")})
        os.environ.update(ACCELERATE_TORCH_DEVICE="cpu")
        importlib.import_module("lupi_trainer.scripts.lupi_skd").main(arguments)


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """The float32 weights that an optimizer steps on, of all processes."""
    if hasattr(parameter, "full_tensor"):
        return parameter.full_tensor().detach()
    if hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter).detach()
    return parameter.detach().clone()


TRAINERS = ("kd-lora", *ALGORITHMS)


def train_others(rank: int, backend: str, folder: str, processes: int = 2) -> dict:
    """Losses of short runs of the other trainers, one after another; each saves its student in the end.

    Under DDP an evaluation precedes them.
    """
    results = {}
    for name in TRAINERS:
        with as_one_of(rank, processes, backend):
            config = {"per_device_train_batch_size": 4 // processes, "max_steps": 3, **settings(backend)}
            config.pop("ds3_gather_for_generation", None)
            uneven = partial(make_wmtp_trainer, train_dataset=uneven_answers())
            make = make_kd_trainer if name == "kd-lora" else partial(uneven, algorithm=name)
            trainer, losses = make(Path(folder, name), **{f"config_{key}": value for key, value in config.items()})
            if backend == "ddp" and name != "critic-wmtp":  # whose critic is trained first
                trainer.evaluate(trainer.train_dataset.select(range(4)))
            trainer.train()
            trainer.save_model()
        results[name] = losses.losses
    return results
