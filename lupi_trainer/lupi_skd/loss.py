"""The loss of a batch: what the student learns of the teacher, which reads its own prompt."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from ..losses.divergence import divergence_loss
from ..losses.top_k import top_k_divergence_loss
from ..models.backbone import completion_states, completion_states_by_rows
from ..models.lm_head import Head
from ..teachers.self_taught import AdapterDisabled
from ..training.private import chunked_divergence_loss
from .config import LUPISKDConfig
from .knowledge import KnowledgeWeights
from .placement import Offloaded


_MOST_TOKENS = 8192  # that the teacher reads at a time, padding too


class PrivilegedLoss(KnowledgeWeights):
    """For [`LUPISKDTrainer`]: the teacher's half of the loss reads the teacher's prompt."""

    args: LUPISKDConfig
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

    def _teacher_states(self, inputs: dict[str, torch.Tensor], prompt: str = "teacher_prompt") -> torch.Tensor:
        """[B, C, H_teacher] hidden states of the teacher over its own prompt (or another), on the teacher's device."""
        if self._is_self_taught:
            model = self.teacher_model.peft_model
            context = model.disable_adapter()
        else:
            model, context = self.teacher_model, torch.no_grad()
        device = next(model.parameters()).device if self._is_self_taught else self._teacher_device
        names = (f"{prompt}_ids", f"{prompt}_mask", "completion_ids", "completion_mask")
        was_training = model.training
        model.eval()
        try:
            # in the teacher's own dtype, as in the rollout: the student's mixed precision is not the teacher's
            with torch.no_grad(), context, self._teacher_on_device(), torch.autocast(device.type, enabled=False):
                given = (inputs[name].to(device) for name in names)
                states = completion_states_by_rows(model, self._rows_at_once(), *given)
                # a row that is left out may be NaN, and so would 0 times it
                return states.masked_fill_(inputs["completion_mask"].to(device)[..., None] == 0, 0)
        finally:
            model.train(was_training)

    def _rows_at_once(self) -> int:
        """Of the longest rows that there may be: where weights are sharded, all processes run as many forwards."""
        longest = self.args.max_teacher_prompt_length + (self.args.max_completion_length or 0)
        return max(_MOST_TOKENS // longest, 1)

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
        student_states = completion_states(student, *(batch[name] for name in names))
        head = Head(student, self.shared_vocab_size)
        if "teacher_top" in batch:
            device = head.weight.device
            rest = (batch[name].to(device) for name in ("teacher_top", "completion_mask"))
            return top_k_divergence_loss(student_states.to(device), head, *rest, self.beta, count)
        if self._is_self_taught:
            teacher = self._own_teacher_head(head)
        else:
            if self._teacher_head is None:  # frozen: brought to the student's device once
                self._teacher_head = Head(self.teacher_model, self.shared_vocab_size, head.weight.device)
            teacher = self._teacher_head
        teacher_states = batch.get("teacher_hidden")
        if teacher_states is None:
            teacher_states = self._teacher_states(batch)
        device, weights = head.weight.device, None
        if self.weighs_tokens():
            bare_states = self._teacher_states(batch, "bare_prompt").to(device)
            weights = self.token_weights(batch, teacher_states.to(device), bare_states, teacher)
        if device.type == "cpu" or weights is not None:  # where TRL has no kernel
            return divergence_loss(
                student_states.to(device),
                head,
                teacher_states.to(device),
                teacher,
                batch["completion_mask"].to(device),
                self.beta,
                num_items_in_batch=count,
                temperature=self.temperature,
                weights=weights,
            )
        loss, entropy_sum, num_valid = chunked_divergence_loss(
            student_states.to(device),
            teacher_states.to(device),
            head.weight,
            teacher.weight.detach(),
            batch["completion_mask"].to(device),
            self.beta,
            num_items_in_batch=count,
            student_lm_head_bias=head.bias,
            teacher_lm_head_bias=teacher.bias,
            student_logit_scale=head.scale,
            teacher_logit_scale=teacher.scale,
            student_final_logit_softcapping=head.softcap,
            teacher_final_logit_softcapping=teacher.softcap,
            temperature=self.temperature,
        )
        return loss, entropy_sum.detach(), num_valid
