"""Weights from a critic: heads count by how much the token that they predict is worth."""

import logging
from collections.abc import Iterator

import torch
from accelerate.utils import set_seed
from torch import nn

from ..losses.chunked_mtp import chunked_ce
from ..losses.token_weights import accumulated_rewards, critic_weights
from ..models.backbone import backbone_states
from ..models.lm_head import Head, gathered_for_reading
from ..models.loading import key_named
from ..models.mtp_heads import ValueHead
from ..training.checkpoints import agree_on_checkpoint
from ..training.settings import require_config
from .base_trainer import BaseWMTPTrainer
from .config import REFERENCE, RHO1, WMTPConfig
from .critic import RewardCollator, check_rewards, fit_critic, judged_places, repeated
from .reference import Reference, load_reference, require_reference
from .weighted_loss import Batch, text_segments


logger = logging.getLogger(__name__)


class CriticWMTPTrainer(BaseWMTPTrainer):
    """
    Trainer for multi-token prediction weighted by a critic, in two stages.

    In the first, a value head learns on the frozen model's states what a text is worth so far: the `reward` of its
    record, or, where records have none, the reference's advantage over the model at each token,
    `log p_ref - log p_model`, accumulated with `critic_decay` along the text. In the second, the value head is frozen,
    and the heads of a position are weighed by a softmax over the advantages of the tokens that they predict
    ([`~lupi_trainer.losses.token_weights.critic_weights`]). The value head is saved beside the heads.

    Args:
        reference_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            The reference; only where records have no `reward`. `args.reference_model_name_or_path` if omitted.
        train_dataset: may have a column `reward` (a number a record; not together with packing).
        model, args, heads and everything else: as in [`BaseWMTPTrainer`].

    Raises:
        `ValueError`: neither rewards nor a reference, a reward that is no number, rewards of packed records.

    Example:

    ```python
    >>> from lupi_trainer import CriticWMTPTrainer, WMTPConfig
    >>> from lupi_trainer.data.records import load_sft_data

    >>> records = load_sft_data("lab:common").select(range(8)).add_column("reward", [0.0, 1.0] * 4)
    >>> args = WMTPConfig("heads", critic_steps=2, max_steps=1, bf16=False, use_cpu=True)
    >>> trainer = CriticWMTPTrainer("lab:student", args=args, train_dataset=records)
    >>> trainer.train()
    ```
    """

    model_tags = ["trl", "wmtp", "critic-wmtp"]
    method_name = "Critic WMTP"

    def __init__(
        self,
        model: "str | nn.Module",
        reference_model: str | nn.Module | None = None,
        args: WMTPConfig | None = None,
        **kwargs,
    ):
        require_config(args, WMTPConfig)
        self._rewarded = "reward" in (getattr(kwargs.get("train_dataset"), "column_names", None) or ())
        trained = args is not None and (args.head_weighting == "uniform" or args.value_head_name_or_path is not None)
        if not self._rewarded and not trained:
            require_reference(reference_model, args, model)
        super().__init__(model, args, **kwargs)
        size = self.model.config.get_text_config().hidden_size
        self.reference: Reference | None = None
        self.value_head: ValueHead | None = None
        if self.args.value_head_name_or_path is not None:
            with key_named("value_head_name_or_path"):
                self._take_value_head(self.args.value_head_name_or_path, size)
        elif self._rewarded:
            if self.args.packing or self.padding_free:
                raise ValueError("records with a `reward` cannot be packed: their texts must stay apart")
            check_rewards(list(self.train_dataset["reward"]))
            self.data_collator = RewardCollator(self.data_collator)
        elif self.args.head_weighting != "uniform":
            self.reference = load_reference(reference_model, self.args, self.model, self.processing_class)
            self.limit_tokens(self.reference.known_tokens)

    def unread_settings(self, args: WMTPConfig) -> tuple[str, ...]:
        ready = args.value_head_name_or_path is not None
        unread = (*RHO1, *(REFERENCE if self._rewarded or ready else ()))
        return (*unread, "critic_steps", "critic_learning_rate") if ready else unread

    def columns_read(self) -> list[str]:
        return [*super().columns_read(), "reward"]

    # Stage 1: the critic

    def train(self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None):
        checkpoint = agree_on_checkpoint(self.accelerator, resume_from_checkpoint, self.args.output_dir)
        if self.args.head_weighting != "uniform":
            if checkpoint is not None:  # which DeepSpeed loads in a way of its own
                self._take_value_head(checkpoint, self.model.config.get_text_config().hidden_size)
            elif self.value_head is None:
                self.train_critic()
        return super().train(checkpoint, trial, ignore_keys_for_eval)

    def train_critic(self) -> None:
        """The first stage: `critic_steps` batches, in which nothing but the critic learns."""

        def total(tensor: torch.Tensor) -> torch.Tensor:
            return self.accelerator.reduce(tensor, reduction="sum")

        moments = None
        if self._rewarded:
            rewards = torch.tensor(list(self.train_dataset["reward"]), dtype=torch.float64)
            moments = rewards.mean().item(), rewards.std(correction=0).item()
        self.model.eval()
        with gathered_for_reading(self.model.parameters()):
            self.value_head, explained = fit_critic(
                self._judged_batches(),
                self.model.config.get_text_config().hidden_size,
                learning_rate=self.args.critic_learning_rate,
                device=self.accelerator.device,
                moments=moments,
                total=total,
            )
        self.model.train()
        self.log({"critic/explained_variance": explained})
        set_seed(self.args.seed)  # the second stage is the same whether or not the first was run before it

    def _judged_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for batch in repeated(self.get_train_dataloader(), self.args.critic_steps):
            inputs = self.prepare_inputs(batch)
            with torch.no_grad(), self.accelerator.autocast():
                judged = self._judged(inputs)
            yield judged

    def _judged(self, inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(hidden [B, S, D], returns [B, S], places [B, S]) of a batch."""
        labels, hidden = inputs["labels"], backbone_states(self.model, inputs)
        if self._rewarded:
            return hidden, inputs["reward"][:, None].expand_as(labels), judged_places(labels)
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        chosen = targets != -100
        head = Head(self.model, self.model.config.get_text_config().vocab_size)
        ce = chunked_ce(hidden[chosen], head, targets[chosen])[1].float()
        advantage = ce.new_zeros(chosen.shape).masked_scatter_(chosen, ce)
        assert self.reference is not None  # loaded where there is no reward
        advantage = advantage - self.reference.next_token_ce(inputs, targets)
        rewards = torch.nn.functional.pad(advantage[:, :-1], (1, 0))  # at t: of token t
        returns = accumulated_rewards(rewards, self.args.critic_decay, text_segments(inputs))
        return hidden, returns, judged_places(labels)

    # Stage 2: the weights

    def compute_head_weights(self, batch: Batch) -> torch.Tensor:
        if self.value_head is None:
            raise ValueError("the critic is not trained yet: `train()` begins with it, as `train_critic()` does alone")
        return critic_weights(
            self.value_head(batch.hidden),
            batch.has_target,
            temperature=self.args.head_weight_temperature,
            decay=self.args.critic_decay,
        )

    # Checkpoints

    def _take_value_head(self, name_or_path: str, size: int) -> None:
        head = ValueHead.from_pretrained(name_or_path)
        if head.hidden_size != size:
            raise ValueError(f"the value head is for a hidden size of {head.hidden_size}; the model's is {size}")
        self.value_head = head.to(self.accelerator.device).requires_grad_(False).eval()

    def save_student(self, output_dir: str | None, state_dict) -> None:
        super().save_student(output_dir, state_dict)
        if self.value_head is not None and self.args.should_save:
            self.value_head.save_pretrained(output_dir or self.args.output_dir)
