"""What a run needs of its machine: devices, credentials, room for its checkpoints."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_token
from transformers import AutoConfig, AutoModelForCausalLM

from ...data.wording import counted
from ...lab import resolve_model
from ...models.loading import check_device
from ...publishing.push import check_name
from .report import Report, amount


STATES = {"sgd": 1, "adafactor": 0.01, "lion": 1, "rmsprop": 1}  # numbers an optimizer keeps for each weight; else 2


def check_devices(args: Any, processes: int, report: Report) -> None:
    """Where the run trains, and whether its teacher's device is there."""
    device = getattr(args, "teacher_device", None)
    if device is not None and device != "paired":
        try:
            check_device(device)
        except ValueError as error:
            report.refuse(f"teacher_device: {error}")
    threads = torch.get_num_threads()
    cpu = f"the CPU, {counted(threads, 'thread')}"
    where = f"{args.device}" if args.device.type != "cpu" else cpu
    kind = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    several = f"{processes} processes, each on " if processes > 1 else ""
    report.add("device", f"{several}{where}, in {kind}")


def check_credentials(args: Any, report: Report) -> None:
    """Whether what is to be pushed can be named, and there is a token; the Hub is not asked."""
    if not args.push_to_hub:
        return
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    try:
        check_name(name)
    except ValueError as error:
        report.refuse(f"hub_model_id: {error}")
    if not (args.hub_token or get_token()):
        report.refuse("push_to_hub: the Hub wants a token: set HF_TOKEN in the environment, or run `hf auth login`")
    elif os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes"):
        report.refuse("push_to_hub: HF_HUB_OFFLINE is set, so nothing can be sent")
    else:
        report.add("push", f"to {name}, with the token that is here; the Hub was not asked")


def weights_of(model_args: Any, args: Any, peft_config: Any) -> tuple[int, int, int]:
    """(trained weights, all weights, bytes of one) of a student, from its configuration alone."""
    path = resolve_model(model_args.model_name_or_path)
    config = AutoConfig.from_pretrained(
        path, revision=model_args.model_revision, trust_remote_code=args.trust_remote_code
    )
    dtype = model_args.dtype or "float32"
    dtype = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=args.trust_remote_code)
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters()), torch.empty(0, dtype=dtype).element_size()


def saves(args: Any, steps: int) -> int:
    """Checkpoints that a run writes."""
    strategy = getattr(args.save_strategy, "value", args.save_strategy)
    if strategy == "epoch":
        return math.ceil(args.num_train_epochs)
    if strategy == "steps":
        every = args.save_steps if args.save_steps >= 1 else max(1, math.ceil(steps * args.save_steps))
        return math.ceil(steps / every)
    return 0 if strategy == "no" else 1  # of the best alone


def check_disk(output_dir: str, args: Any, sizes: tuple[int, int, int], is_adapter: bool, steps: int, report: Report):
    """Whether the checkpoints and the student will fit on the disk."""
    trained, everything, width = sizes
    student = (trained if is_adapter else everything) * width
    optimizer = str(getattr(args.optim, "value", args.optim))
    each = next((number for name, number in STATES.items() if optimizer.startswith(name)), 2)
    state = trained * (1 * each if "8bit" in optimizer else width * each)
    if args.save_only_model:
        state = 0
    written = saves(args, steps)
    # the new one is complete before the oldest goes, and the best one stays
    limit = args.save_total_limit and args.save_total_limit + 1 + bool(args.load_best_model_at_end)
    kept = min(written, limit or written)
    needed = kept * (student + state) + student
    folder = Path(output_dir).absolute()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
    limited = (
        f"save_total_limit={args.save_total_limit}, one more while it is written" if limit else "no save_total_limit"
    )
    said = (
        f"{counted(kept, 'checkpoint')} at a time ({limited}) of {amount(student + state)}, and the student, "
        f"{amount(student)}: {amount(needed)} of the {amount(free)} that are free"
        if kept
        else f"the student, {amount(student)}, and no checkpoints: {amount(free)} are free"
    )
    report.add("disk", said)
    if needed > free:
        least = "set save_total_limit: 1" if args.save_total_limit != 1 else "take another output_dir"
        report.refuse(f"output_dir: {amount(needed)} will be written, and {amount(free)} are free: {least}")
