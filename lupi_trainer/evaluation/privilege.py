"""What the knowledge is worth to the teacher, and how much of the student's text the teacher lets stand."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..data.prompts import Messages, TeacherPrompt
from ..speculative import skd_rollout
from .perplexity import perplexity


@dataclass
class PrivilegeGap:
    """Negative log-likelihood that the teacher gives a text, with the knowledge and without, in nats a token.

    Both prompts have the same persona and examples ([`unknowing`]). `gap` is what the knowledge is worth: the second
    less the first.
    """

    with_knowledge: float
    without_knowledge: float
    gap: float
    num_tokens: int

    def metrics(self) -> dict[str, float]:
        return asdict(self)


def unknowing(prompt: TeacherPrompt, messages: Messages) -> Messages:
    """What a teacher without knowledge reads: the persona and the examples all the same, and the bare question."""
    return replace(prompt, knowledge_template="{privileged_context}{query}").messages(messages, "")


def privilege_gap(
    teacher,
    knowing_prompt_ids: Sequence[list[int]],
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
    *,
    batch_size: int = 8,
) -> PrivilegeGap:
    """How much likelier a text is to a teacher that reads the knowledge than to the same teacher without.

    Args:
        teacher: a causal language model.
        knowing_prompt_ids, prompt_ids: B lists of token ids, with the knowledge and without ([`unknowing`]).
        completion_ids: B lists, the texts; every token of all of them counts the same.
        batch_size: rows a forward.

    Raises:
        ValueError: there is no token in the texts.
    """

    def nll(prompts: Sequence[list[int]]):
        rows = [
            {"input_ids": prompt + text, "labels": [-100] * len(prompt) + text}
            for prompt, text in zip(prompts, completion_ids)
            if text
        ]
        return perplexity(teacher, rows, batch_size=batch_size)

    knowing, unknowing = nll(knowing_prompt_ids), nll(prompt_ids)
    return PrivilegeGap(knowing.nll, unknowing.nll, unknowing.nll - knowing.nll, knowing.num_tokens)


def acceptance(
    student, teacher, prompt_ids: list[list[int]], knowing_prompt_ids: list[list[int]], **kwargs: Any
) -> dict[str, float]:
    """How much of the student's drafts stands before the teacher that reads the knowledge.

    Args:
        student, teacher: causal language models.
        prompt_ids, knowing_prompt_ids: B lists of token ids: what the student sees, and what the teacher sees.
        **kwargs: as for [`skd_rollout`].

    Returns:
        `acc_rate/mean` (of drafted tokens), `acc_rate/first_token` and `acc_rate/full_match` (of blocks), and
        `tokens/teacher_share` (of the finished text): fractions of 1.
    """
    rollout = skd_rollout(student, teacher, prompt_ids, knowing_prompt_ids, **kwargs)
    stats = rollout.stats
    return {
        "acc_rate/mean": stats.accepted / max(stats.drafted, 1),
        "acc_rate/first_token": stats.first_token_accepted / max(stats.blocks, 1),
        "acc_rate/full_match": stats.full_match / max(stats.blocks, 1),
        "tokens/teacher_share": sum(map(sum, rollout.from_teacher)) / max(stats.committed, 1),
    }
