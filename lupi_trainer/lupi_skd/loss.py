"""The loss of a batch: what the student learns of the teacher, which reads its own prompt."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..losses.divergence import divergence_loss
from ..losses.top_k import top_k_divergence_loss
from ..models.backbone import completion_states, completion_states_by_rows
from ..models.lm_head import Head
from ..training.private import chunked_divergence_loss
from .config import LUPISKDConfig
from .gold import gold_cross_entropy, states_of_both
from .knowledge import KnowledgeWeights
from .setup import TeacherKind
from .teachers import RowTeacher, Teachers


_MOST_TOKENS = 8192  # that the teacher reads at a time, padding too
Loss = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # loss, sum of the student's entropies, completion tokens
Divergence = Callable[[torch.Tensor, "torch.Tensor | int | None"], Loss]


def rows_at_once(args: LUPISKDConfig) -> int:
    """Of the longest rows that there may be: where weights are sharded, all processes run as many forwards."""
    longest = args.max_teacher_prompt_length + (args.max_completion_length or 0)
    return max(_MOST_TOKENS // longest, 1)


class PrivilegedLoss(KnowledgeWeights):
    """For [`LUPISKDTrainer`]: the teachers' half of the loss, each row's by its own teacher on that one's prompt."""

    args: LUPISKDConfig
    model: Any
    teachers: Teachers
    shared_vocab_size: int

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
                states = completion_states_by_rows(model, rows_at_once(self.args), *given)
                # a row that is left out may be NaN, and so would 0 times it
                return states.masked_fill_(inputs["completion_mask"].to(device)[..., None] == 0, 0)
        finally:
            model.train(was_training)

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
        reads = self.weighs_tokens() or not self.args.reuse_verification or self.args.rollout_policy == "gold"
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
        if "gold_ids" in batch and self.model.training:  # an evaluation's loss is the divergence alone
            return self._gold_mixture(student, batch, count)
        states = completion_states(student, *(batch[name] for name in names))
        return self._divergence(student, states, batch)(batch["completion_mask"], count)

    def _gold_mixture(self, student: Any, batch: dict[str, Any], count: torch.Tensor | int | None) -> Loss:
        """With N completion tokens in the step, G tokens of answers and s the share of the N that are of records with
        an answer: `1/N sum_t w_t D_t + gold_alpha * s/G sum_u CE_u`, where D is the divergence, CE the answers'
        cross-entropy, and w is `1 - gold_alpha` in records with an answer, else 1.

        So where all have one, it is `(1 - gold_alpha) * mean D + gold_alpha * mean CE`; where none has, mean D.
        """
        alpha, mask = self.args.gold_alpha, batch["completion_mask"]
        if self.args.rollout_policy == "gold":  # the texts are the answers
            names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
            states = gold_states = completion_states(student, *(batch[name] for name in names))
        else:
            states, gold_states = states_of_both(student, batch)
        divergence, answered = self._divergence(student, states, batch), batch["gold_mask"].any(1)
        count = mask.sum().clamp(min=1) if count is None else count
        parts = [(1 - alpha, answered), (1.0, ~answered)]
        found = [(share, *divergence(mask * rows[:, None], count)) for share, rows in parts if rows.any()]
        losses = torch.stack([share * loss for share, loss, _, _ in found])
        entropy, tokens = (torch.stack(column).sum(0) for column in list(zip(*found))[2:])
        gold = gold_cross_entropy(gold_states, Head(student, self.shared_vocab_size), batch)
        self.add_gold(gold, batch["gold_mask"].sum())
        return losses.sum() + alpha * batch["gold_weight"] * gold, entropy, tokens

    def add_gold(self, loss: torch.Tensor, tokens: torch.Tensor) -> None:
        """Takes down a sum of cross-entropies over so many tokens of answers."""

    def _divergence(self, student: Any, states: torch.Tensor, batch: dict[str, Any]) -> Divergence:
        """(mask of completion tokens [B, C], what their sum is divided by) -> the divergence from each row's teacher.

        Args:
            student: its head is taken here, after its forward, for which FSDP2 has gathered it.
            states: [B, C, H] of the student.
            batch: of B records.
        """
        parts = [
            (rows, self._divergence_of(teacher, rows, student, states, batch)) for teacher, rows in self._parts(batch)
        ]
        parts = [(rows, part) for rows, part in parts if part is not None]

        def of_all(mask: torch.Tensor, count: torch.Tensor | int | None) -> Loss:
            if len(parts) == 1 and parts[0][0] is None:
                return parts[0][1](mask, count)
            count = mask.sum().clamp(min=1) if count is None else count
            losses = [part(mask if rows is None else mask[rows], count) for rows, part in parts]
            loss, entropy_sum, num_valid = (sum(values[1:], values[0]) for values in zip(*losses))
            return loss, entropy_sum, num_valid

        return of_all

    def _divergence_of(
        self, teacher: RowTeacher, rows: torch.Tensor | None, student: Any, states: torch.Tensor, batch: dict[str, Any]
    ) -> Divergence | None:
        """[`_divergence`] of a teacher's rows [R]; `None` where it has none."""
        head, said = Head(student, teacher.pair.vocab_size), teacher.kind in (TeacherKind.REMOTE, TeacherKind.STORE)
        device, teacher_states = head.weight.device, None if said else self._states_of(teacher, batch, rows)
        weighs = not said and self.weighs_tokens()
        bare_states = self._states_of(teacher, batch, rows, "bare_prompt") if weighs else None
        if rows is not None:
            if not len(rows):
                return None
            states = states[rows]
        states = states.to(device)
        if said:
            top = (batch["teacher_top"] if rows is None else batch["teacher_top"][rows]).to(device)
            return lambda mask, count: top_k_divergence_loss(states, head, top, mask.to(device), self.beta, count)
        assert teacher_states is not None
        its, told, weights = self._head_of(teacher, head), teacher_states.to(device), None
        if bare_states is not None:
            counted, knows = (batch[n] if rows is None else batch[n][rows] for n in ("completion_mask", "knows"))
            weights = self.token_weights(counted, knows, told, bare_states.to(device), its)

        def here(mask: torch.Tensor, count: torch.Tensor | int | None) -> Loss:
            options: dict[str, Any] = {"num_items_in_batch": count, "temperature": self.temperature}
            if device.type == "cpu" or weights is not None:  # where TRL has no kernel
                return divergence_loss(states, head, told, its, mask.to(device), self.beta, **options, weights=weights)
            loss, entropy_sum, num_valid = chunked_divergence_loss(
                states,
                told,
                head.weight,
                its.weight.detach(),
                mask.to(device),
                self.beta,
                student_lm_head_bias=head.bias,
                teacher_lm_head_bias=its.bias,
                student_logit_scale=head.scale,
                teacher_logit_scale=its.scale,
                student_final_logit_softcapping=head.softcap,
                teacher_final_logit_softcapping=its.softcap,
                **options,
            )
            return loss, entropy_sum.detach(), num_valid

        return here


def rows_of(batch: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Some rows of a batch; what is no tensor of rows stays as it is."""
    return {k: v[rows] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in batch.items()}
