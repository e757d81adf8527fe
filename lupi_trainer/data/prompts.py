"""Who sees what: one question becomes the student's messages and the teacher's.

The student sees the conversation as it is. The teacher sees a persona, worked examples and, in the last user turn,
the knowledge; where there is no knowledge it sees exactly what the student sees. Roles are kept throughout.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .records import read_records
from .templates import check_template_kwargs, fault_of_template


Messages = list[dict[str, str]]
KNOWLEDGE_TEMPLATE = "[Background Knowledge]\n{privileged_context}\n\n{query}"


@dataclass(frozen=True)
class Words:
    """How a model's conversations are written: by the chat template of a tokenizer.

    Args:
        tokenizer: whose template and special tokens they are.
        template_kwargs: values of the template's variables.
    """

    tokenizer: Any
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, conversations: list[Messages]) -> list[list[int]]:
        """[`encode`]."""
        return encode(self.tokenizer, conversations, **self.template_kwargs)

    def check_turns(self, conversations: list[Messages]) -> None:
        """[`check_turns`]."""
        check_turns(self.tokenizer, conversations, **self.template_kwargs)


_TEMPLATE_READS = ("chat_template", "bos_token", "eos_token")


def teacher_words(
    student: Words, tokenizer: Any = None, template: str = "own", template_kwargs: Mapping[str, Any] | None = None
) -> Words:
    """How the teacher's conversations are written.

    Args:
        student: how the student's are.
        tokenizer: the teacher's; `None`: not known.
        template: `"own"` (that of the teacher's tokenizer; the student's, if it has none) or `"student"`. A template
            that is the student's own, with the same bos and eos tokens, is read by the student's tokenizer, which
            may have tokens that were added to it.
        template_kwargs: values of the template's variables; `None`: the student's.
    """
    written_by = [[getattr(side, name, None) for name in _TEMPLATE_READS] for side in (tokenizer, student.tokenizer)]
    own = template == "own" and written_by[0][0] and written_by[0] != written_by[1]
    kwargs = student.template_kwargs if template_kwargs is None else template_kwargs
    return Words(tokenizer if own else student.tokenizer, kwargs)


@dataclass(frozen=True)
class TeacherPrompt:
    """What surrounds the knowledge in the teacher's prompt.

    Args:
        system_prompt: the persona, or `None` for no system turn.
        few_shot_examples: worked examples as (question, answer) pairs, in order.
        knowledge_template: the last user turn; must contain `{privileged_context}` and `{query}` once each.
        words: how the teacher's messages are written; `None`: as the student's.
    """

    system_prompt: str | None = None
    few_shot_examples: tuple[tuple[str, str], ...] = field(default_factory=tuple)
    knowledge_template: str = KNOWLEDGE_TEMPLATE
    words: Words | None = None

    def __post_init__(self):
        for slot in ("{privileged_context}", "{query}"):
            if self.knowledge_template.count(slot) != 1:
                raise ValueError(f"knowledge_template must contain {slot} exactly once: {self.knowledge_template!r}")

    def messages(self, prompt: Messages, privileged_context: str | None) -> Messages:
        """The teacher's messages for one question.

        Args:
            prompt: the student's messages; the last one is the user's.
            privileged_context: the knowledge, or `None`.

        Returns:
            `prompt` itself where there is no knowledge. Otherwise: the persona (a system turn of the prompt's own
            follows it in the same turn), the examples, the earlier turns of the prompt, and the last user turn with
            the knowledge.
        """
        if privileged_context is None:
            return list(prompt)
        own_system = [m["content"] for m in prompt[:1] if m["role"] == "system"]
        system = "\n\n".join([*([self.system_prompt] if self.system_prompt else []), *own_system])
        messages = [{"role": "system", "content": system}] if system else []
        for question, answer in self.few_shot_examples:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        messages += prompt[len(own_system) : -1]
        # str.replace, not str.format: knowledge and query may themselves contain braces
        before, after = self.knowledge_template.split("{privileged_context}")
        query = prompt[-1]["content"]
        content = before.replace("{query}", query) + privileged_context + after.replace("{query}", query)
        return [*messages, {"role": "user", "content": content}]


def load_few_shot_examples(source: str | list | None) -> tuple[tuple[str, str], ...]:
    """Worked examples from a recipe: a list of `{query, answer}`, the same as JSON text, or a JSON file.

    Raises:
        ValueError: an example without a `query` or an `answer`; the message says which. Or neither JSON nor records.
        FileNotFoundError: there is no such file.
    """
    if source is None:
        return ()
    if isinstance(source, str):
        try:
            source = json.loads(source) if source.lstrip().startswith("[") else read_records(Path(source))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"few_shot_examples: {error}") from error
        except ValueError as error:
            raise ValueError(f"few_shot_examples: {error}") from error
    examples = []
    for number, example in enumerate(source):
        query, answer = (example.get(key) if isinstance(example, dict) else None for key in ("query", "answer"))
        if not (isinstance(query, str) and query.strip() and isinstance(answer, str) and answer.strip()):
            raise ValueError(f"few-shot example {number} needs a `query` and an `answer`, got {example!r}")
        examples.append((query, answer))
    return tuple(examples)


class TemplateError(ValueError):
    """A conversation that the tokenizer's chat template cannot write.

    Attributes:
        number: its place among those that were given.
    """

    def __init__(self, reason: BaseException, number: int):
        what = " ".join(str(reason).split()) or type(reason).__name__
        super().__init__(f"the tokenizer's chat template cannot write the conversation: {what}")
        self.number = number


def encode(tokenizer: Any, conversations: list[Messages], **template_kwargs: Any) -> list[list[int]]:
    """Conversations to unpadded token ids, each ending where the assistant begins to speak.

    The template runs in jinja's sandbox (transformers sees to that); knowledge and questions are its values, and are
    never rendered themselves.

    Raises:
        TemplateError: the template refuses a conversation, or fails on it.
        ValueError: `template_kwargs` that are no variables of a template.
    """
    check_template_kwargs(template_kwargs)
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, **template_kwargs}
    try:
        return tokenizer.apply_chat_template(conversations, **options)["input_ids"]
    except Exception:  # a template comes with a model, and may fail in any way
        for number, conversation in enumerate(conversations):
            try:
                tokenizer.apply_chat_template([conversation], **options)
            except Exception as reason:
                raise TemplateError(reason, number) from reason
        raise


def check_turns(tokenizer: Any, conversations: list[Messages], **template_kwargs: Any) -> None:
    """Refuse conversations of which a model would not read every turn, or in which it would not know that it speaks.

    Once for each order of roles, on texts that are told apart; messages with more than role and content are left to
    the template.

    Raises:
        TemplateError: the template leaves a turn out, or does not begin the assistant's.
    """
    orders = [
        tuple(message["role"] for message in conversation)
        if all(message.keys() == {"role", "content"} for message in conversation)
        else ()
        for conversation in conversations
    ]
    for roles in filter(None, dict.fromkeys(orders)):
        if (fault := fault_of_template(tokenizer, roles, **template_kwargs)) is not None:
            raise TemplateError(ValueError(fault), orders.index(roles))
