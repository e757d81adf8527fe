"""The rollout as the paper defines it, a token at a time, without caches: what every faster way must equal."""

import torch

from lupi_trainer.speculative.rules.acceptance import Judged, TopK
from lupi_trainer.speculative.rules.noise import STUDENT, TEACHER, row_keys, sample


def next_token_state(model, ids, vocab):
    """Token ids of one row -> (logits [V] float32, what lm_head read [H]) after its last token."""
    out = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False, output_hidden_states=True)
    return out.logits[0, -1, :vocab].float().cpu(), out.hidden_states[-1][0, -1]


@torch.no_grad()
def reference_rollout(
    student,
    teacher,
    student_prompts,
    teacher_prompts,
    *,
    max_new_tokens,
    acceptance=TopK(),  # noqa: B008
    student_temperature=0.7,
    teacher_temperature=0.7,
    eos=(),
    seed=0,
    row_ids=None,
    vocab=None,
    bare_prompts=None,
):
    """Returns (completion_ids, from_teacher, teacher_hidden), one list entry a row."""
    vocab = vocab or min(student.config.vocab_size, teacher.config.vocab_size)
    keys = row_keys(seed, list(range(len(student_prompts))) if row_ids is None else row_ids)
    rows = []
    bare_prompts = bare_prompts or [None] * len(student_prompts)
    for key, student_prompt, teacher_prompt, bare in zip(
        keys.split(1), student_prompts, teacher_prompts, bare_prompts
    ):
        completion, by_teacher, hidden = [], [], []
        state = torch.tensor([acceptance.initial_state()], dtype=torch.float64)
        while len(completion) < max_new_tokens and not (completion and completion[-1] in eos):
            at = torch.tensor([len(completion)])
            s, _ = next_token_state(student, student_prompt + completion, vocab)
            t, h = next_token_state(teacher, teacher_prompt + completion, vocab)
            token = sample(s[None], student_temperature, key, at, STUDENT)
            without = None if bare is None else next_token_state(teacher, bare + completion, vocab)[0][None, None]
            judged = Judged(
                t[None, None],
                token[None],
                teacher_temperature,
                s[None, None],
                student_temperature,
                bare_logits=without,
                state=state[None],
            )
            accepted = bool(acceptance.accept(judged))
            if not accepted:
                token = sample(t[None], teacher_temperature, key, at, TEACHER)
            state = acceptance.next_state(state, accepted)
            completion.append(int(token))
            by_teacher.append(not accepted)
            hidden.append(h)
        rows.append((completion, by_teacher, torch.stack(hidden)))
    return [list(column) for column in zip(*rows)]
