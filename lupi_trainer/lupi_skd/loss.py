"""The loss of a batch: what the student learns of the teacher, which reads its own prompt."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from ..losses.divergence import divergence_loss
from ..losses.top_k import top_k_divergence_loss
from ..models.backbone import completion_states, completion_states_by_rows
from ..models.lm_head import Head
from ..teachers.self_taught import AdapterDisabled
from ..training.private import DistillationHooks, chunked_divergence_loss
from .config import LUPISKDConfig
from .gold import gold_cross_entropy, states_of_both
from .placement import Offloaded


_MOST_TOKENS = 8192  # that the teacher reads at a time, padding too
Loss = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # loss, sum of the student's entropies, completion tokens


def rows_at_once(args: LUPISKDConfig) -> int:
    """Of the longest rows that there may be: where weights are sharded, all processes run as many forwards."""
    longest = args.max_teacher_prompt_length + (args.max_completion_length or 0)
    return max(_MOST_TOKENS // longest, 1)


class PrivilegedLoss(DistillationHooks):
    """For [`LUPISKDTrainer`]: the teacher's half of the loss reads the teacher's prompt."""

    args: LUPISKDConfig
    model: Any
    teacher_model: Any
    shared_vocab_size: int
    _teacher_device: torch.device  # of a teacher that is loaded here
    _offloaded: Offloaded | None = None  # with `teacher_offload`
    _teacher_head: Head | None = None

    @property
    def _is_self_taught(self) -> bool:
        return isinstance(self.teacher_model, AdapterDisabled)

    def _teacher_on_device(self):
        return nullcontext() if self._offloaded is None else self._offloaded.on(self._teacher_device)

    def _teacher_states(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """[B, C, H_teacher] hidden states of the teacher over its own prompt, on the teacher's device."""
        if self._is_self_taught:
            model = self.teacher_model.peft_model
            context = model.disable_adapter()
        else:
            model, context = self.teacher_model, torch.no_grad()
        device = next(model.parameters()).device if self._is_self_taught else self._teacher_device
        names = ("teacher_prompt_ids", "teacher_prompt_mask", "completion_ids", "completion_mask")
        was_training = model.training
        model.eval()
        try:
            # in the teacher's own dtype, as in the rollout: the student's mixed precision is not the teacher's
            with torch.no_grad(), context, self._teacher_on_device(), torch.autocast(device.type, enabled=False):
                given = (inputs[name].to(device) for name in names)
                states = completion_states_by_rows(model, rows_at_once(self.args), *given)
                # a row that is left out may be NaN, and so would 0 times it
                return states.masked_fill_(inputs["completion_mask"].to(device)[..., None] == 0, 0)
        finally:
            model.train(was_training)

    def _own_teacher_head(self, head: Head) -> Head:
        """The student's head without its adapter, which may hold a part of it: trained tokens, a trained copy."""
        model = self.teacher_model.peft_model
        if isinstance(model.get_output_embeddings(), nn.Linear):
            return head
        with model.disable_adapter():
            return Head(model, self.shared_vocab_size)

    def compute_loss(self, *args, **kwargs):
        # the parent's takes the place of the student's own forward, around which accelerate puts mixed precision
        with self.accelerator.autocast():
            return super().compute_loss(*args, **kwargs)

    def distillation_loss(self, student, batch, count):
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        if "gold_ids" in batch and self.model.training:  # an evaluation's loss is the divergence alone
            return self._gold_mixture(student, batch, count)
        student_states = completion_states(student, *(batch[name] for name in names))
        head = Head(student, self.shared_vocab_size)
        return self._divergence(student_states, head, batch)(batch["completion_mask"], count)

    def _gold_mixture(self, student: Any, batch: dict[str, Any], count: torch.Tensor | int | None) -> Loss:
        """With N completion tokens in the step, G tokens of answers and s the share of the N that are of records with
        an answer: `1/N sum_t w_t D_t + gold_alpha * s/G sum_u CE_u`, where D is the divergence, CE the answers'
        cross-entropy, and w is `1 - gold_alpha` in records with an answer, else 1.

        So where all have one, it is `(1 - gold_alpha) * mean D + gold_alpha * mean CE`; where none has, mean D.
        """
        alpha, mask = self.args.gold_alpha, batch["completion_mask"]
        if self.args.rollout_policy == "gold":  # the texts are the answers
            names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
            student_states = gold_states = completion_states(student, *(batch[name] for name in names))
        else:
            student_states, gold_states = states_of_both(student, batch)
        head = Head(student, self.shared_vocab_size)  # which FSDP2 has gathered for the forward
        divergence, answered = self._divergence(student_states, head, batch), batch["gold_mask"].any(1)
        count = mask.sum().clamp(min=1) if count is None else count
        parts = [(1 - alpha, answered), (1.0, ~answered)]
        found = [(share, *divergence(mask * rows[:, None], count)) for share, rows in parts if rows.any()]
        losses = torch.stack([share * loss for share, loss, _, _ in found])
        entropy, tokens = (torch.stack(column).sum(0) for column in list(zip(*found))[2:])
        gold = gold_cross_entropy(gold_states, head, batch)
        self.add_gold(gold, batch["gold_mask"].sum())
        return losses.sum() + alpha * batch["gold_weight"] * gold, entropy, tokens

    def add_gold(self, loss: torch.Tensor, tokens: torch.Tensor) -> None:
        """Takes down a sum of cross-entropies over so many tokens of answers."""

    def _divergence(
        self, student_states: torch.Tensor, head: Head, batch: dict[str, Any]
    ) -> Callable[[torch.Tensor, torch.Tensor | int | None], Loss]:
        """(mask of completion tokens [B, C], what their sum is divided by) -> the teacher's divergence there."""
        if "teacher_top" in batch:
            home = head.weight.device
            states, top = student_states.to(home), batch["teacher_top"].to(home)
            return lambda mask, count: top_k_divergence_loss(states, head, top, mask.to(home), self.beta, count)
        if self._is_self_taught:
            teacher = self._own_teacher_head(head)
        else:
            if self._teacher_head is None:  # frozen: brought to the student's device once
                self._teacher_head = Head(self.teacher_model, self.shared_vocab_size, head.weight.device)
            teacher = self._teacher_head
        teacher_states = batch.get("teacher_hidden")
        if teacher_states is None:
            teacher_states = self._teacher_states(batch)
        device = head.weight.device

        def here(mask: torch.Tensor, count: torch.Tensor | int | None) -> Loss:
            options: dict[str, Any] = {"num_items_in_batch": count, "temperature": self.temperature}
            if device.type == "cpu":  # where TRL has no kernel
                return divergence_loss(student_states, head, teacher_states, teacher, mask, self.beta, **options)
            loss, entropy_sum, num_valid = chunked_divergence_loss(
                student_states.to(device),
                teacher_states.to(device),
                head.weight,
                teacher.weight.detach(),
                mask.to(device),
                self.beta,
                student_lm_head_bias=head.bias,
                teacher_lm_head_bias=teacher.bias,
                student_logit_scale=head.scale,
                teacher_logit_scale=teacher.scale,
                student_final_logit_softcapping=head.softcap,
                teacher_final_logit_softcapping=teacher.softcap,
                **options,
            )
            return loss, entropy_sum.detach(), num_valid

        return here
