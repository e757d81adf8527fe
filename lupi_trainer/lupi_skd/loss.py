"""The loss of a batch: what the student learns of the teacher, which reads its own prompt."""

from typing import Any

import torch
from torch import nn

from ..losses.divergence import divergence_loss
from ..losses.top_k import top_k_divergence_loss
from ..models.backbone import completion_states, completion_states_by_rows
from ..models.lm_head import Head
from ..training.private import chunked_divergence_loss
from .config import LUPISKDConfig
from .knowledge import KnowledgeWeights
from .setup import TeacherKind
from .teachers import RowTeacher, Teachers


_MOST_TOKENS = 8192  # that the teacher reads at a time, padding too


class PrivilegedLoss(KnowledgeWeights):
    """For [`LUPISKDTrainer`]: the teachers' half of the loss, each row's by its own teacher on that one's prompt."""

    args: LUPISKDConfig
    teachers: Teachers

    @property
    def _is_self_taught(self) -> bool:
        return self.teachers.first.is_student

    @property
    def other_teachers(self) -> list[str]:
        """For the model's card."""
        return self.teachers.others

    def _teacher_states(
        self, inputs: dict[str, torch.Tensor], teacher: RowTeacher | None = None, prompt: str = "teacher_prompt"
    ) -> torch.Tensor:
        """[B, C, H_teacher] hidden states of a teacher (the first, unless given) over its own prompts, or other ones,
        on its device."""
        teacher = self.teachers.first if teacher is None else teacher
        if teacher.is_student:
            model = teacher.model.peft_model
            context, device = model.disable_adapter(), next(model.parameters()).device
        else:
            model, context, device = teacher.model, torch.no_grad(), teacher.device
        assert device is not None  # of a teacher that is loaded
        names = (f"{prompt}_ids", f"{prompt}_mask", "completion_ids", "completion_mask")
        was_training = model.training
        model.eval()
        try:
            # in the teacher's own dtype, as in the rollout: the student's mixed precision is not the teacher's
            with torch.no_grad(), context, teacher.on_device(), torch.autocast(device.type, enabled=False):
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

    def compute_loss(self, *args, **kwargs):
        # the parent's takes the place of the student's own forward, around which accelerate puts mixed precision
        with self.accelerator.autocast():
            return super().compute_loss(*args, **kwargs)

    def _head_of(self, teacher: RowTeacher, head: Head) -> Head:
        """A teacher's lm_head; `head` is the student's."""
        if not teacher.is_student:
            if teacher.head is None:  # frozen: brought to the student's device once
                teacher.head = Head(teacher.model, teacher.pair.vocab_size, head.weight.device)
            return teacher.head
        # without its adapter, which may hold a part of it: trained tokens, a trained copy
        model = teacher.model.peft_model
        if isinstance(model.get_output_embeddings(), nn.Linear):
            return head
        with model.disable_adapter():
            return Head(model, teacher.pair.vocab_size)

    def _parts(self, batch: dict[str, Any]) -> list[tuple[RowTeacher, torch.Tensor | None]]:
        """Of each teacher that has rows in a batch, or takes part all the same, their places; `None`: all rows."""
        if "teacher_number" not in batch:
            return [(self.teachers.first, None)]
        numbers = batch["teacher_number"]
        parts = [(teacher, (numbers == n).nonzero()[:, 0]) for n, teacher in enumerate(self.teachers)]
        return [(teacher, rows) for teacher, rows in parts if len(rows) or self._takes_part(teacher)]

    def _takes_part(self, teacher: RowTeacher) -> bool:
        """Whether a teacher is run over every batch, whosever the rows are: all processes have to run the forwards of
        a student whose weights are sharded over them."""
        reads = self.weighs_tokens() or not self.args.reuse_verification
        return reads and teacher.is_student and (self.dist.is_fsdp or self.dist.is_zero3)

    def _states_of(
        self, teacher: RowTeacher, batch: dict[str, Any], rows: torch.Tensor | None, prompt: str = "teacher_prompt"
    ) -> torch.Tensor:
        """[R, C, H_teacher]: what a teacher's lm_head reads over its rows behind their prompts; those with the
        knowledge from the rollout, where that has kept it."""
        if prompt == "teacher_prompt" and "teacher_hidden" in batch:
            kept = batch["teacher_hidden"]
            width = teacher.model.config.get_text_config().hidden_size
            return kept if rows is None else kept[rows, :, :width]
        if rows is None:
            return self._teacher_states(batch, teacher, prompt)
        if self._takes_part(teacher):
            return self._teacher_states(batch, teacher, prompt)[rows]
        return self._teacher_states(rows_of(batch, rows), teacher, prompt)

    def distillation_loss(self, student, batch, count):
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        states = completion_states(student, *(batch[name] for name in names))
        if count is None and "teacher_number" in batch:
            count = batch["completion_mask"].sum().clamp(min=1)
        losses = [self._loss_of(*part, student, states, batch, count) for part in self._parts(batch)]
        if self.weighs_tokens():
            self.log_gains()
        loss, entropy_sum, num_valid = (sum(values[1:], values[0]) for values in zip(*filter(None, losses)))
        return loss, entropy_sum, num_valid

    def _loss_of(self, teacher: RowTeacher, rows: torch.Tensor | None, student, states, batch, count):
        """[`distillation_loss`] of a teacher's rows; `None` where it has none."""
        head, remote = Head(student, teacher.pair.vocab_size), teacher.kind is TeacherKind.REMOTE
        device, teacher_states = head.weight.device, None if remote else self._states_of(teacher, batch, rows)
        weighs, mask = not remote and self.weighs_tokens(), batch["completion_mask"]
        bare_states = self._states_of(teacher, batch, rows, "bare_prompt") if weighs else None
        if rows is not None:
            if not len(rows):
                return None
            states, mask = states[rows], mask[rows]
        if remote:
            top = batch["teacher_top"] if rows is None else batch["teacher_top"][rows]
            return top_k_divergence_loss(states.to(device), head, top.to(device), mask.to(device), self.beta, count)
        its = self._head_of(teacher, head)
        assert teacher_states is not None
        weights = None
        if bare_states is not None:
            knows = batch["knows"] if rows is None else batch["knows"][rows]
            weights = self.token_weights(mask, knows, teacher_states.to(device), bare_states.to(device), its)
        if device.type == "cpu" or weights is not None:  # where TRL has no kernel
            options = {"num_items_in_batch": count, "temperature": self.temperature, "weights": weights}
            given = states.to(device), head, teacher_states.to(device), its, mask.to(device)
            return divergence_loss(*given, self.beta, **options)
        loss, entropy_sum, num_valid = chunked_divergence_loss(
            states.to(device),
            teacher_states.to(device),
            head.weight,
            its.weight.detach(),
            mask.to(device),
            self.beta,
            num_items_in_batch=count,
            student_lm_head_bias=head.bias,
            teacher_lm_head_bias=its.bias,
            student_logit_scale=head.scale,
            teacher_logit_scale=its.scale,
            student_final_logit_softcapping=head.softcap,
            teacher_final_logit_softcapping=its.softcap,
            temperature=self.temperature,
        )
        return loss, entropy_sum.detach(), num_valid


def rows_of(batch: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Some rows of a batch; what is no tensor of rows stays as it is."""
    return {k: v[rows] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in batch.items()}
