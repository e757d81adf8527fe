"""The loss weighs a token by what the knowledge changes in the teacher's distribution (`losses/knowledge.py`)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..losses.knowledge import SELECTS, knowledge_gain, knowledge_weights
from ..models.lm_head import Head
from ..training.private import DistillationHooks, pad
from ..training.settings import say_unread


LOSS_WEIGHTINGS = ("uniform", "knowledge", "shuffled")


@dataclass
class KnowledgeKeys:
    r"""
    Keys of [`LUPISKDConfig`] that say how much each token counts in the loss.

    Parameters:
        > Parameters that control the weights of tokens in the loss

        loss_weighting (`str`, *optional*, defaults to `"uniform"`):
            `"uniform"`: every token counts alike. `"knowledge"`: a token counts by the divergence between the
            teacher's distributions with and without the knowledge, for which the teacher reads each text once more,
            behind the bare prompt. `"shuffled"`: the control, with the same weights in a random order. The weights of
            a text have the mean 1; texts without knowledge, and evaluations, are uniform.
        knowledge_select (`str`, *optional*, defaults to `"top"`):
            `"top"`: the `knowledge_share` of a text's tokens where the divergence is highest, alike; or `"softmax"` of
            the divergence over the text's tokens.
        knowledge_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of that softmax, in nats.
        knowledge_share (`float`, *optional*, defaults to `0.3`):
            Share of a text's tokens where `knowledge_select="top"`.
        knowledge_floor (`float`, *optional*, defaults to `0.1`):
            Least weight of a token; the rest is shared out.
    """

    loss_weighting: str = field(
        default="uniform", metadata={"help": "What a token counts in the loss.", "choices": list(LOSS_WEIGHTINGS)}
    )
    knowledge_select: str = field(
        default="top", metadata={"help": "Selection or softmax weights.", "choices": list(SELECTS)}
    )
    knowledge_temperature: float = field(default=1.0, metadata={"help": "Temperature of the weights' softmax."})
    knowledge_share: float = field(default=0.3, metadata={"help": "Share that counts where the top is selected."})
    knowledge_floor: float = field(default=0.1, metadata={"help": "Least weight of a token."})


def knowledge_faults(args: Any) -> Iterator[str]:
    """What is wrong with these keys, one message a fault.

    Args:
        args: [`LUPISKDConfig`], or whatever has its attributes.
    """
    for name, choices in (("loss_weighting", LOSS_WEIGHTINGS), ("knowledge_select", SELECTS)):
        if getattr(args, name) not in choices:
            yield f"{name} must be one of {list(choices)}, got {getattr(args, name)!r}"
    if not 0.0 < args.knowledge_temperature < math.inf:
        yield f"knowledge_temperature must be above 0, and finite, got {args.knowledge_temperature}"
    if not 0.0 < args.knowledge_share <= 1.0:
        yield f"knowledge_share must be in (0, 1], got {args.knowledge_share}"
    if not 0.0 <= args.knowledge_floor <= 1.0:
        yield f"knowledge_floor must be in [0, 1], got {args.knowledge_floor}"
    yield from remote_faults(args.loss_weighting, args.teacher_model_server_url)
    if args.loss_weighting != "uniform" and args.teacher_store is not None:
        yield (
            f"loss_weighting={args.loss_weighting!r} does not go with teacher_store, which has what the teacher said "
            "with the knowledge alone"
        )


def remote_faults(loss_weighting: str, url: str | None) -> Iterator[str]:
    """What is wrong with weights from a teacher at `url`."""
    if loss_weighting != "uniform" and url is not None:
        yield (
            f"loss_weighting={loss_weighting!r} does not go with a teacher on a server, which tells of its likeliest "
            "tokens alone, and has not read the text without the knowledge"
        )


def say_unread_knowledge(args: Any) -> None:
    """Name in a warning those of these keys that have no effect."""
    if args.loss_weighting == "uniform":
        keys = "knowledge_select", "knowledge_temperature", "knowledge_share", "knowledge_floor"
        say_unread(args, keys, "loss_weighting='uniform' weighs all tokens alike")
    elif args.knowledge_select == "softmax":
        say_unread(args, ["knowledge_share"], "knowledge_select='softmax' selects none")
    else:
        say_unread(args, ["knowledge_temperature"], "knowledge_select='top' makes no softmax")


class KnowledgeWeights(DistillationHooks):
    """For [`LUPISKDTrainer`]: with `loss_weighting`, a batch has bare prompts beside it, and its tokens weights."""

    args: Any
    model: Any
    processing_class: Any
    teachers: Any  # of the run
    gains: torch.Tensor | None = None
    """[4] float64 since the last log, of this process: gains in nats, weights, their squares, and tokens."""

    def weighs_tokens(self) -> bool:
        """Whether the batch at hand is one whose tokens do not all count alike."""
        return self.model.training and self.args.loss_weighting != "uniform"

    def bare_prompts(self, records: list[dict[str, Any]]) -> list[list[int]]:
        """Each record's prompt without the knowledge, as its teacher reads it, in token ids."""
        return self.teachers.encode(records, bare=True)

    def roll_out(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        output = super().roll_out(records)
        if self.weighs_tokens():
            device = output["completion_ids"].device
            prompts = [torch.tensor(ids) for ids in self.bare_prompts(records)]
            output["bare_prompt_ids"] = pad(prompts, self.processing_class.pad_token_id, "left").to(device)
            output["bare_prompt_mask"] = pad([torch.ones_like(p) for p in prompts], 0, "left").to(device)
            knows = [one["privileged_context"] is not None for one in records]
            output["knows"] = torch.tensor(knows, device=device)
        return output

    def token_weights(
        self,
        mask: torch.Tensor,
        knows: torch.Tensor,
        states: torch.Tensor,
        bare_states: torch.Tensor,
        teacher: Head,
    ) -> torch.Tensor:
        """Weights [B, C] of the tokens of texts that one teacher verified.

        Args:
            mask: [B, C], 1 at tokens of the loss.
            knows: [B] bool, whether there is knowledge.
            states, bare_states: [B, C, H] of the teacher, behind its prompt with the knowledge and without it.
            teacher: its `lm_head`, on the states' device.
        """
        args, device = self.args, states.device
        mask, knows = mask.to(device), knows.to(device)
        gain = knowledge_gain(states, bare_states, teacher, mask)
        shuffle = None
        if args.loss_weighting == "shuffled":
            shuffle = torch.Generator().manual_seed((args.seed << 32) | self.state.global_step)
        weights = knowledge_weights(
            gain,
            mask,
            knows,
            select=args.knowledge_select,
            temperature=args.knowledge_temperature,
            share=args.knowledge_share,
            floor=args.knowledge_floor,
            shuffle=shuffle,
        )
        told = mask.bool() & knows[:, None]
        of_told = weights.double() * told
        sums = [(gain.double() * told).sum(), of_told.sum(), of_told.square().sum(), told.sum().double()]
        new = torch.stack(sums)
        self.gains = new if self.gains is None else self.gains + new.to(self.gains.device)
        return weights

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.args.loss_weighting != "uniform":
            sums = torch.zeros(4, dtype=torch.float64, device=self.accelerator.device)
            if self.gains is not None:
                sums += self.gains.to(sums.device)
            self.gains = None
            total, weight, squares, tokens = self.accelerator.reduce(sums, reduction="sum").tolist()
            if tokens:
                metrics = self.metric_lists["train"]
                metrics["knowledge/gain"] = [total / tokens]
                metrics["knowledge/effective_tokens"] = [weight**2 / (squares * tokens)]
        super().log(logs, start_time)
