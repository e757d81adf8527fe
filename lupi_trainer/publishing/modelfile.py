"""Ollama's Modelfile: its template is of another language than chat templates are, which are looked at from outside.

A chat template is asked to write conversations whose texts are known; what it writes around each turn is then written
down in Go's language. It must write longer conversations in the same way, or it is refused.
"""

import json
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError as JinjaError

from ..models.generation import id_list


ROLES = ("system", "user", "assistant")
# conversations that both must write alike
PROBES = (("user",), ("system", "user"), ("user", "assistant", "user"), (*ROLES, "user", "assistant", "user"))


@dataclass(frozen=True)
class Turns:
    """What a chat template writes around turns.

    Attributes:
        head: at the beginning, where no system turn is given.
        around: role -> what stands before and after its text.
        answer: what begins the assistant's answer.
    """

    head: str
    around: dict[str, tuple[str, str]]
    answer: str

    def write(self, messages: list[dict[str, str]]) -> str:
        """The prompt for a conversation."""
        text = "" if messages[0]["role"] == "system" else self.head
        for message in messages:
            before, after = self.around[message["role"]]
            text += before + message["content"] + after
        return text + self.answer


def _mark(place: int) -> str:
    return f"zq{place}qz"


def _conversation(roles: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"role": role, "content": _mark(place)} for place, role in enumerate(roles)]


def find_turns(tokenizer: Any) -> Turns:
    """What the tokenizer's chat template writes around turns.

    Raises:
        ValueError: it does something else than to write texts around turns (it changes, drops or moves them).
    """

    def write(*roles: str, answer: bool = False) -> str:
        return tokenizer.apply_chat_template(_conversation(roles), tokenize=False, add_generation_prompt=answer)

    try:
        first, after_user = write("user").split(_mark(0))
        after_answer = write("user", "assistant").rpartition(_mark(1))[2]
        between, _, _ = write("user", "assistant", "user").partition(_mark(1))
        before_answer = _without(between.partition(_mark(0))[2], after_user)
        middle = write("user", "assistant", "user").partition(_mark(1))[2].partition(_mark(2))[0]
        before_user = _without(middle, after_answer)
        system, rest = write("system", "user").split(_mark(0))
        after_system = _without(rest.partition(_mark(1))[0], before_user, at_end=True)
        around = {
            "system": (system, after_system),
            "user": (before_user, after_user),
            "assistant": (before_answer, after_answer),
        }
        answer = _without(write("user", answer=True), write("user"))
        turns = Turns(_without(first, before_user, at_end=True), around, answer)
        wrong = [roles for roles in PROBES if turns.write(_conversation(roles)) != write(*roles, answer=True)]
    except (JinjaError, ValueError) as error:
        raise ValueError(_refused(str(error) or "it writes no turns that can be told apart")) from error
    if wrong:
        raise ValueError(_refused(f"a conversation of {', '.join(wrong[0])} has other texts around its turns"))
    return turns


def _refused(why: str) -> str:
    return (
        f"the chat template cannot be written as Ollama's ({' '.join(why.split())}): take --to gguf, which carries it "
        "as it is, and write the TEMPLATE of a Modelfile by hand"
    )


def _without(text: str, part: str, at_end: bool = False) -> str:
    """The text without a part at its beginning, or its end.

    Raises:
        ValueError: the part is not there.
    """
    if not (text.endswith(part) if at_end else text.startswith(part)):
        raise ValueError("a turn depends on those beside it")
    return text[: len(text) - len(part)] if at_end else text[len(part) :]


def go_template(turns: Turns) -> str:
    """The same in Go's language, as Ollama reads it."""

    def put(text: str) -> str:
        return f"{{{{- {json.dumps(text, ensure_ascii=False)} -}}}}\n" if text else ""

    lines = (
        f'{{{{- if ne (index .Messages 0).Role "system" -}}}}\n{put(turns.head)}{{{{- end -}}}}\n'
        if turns.head
        else ""
    )
    lines += "{{- range .Messages -}}\n"
    for place, role in enumerate(ROLES):
        before, after = turns.around[role]
        lines += f'{{{{- {"else " if place else ""}if eq .Role "{role}" -}}}}\n'
        lines += f"{put(before)}{{{{- .Content -}}}}\n{put(after)}"
    return f"{lines}{{{{- end -}}}}\n{{{{- end -}}}}\n{put(turns.answer)}".rstrip("\n")


def modelfile(gguf: str, tokenizer: Any, generation: Any, positions: int | None) -> str:
    """The Modelfile of a GGUF file.

    What it does not say, Ollama decides by defaults of its own, which change even greedy answers: so it says the
    penalty, and how many tokens are read.

    Args:
        gguf: name of the file, beside the Modelfile.
        tokenizer: of the student.
        generation: its generation config.
        positions: tokens that the model reads and writes at most, if that is known.

    Raises:
        ValueError: a chat template that cannot be written in Go's language.
    """
    stops = [tokenizer.convert_ids_to_tokens(one) for one in id_list(generation.eos_token_id)]
    settings: dict[str, Any] = {"num_ctx": min(positions or 8192, 8192)}
    settings["repeat_penalty"] = generation.repetition_penalty or 1.0
    for theirs, ours in (("temperature", "temperature"), ("top_p", "top_p"), ("top_k", "top_k"), ("min_p", "min_p")):
        if generation.do_sample and getattr(generation, ours, None) is not None:
            settings[theirs] = getattr(generation, ours)
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{go_template(find_turns(tokenizer))}"""']
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join([*lines, *(f"PARAMETER {name} {value:g}" for name, value in settings.items())]) + "\n"
