"""Weights that move: a step that is too small for a weight's type is rounded away, and nothing is said of it.

A bfloat16 has 8 bits. Between 2**e and 2**(e + 1) its numbers are 2**(e - 7) apart, and a weight to which less than
half of that is added stays what it was. A step of Adam is about the learning rate in size, whatever the gradient: at
1e-5 a weight of 0.004 or more never moves, and of weights with a standard deviation of 0.02 these are 84%.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils import DistributedType, is_peft_model
from torch.distributed.tensor import DTensor
from transformers.utils import strtobool


STUCK = 0.1  # of the weights: without them a step has sqrt(0.9) = 95% of its length
_LOOKED_AT = 4096  # numbers of a tensor
_HALF = (torch.bfloat16, torch.float16)

# transformers' optimizers that make steps of about the learning rate, and round the new weight to the nearest
_NEAREST = {
    *("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision"),
    *("adamw_torch_4bit", "adamw_torch_8bit", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
    *("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"),
}
_STOCHASTIC = "bf16_stochastic_round"
_KEPT = (_STOCHASTIC, "use_kahan_summation")  # of `optim_args`: what is rounded away is drawn for, or added later

_WAYS_OUT = (
    "Load them in float32 (`dtype: float32`) and compute in bfloat16 (`bf16: true`), with `optim: adamw_bnb_8bit` "
    "where memory is short; or train a LoRA adapter (`use_peft: true`); or start with DeepSpeed ZeRO-2, which keeps "
    "float32 weights besides (`accelerate_configs/zero2.yaml`, `zero2_paired.yaml`); or, on one GPU, set "
    "`optim: adamw_torch_8bit` with `optim_args: bf16_stochastic_round=True` (torchao)"
)
_WAYS_OUT_OF_AN_ADAPTER = (
    "TRL keeps the adapter of a quantized student in bfloat16, and PEFT has `modules_to_save` in the student's type. "
    "Load it without quantization, with `modules_to_save` in float32 (`dtype: float32`){larger}"
)


def stays(weight: torch.Tensor, step: float) -> torch.Tensor:
    """Which weights are the same after a step of this size, up or down, rounded to the nearest number of their type.

    Args:
        weight: [...] of any floating type.
        step: of the optimizer, in the weights' unit.

    Returns:
        [...] bool.
    """
    wide = weight.float()
    return ((wide + step).to(weight.dtype) == weight) & ((wide - step).to(weight.dtype) == weight)


def share_that_stays(weights: Iterable[tuple[torch.Tensor, float]]) -> float:
    """The share of weights that [`stays`], of up to 4,096 numbers of every tensor, evenly spread.

    Args:
        weights: (tensor, size of a step); weights of a `meta` device, or in float32, count as moving.
    """
    stuck, count = 0.0, 0
    for weight, step in weights:
        weight = weight.to_local() if isinstance(weight, DTensor) else weight  # the others' are not asked for
        count += weight.numel()
        if weight.dtype in _HALF and weight.numel() and weight.device.type != "meta" and step > 0:
            every = -(-weight.numel() // _LOOKED_AT)
            stuck += weight.numel() * stays(weight.detach().flatten()[::every], step).double().mean().item()
    return stuck / max(count, 1)


def _options(args: Any) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in (args.optim_args or "").replace(" ", "").split(","))
    return {key: value for key, _, value in pairs if value}


def _rates(trainer: Any) -> dict[int, float] | float | None:
    """The size of a step: of each parameter by its id, or of all; `None` where the optimizer does not round to the
    nearest, or the size of its steps is not known."""
    if trainer.optimizer is not None:  # given to the constructor
        if not isinstance(trainer.optimizer, torch.optim.Adam):
            return None
        groups = trainer.optimizer.param_groups  # a scheduler may have begun a warm-up
        return {id(p): float(group.get("initial_lr", group["lr"])) for group in groups for p in group["params"]}
    if trainer.optimizer_cls_and_kwargs is not None:
        kind, options = trainer.optimizer_cls_and_kwargs
        return float(options.get("lr", 1e-3)) if issubclass(kind, torch.optim.Adam) else None
    args = trainer.args
    if getattr(args.optim, "value", args.optim) not in _NEAREST:
        return None
    options = _options(args)
    return None if any(strtobool(options.get(name, "false")) for name in _KEPT) else args.learning_rate


def _has_float32_weights(trainer: Any) -> bool:
    """Whether the optimizer steps on float32 copies of the weights.

    - DeepSpeed: always, unless its configuration has `bf16_master_weights_and_grads`.
    - FSDP: accelerate makes weights that are trained float32 before it shards them, where there is mixed precision;
      with FSDP2 not those of a model that is loaded in 4 bits.
    """
    accelerator = trainer.accelerator
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.hf_ds_config
        return not config.get_value("bf16.bf16_master_weights_and_grads", False)
    if accelerator.distributed_type != DistributedType.FSDP or accelerator.mixed_precision == "no":
        return False
    return not (accelerator.is_fsdp2 and any(type(p).__name__ == "Params4bit" for p in trainer.model.parameters()))


def require_movement(trainer: Any) -> None:
    """Refuse a run whose steps are rounded away by the type of its weights.

    Refused is a trainer with Adam or Lion (as named by `optim`, or torch's own as an object) whose step, taken to be
    its (peak) learning rate, leaves more than 10% of the trainable weights where they are: its updates would have
    less than sqrt(0.9) = 95% of the length that they have in float32. Only 16-bit weights can be such. Passed are
    float32 weights with or without autocast, a float32 adapter of a frozen 16-bit model, stochastic rounding and
    Kahan summation, DeepSpeed, and FSDP in mixed precision ([`_has_float32_weights`]). Of any other optimizer the
    size of a step is not known, and nothing is said.

    Args:
        trainer: a [`~transformers.Trainer`] with its model, before training.

    Raises:
        ValueError: the share that stays, and the ways out; or stochastic rounding in replicas, which would drift
            apart since each process draws for itself.
    """
    args, weights = trainer.args, [p for p in trainer.model.parameters() if p.requires_grad]
    replicas = trainer.accelerator.distributed_type in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    rounding = trainer.optimizer is None and strtobool(_options(args).get(_STOCHASTIC, "false"))
    if replicas and rounding and any(p.dtype == torch.bfloat16 for p in weights):
        raise ValueError(
            f"optim_args: {_STOCHASTIC} with {trainer.accelerator.num_processes} processes: each would round its "
            "bfloat16 weights by chances of its own, and the copies would drift apart. Use one process, or DeepSpeed "
            "ZeRO-2 without it"
        )
    rates = _rates(trainer)
    if rates is None or _has_float32_weights(trainer):
        return
    steps = [(p, rates.get(id(p), 0.0) if isinstance(rates, dict) else rates) for p in weights]
    share = share_that_stays(steps)
    if share > STUCK:
        half = next(p for p in weights if p.dtype in _HALF)
        kind, rate = str(half.dtype).removeprefix("torch."), max(step for _, step in steps)
        ways = _WAYS_OUT
        if is_peft_model(trainer.model):
            doubled = (rate * 2**i for i in range(1, 64))
            least = next((n for n in doubled if _share_at(steps, n / rate) <= STUCK), None)  # none moves infinity
            larger = "" if least is None else f"; or, since adapters take larger steps, set learning_rate to {least:g}"
            ways = _WAYS_OUT_OF_AN_ADAPTER.format(larger=f"{larger} or more" if larger else "")
        raise ValueError(
            f"{share:.0%} of the weights that are trained would never move: they are {kind}, in which a step of "
            f"learning_rate={rate:g} is rounded away. {ways}"
        )


def _share_at(steps: list[tuple[torch.Tensor, float]], factor: float) -> float:
    return share_that_stays((weight, factor * step) for weight, step in steps)
