"""Configuration of the trainers of weighted multi-token prediction."""

import math
from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig

from ..training.field_types import check_types
from ..training.private import json_fields
from ..training.settings import refuse_not_finite, refuse_settings, say_unread, say_unread_for_scripts


# keys that not every algorithm reads
REFERENCE = ("reference_model_name_or_path", "reference_model_init_kwargs", "reference_cache_dir")
RHO1 = ("rho1_score", "rho1_over", "rho1_select", "rho1_share")
CRITIC = ("critic_decay", "value_head_name_or_path", "critic_steps", "critic_learning_rate")
WEIGHING = ("head_weight_temperature", *REFERENCE, *RHO1, *CRITIC)

CHOICES = {
    "head_type": ("linear", "residual", "transformer"),
    "head_weighting": ("own", "uniform", "shuffled"),
    "rho1_score": ("abs", "signed"),
    "rho1_over": ("head", "token"),
    "rho1_select": ("softmax", "top"),
}


def _check_ranges(args: "WMTPConfig") -> None:
    """Refuse a value that a key of ours cannot have."""
    for name, choices in CHOICES.items():
        if getattr(args, name) not in choices:
            raise ValueError(f"{name} must be one of {list(choices)}, got {getattr(args, name)!r}")
    for name in ("horizon", "head_window", "critic_steps", "draft_eval_new_tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}")
    for name, value, fits in (
        ("head_weight_temperature", args.head_weight_temperature, 0 < args.head_weight_temperature < math.inf),
        ("critic_learning_rate", args.critic_learning_rate, 0 < args.critic_learning_rate < math.inf),
        ("rho1_share", args.rho1_share, 0 < args.rho1_share <= 1),
        ("critic_decay", args.critic_decay, 0 <= args.critic_decay <= 1),
        ("draft_eval_prompts", args.draft_eval_prompts, args.draft_eval_prompts >= 0),
    ):
        if not fits:
            raise ValueError(f"{name} is out of range: {value}")


