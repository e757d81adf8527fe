"""What mix-ins of trainers are mixed into, for the type checker alone: at run time they have no base of their own."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import Trainer as TrainerMixin
    from trl import DistillationTrainer as DistillationMixin
    from trl import SFTTrainer as SFTMixin
else:
    TrainerMixin = DistillationMixin = SFTMixin = object


__all__ = ["DistillationMixin", "SFTMixin", "TrainerMixin"]
