"""What the knowledge is worth to the teacher."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ..data.prompts import Messages, TeacherPrompt
from .perplexity import perplexity


@dataclass
class PrivilegeGap:
    """Negative log-likelihood that the teacher gives a text, with the knowledge and without, in nats a token.

    Both prompts have the same persona and examples ([`without_knowledge`]). `gap` is what the knowledge is worth: the
    second less the first.
    """

    with_knowledge: float
    without_knowledge: float
    gap: float
    num_tokens: int

    def metrics(self) -> dict[str, float]:
        return asdict(self)


def without_knowledge(prompt: TeacherPrompt, messages: Messages) -> Messages:
    """What a teacher without knowledge reads: the persona and the examples all the same, and the bare question."""
    return replace(prompt, knowledge_template="{privileged_context}{query}").messages(messages, "")


def privilege_gap(
    teacher,
    ids_with_knowledge: Sequence[list[int]],
    ids_without_knowledge: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
    *,
    batch_size: int = 8,
) -> PrivilegeGap:
    """How much likelier a text is to a teacher that reads the knowledge than to the same teacher without.

    Args:
        teacher: a causal language model.
        ids_with_knowledge, ids_without_knowledge: B lists of token ids, the prompts with the knowledge and without
            ([`without_knowledge`]).
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

    informed, bare = nll(ids_with_knowledge), nll(ids_without_knowledge)
    return PrivilegeGap(informed.nll, bare.nll, bare.nll - informed.nll, informed.num_tokens)