@json_fields("reference_model_init_kwargs")
@dataclass
class WMTPConfig(SFTConfig):
    r"""
    Configuration class for [`MTPBaselineTrainer`], [`CriticWMTPTrainer`] and [`Rho1WMTPTrainer`].

    Extends [`~trl.SFTConfig`] with the heads, their weights, the reference model and the critic.

    Parameters:
        > Parameters that control the heads

        horizon (`int`, *optional*, defaults to `4`):
            Number of heads; head k predicts the token k ahead, and head 1 is the model's own.
        head_type (`str`, *optional*, defaults to `"residual"`):
            `"linear"` (a linear map of the last state), `"residual"` (Medusa) or `"transformer"` (a block a head).
        head_window (`int`, *optional*, defaults to `32`):
            Last states that a transformer head sees.
        heads_name_or_path (`str`, *optional*):
            Heads to go on with: a folder, or a repository. `None` begins with copies of the model's own head.
        freeze_trunk (`bool`, *optional*, defaults to `False`):
            Train the heads alone: the warm-up before all is trained together.

        > Parameters that control the heads' weights

        head_weighting (`str`, *optional*, defaults to `"own"`):
            `"own"` (the algorithm's) or a control: `"uniform"`, or `"shuffled"` (the algorithm's weights in a random
            order of the text's positions).
        head_weight_temperature (`float`, *optional*, defaults to `0.7`):
            Temperature of the softmax that makes weights.

        > Parameters that control `rho1-wmtp`

        reference_model_name_or_path (`str`, *optional*):
            Reference model; `critic-wmtp` needs one too where the records have no `reward`.
        reference_model_init_kwargs (`dict`, *optional*):
            Keyword arguments of its `from_pretrained`.
        reference_cache_dir (`str`, *optional*):
            Keep the reference's cross-entropies in this folder, so that a text is read once.
        rho1_score (`str`, *optional*, defaults to `"abs"`):
            `"abs"`: |CE_ref - CE_k|; `"signed"`: CE_k - CE_ref, the excess loss of Rho-1.
        rho1_over (`str`, *optional*, defaults to `"head"`):
            Weigh a position's heads against each other (`"head"`), or a text's tokens (`"token"`).
        rho1_select (`str`, *optional*, defaults to `"softmax"`):
            `"softmax"`, or `"top"`: learn the highest `rho1_share` alone.
        rho1_share (`float`, *optional*, defaults to `0.6`):
            Share that is learned where `rho1_select="top"`.

        > Parameters that control `critic-wmtp`

        critic_steps (`int`, *optional*, defaults to `200`):
            Batches of the first stage, in which the critic learns on the frozen model's states.
        critic_learning_rate (`float`, *optional*, defaults to `1e-3`):
            Its learning rate.
        critic_decay (`float`, *optional*, defaults to `0.95`):
            How much of a value is carried to the next token: a token's advantage is `V[t] - critic_decay * V[t - 1]`.
        value_head_name_or_path (`str`, *optional*):
            A critic that is trained already: no first stage then.

        > Parameters that control drafting at evaluation

        draft_eval_prompts (`int`, *optional*, defaults to `0`):
            Prompts of the evaluation set that the model answers with drafts of its own heads, for
            `accept_rate/head_k` and `accept_length`.
        draft_eval_new_tokens (`int`, *optional*, defaults to `64`):
            Tokens of each answer.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `save_total_limit`: Defaults to `3` instead of `None`; the final model is saved beside the checkpoints.

    Raises:
        `ValueError`: a key out of range, or keys that exclude one another, by name.

    Example:

    ```python
    >>> from lupi_trainer import WMTPConfig
    >>> args = WMTPConfig("heads", horizon=4, head_type="linear", bf16=False, use_cpu=True)
    ```
    """

    save_total_limit: int | None = field(default=3, metadata={"help": "Checkpoints that are kept."})

    # Parameters that control the heads
    horizon: int = field(default=4, metadata={"help": "Number of heads, the model's own among them."})
    head_type: str = field(
        default="residual", metadata={"help": "Kind of the heads.", "choices": list(CHOICES["head_type"])}
    )
    head_window: int = field(default=32, metadata={"help": "Last states that a transformer head sees."})
    heads_name_or_path: str | None = field(default=None, metadata={"help": "Heads to go on with."})
    freeze_trunk: bool = field(default=False, metadata={"help": "Train the heads alone."})

    # Parameters that control the heads' weights
    head_weighting: str = field(
        default="own",
        metadata={"help": "The algorithm's weights, or a control.", "choices": list(CHOICES["head_weighting"])},
    )
    head_weight_temperature: float = field(default=0.7, metadata={"help": "Temperature of the weights' softmax."})

    # Parameters that control rho1-wmtp
    reference_model_name_or_path: str | None = field(default=None, metadata={"help": "Reference model."})
    reference_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments of the reference's `from_pretrained`, as JSON."}
    )
    reference_cache_dir: str | None = field(
        default=None, metadata={"help": "Keep the reference's cross-entropies in this folder."}
    )
    rho1_score: str = field(
        default="abs", metadata={"help": "Difference to the reference.", "choices": list(CHOICES["rho1_score"])}
    )
    rho1_over: str = field(
        default="head", metadata={"help": "What is weighed against what.", "choices": list(CHOICES["rho1_over"])}
    )
    rho1_select: str = field(
        default="softmax",
        metadata={"help": "Softmax weights or selection.", "choices": list(CHOICES["rho1_select"])},
    )
    rho1_share: float = field(default=0.6, metadata={"help": "Share that is learned where the top is selected."})

    # Parameters that control critic-wmtp
    critic_steps: int = field(default=200, metadata={"help": "Batches of the critic's own stage."})
    critic_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the critic."})
    critic_decay: float = field(default=0.95, metadata={"help": "Share of a value carried to the next token."})
    value_head_name_or_path: str | None = field(default=None, metadata={"help": "A critic trained already."})

    # Parameters that control drafting at evaluation
    draft_eval_prompts: int = field(default=0, metadata={"help": "Prompts answered with the heads' drafts."})
    draft_eval_new_tokens: int = field(default=64, metadata={"help": "Tokens of each answer."})

    def __post_init__(self):
        refuse_not_finite(self)
        check_types(self)
        super().__post_init__()
        refuse_not_finite(self)  # in what was JSON
        _check_ranges(self)
        if (self.packing or self.eval_packing) and self.packing_strategy == "wrapped":
            raise ValueError(
                "packing_strategy='wrapped' keeps no borders between texts, which heads would look across: use 'bfd'"
            )
        why = "the heads' weighted cross-entropies are the loss"
        refuse_settings(self, {"loss_type": why, "label_smoothing_factor": why})
        say_unread_for_scripts(self)
        if self.head_type != "transformer":
            say_unread(self, ["head_window"], f"head_type={self.head_type!r} sees the last state alone")
        if self.rho1_select != "top":
            say_unread(self, ["rho1_share"], f"rho1_select={self.rho1_select!r} leaves nothing out")
        if not self.draft_eval_prompts:
            say_unread(self, ["draft_eval_new_tokens"], "draft_eval_prompts is 0")
        if self.freeze_trunk and self.horizon == 1:
            raise ValueError("freeze_trunk with horizon=1 trains nothing: the only head is the model's own")
