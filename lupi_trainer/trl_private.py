"""Everything of TRL's that is private and that this package leans on, in one place.

`tests/test_trl_private.py` fails when one of these changes its signature. Besides these functions, `LUPISKDTrainer`
overrides `_generate_and_score_completions`, `_generate_single_turn` and `_compute_loss` of `DistillationTrainer`, and
`KDLoRATrainer` writes `_total_train_tokens` of `SFTTrainer`.
"""

from trl.models.utils import _ForwardRedirection as ForwardRedirection
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.distillation_trainer import _chunked_divergence_loss as chunked_divergence_loss
from trl.trainer.utils import maybe_gather_lm_head_ctx as gather_head
from trl.trainer.utils import pad


__all__ = ["ForwardRedirection", "chunked_divergence_loss", "gather_head", "pad", "unwrap_model_for_generation"]
