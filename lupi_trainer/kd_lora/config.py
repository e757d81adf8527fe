"""Configuration of [`KDLoRATrainer`]."""

from dataclasses import dataclass, field, fields
from typing import Any

from trl import SFTConfig

from ..losses.reference import check_kd_arguments
from ..training.field_types import check_types
from ..training.private import json_fields
from ..training.settings import refuse_not_finite, say_unread, say_unread_for_scripts


@json_fields("teacher_model_init_kwargs")
@dataclass
class KDLoRAConfig(SFTConfig):
    r"""
    Configuration class for the [`KDLoRATrainer`].

    Extends [`~trl.SFTConfig`] with the distillation term of the loss and the teacher's placement.

    Parameters:
        > Parameters that control the loss

        use_kd (`bool`, *optional*, defaults to `True`):
            Whether there is a distillation term at all. Without it the loss is [`~trl.SFTTrainer`]'s and no teacher is
            loaded.
        kd_alpha (`float`, *optional*, defaults to `0.1`):
            Weight of the distillation term, in [0, 1]; the cross-entropy has `1 - kd_alpha`. At `0.0` the teacher
            never runs.
        kd_temperature (`float`, *optional*, defaults to `2.0`):
            Temperature T of both distributions in the distillation term, which is multiplied by T^2.

        > Parameters that control the teacher

        teacher_model_name_or_path (`str`, *optional*):
            Name or path of the teacher, unless it is given to the trainer.
        teacher_model_revision (`str`, *optional*):
            Revision of a teacher given by name.
        teacher_model_init_kwargs (`dict`, *optional*):
            Further arguments of `from_pretrained` for a teacher given by name.
        teacher_dtype (`str`, *optional*, defaults to `"auto"`):
            Type that a teacher given by name is loaded in, and computes in where it is quantized to 4 bits (`"auto"`:
            as it was saved).
        teacher_device (`str`, *optional*):
            Device of the teacher, for instance `"cuda:1"`. `"paired"` gives every process a second GPU for it (with
            `accelerate_configs/paired_gpu.yaml` process i has GPUs 2i and 2i + 1). `None` puts it beside the student.
        teacher_attn_implementation (`str`, *optional*):
            Attention implementation of a teacher given by name.
        teacher_load_in_4bit (`bool`, *optional*, defaults to `False`):
            Load the teacher in 4 bits (bitsandbytes; on a GPU, or on a CPU, where its layers are computed with their
            dequantized weights: the faster bfloat16 product for single rows of some processors is not used).
        teacher_load_in_8bit (`bool`, *optional*, defaults to `False`):
            Load the teacher in 8 bits (bitsandbytes).
        teacher_bnb_4bit_quant_type (`str`, *optional*, defaults to `"nf4"`):
            4-bit type of the teacher: `"nf4"` or `"fp4"`.
        teacher_use_bnb_nested_quant (`bool`, *optional*, defaults to `False`):
            Quantize the teacher's quantization constants too.
        teacher_quantization_samples (`int`, *optional*, defaults to `0`):
            Before training, measure what quantization does to the teacher: the KL from the unquantized to the
            quantized teacher over so many training records, logged as `teacher/quantization_kl`. The unquantized
            teacher is loaded for that, and let go of. `0` measures nothing.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `learning_rate`: Defaults to `2e-4` instead of `2e-5`.
    > - `num_train_epochs`: Defaults to `1` instead of `3`.
    > - `per_device_train_batch_size`: Defaults to `1` instead of `8`.
    > - `gradient_accumulation_steps`: Defaults to `32` instead of `1`.

    Raises:
        `ValueError`: a key out of range, or keys that exclude one another, by name.

    Example:

    ```python
    >>> from lupi_trainer import KDLoRAConfig

    >>> args = KDLoRAConfig("adapter", kd_alpha=0.2, kd_temperature=2.0, bf16=False, use_cpu=True)
    ```
    """

    # Defaults that differ from the parent's
    learning_rate: float = field(default=2e-4, metadata={"help": "The initial learning rate for AdamW."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Total number of training epochs."})
    per_device_train_batch_size: int = field(default=1, metadata={"help": "Records a device and forward."})
    gradient_accumulation_steps: int = field(default=32, metadata={"help": "Forwards an optimizer step."})

    # Parameters that control the loss
    use_kd: bool = field(default=True, metadata={"help": "Whether there is a distillation term at all."})
    kd_alpha: float = field(default=0.1, metadata={"help": "Weight of the distillation term, in [0, 1]."})
    kd_temperature: float = field(default=2.0, metadata={"help": "Temperature of both distributions in it."})

    # Parameters that control the teacher
    teacher_model_name_or_path: str | None = field(default=None, metadata={"help": "Name or path of the teacher."})
    teacher_model_revision: str | None = field(default=None, metadata={"help": "Revision of the teacher."})
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further arguments of `from_pretrained` for the teacher, as JSON."}
    )
    teacher_dtype: str = field(default="auto", metadata={"help": "Type that a teacher given by name is loaded in."})
    teacher_device: str | None = field(default=None, metadata={"help": "Device of the teacher."})
    teacher_attn_implementation: str | None = field(default=None, metadata={"help": "Attention of the teacher."})
    teacher_load_in_4bit: bool = field(default=False, metadata={"help": "Load the teacher in 4 bits."})
    teacher_load_in_8bit: bool = field(default=False, metadata={"help": "Load the teacher in 8 bits."})
    teacher_bnb_4bit_quant_type: str = field(
        default="nf4", metadata={"help": "4-bit type of the teacher.", "choices": ["nf4", "fp4"]}
    )
    teacher_use_bnb_nested_quant: bool = field(
        default=False, metadata={"help": "Quantize the teacher's quantization constants too."}
    )
    teacher_quantization_samples: int = field(
        default=0, metadata={"help": "Records on which the quantized teacher is compared with the unquantized one."}
    )

    def __post_init__(self):
        refuse_not_finite(self)
        check_types(self)
        super().__post_init__()
        refuse_not_finite(self)  # in what was JSON
        check_kd_arguments(self.kd_alpha, self.kd_temperature)
        if self.teacher_bnb_4bit_quant_type not in ("nf4", "fp4"):
            raise ValueError(
                f"teacher_bnb_4bit_quant_type must be 'nf4' or 'fp4', got {self.teacher_bnb_4bit_quant_type!r}"
            )
        if self.teacher_load_in_4bit and self.teacher_load_in_8bit:
            raise ValueError("teacher_load_in_4bit and teacher_load_in_8bit exclude each other")
        if self.teacher_quantization_samples < 0:
            raise ValueError(
                f"teacher_quantization_samples must be 0 or more, got {self.teacher_quantization_samples}"
            )
        if self.teacher_quantization_samples and not (self.use_kd and self.kd_alpha > 0):
            raise ValueError(
                "teacher_quantization_samples measures a teacher: with `use_kd: false` or `kd_alpha: 0` there is none"
            )
        if self.loss_type != "nll" or self.label_smoothing_factor:
            raise ValueError(
                "kd_lora mixes the distillation term with the plain cross-entropy: leave `loss_type` at 'nll' and "
                "`label_smoothing_factor` at 0"
            )
        say_unread_for_scripts(self)
        if not self.use_kd:
            say_unread(self, ["kd_alpha"], "use_kd is off")
        if not (self.use_kd and self.kd_alpha > 0):
            teachers = [f.name for f in fields(self) if f.name.startswith("teacher_")]
            say_unread(self, ["kd_temperature", *teachers], "without use_kd and kd_alpha there is no teacher")
