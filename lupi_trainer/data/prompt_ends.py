"""Whether the prompts of student and teacher end so that one text continues both: with an answer's first token.

Every template has headers of its own, which each model knows. What must be the same is what comes next: whether the
model is to think first, has been told that it has thought, or answers at once; and what the template itself writes
between such a prompt and an answer (a space, a header that is missing).
"""

import os
import re
from dataclasses import dataclass
from functools import partial

from .prompts import Messages, TeacherPrompt, Words


_QUESTION, _ANSWER = "zqquestionqz", "zqanswerqz"  # texts that no template has, and none changes
# <think>, </think>, <seed:think>, [THINK], <|START_THINKING|>, <|END_THINKING|>
_TAG = re.compile(r"[<\[]\|?(?P<closes>/|end_)?(?:start_)?(?:\w+:)?think(?:ing)?\|?[>\]]", re.IGNORECASE)
_NONE = "no thinking block"


@dataclass(frozen=True)
class PromptEnd:
    """How a prompt ends.

    Attributes:
        text: what follows the words of the last user.
        taken_back: the end of it that a finished conversation does not have.
        lead: what a finished conversation has in its place, before the answer.
        known: whether the template writes finished conversations at all.
    """

    text: str
    taken_back: str
    lead: str
    known: bool

    @property
    def thinking(self) -> str:
        """The state of the thinking block that the prompt leaves the model in."""
        tags = list(_TAG.finditer(self.text))
        if not tags:
            return _NONE
        return "a closed thinking block" if tags[-1]["closes"] else "an open thinking block"


def prompt_end(words: Words, conversation: Messages) -> PromptEnd | None:
    """How a conversation ends as a prompt; `None` where the template does not write it.

    Args:
        words: whose template writes it.
        conversation: the last user turn holds a mark that nothing else has.
    """
    write = partial(words.tokenizer.apply_chat_template, tokenize=False)
    asked = {"add_generation_prompt": True, **words.template_kwargs}
    try:
        _, asked_here, text = write(conversation, **asked).rpartition(_QUESTION)
    except Exception:  # a template comes with a model, and may fail in any way
        return None
    if not asked_here:
        return None
    try:
        answered = [*conversation, {"role": "assistant", "content": _ANSWER}]
        finished, found, _ = write(answered, **asked | {"add_generation_prompt": False}).rpartition(_ANSWER)
    except Exception:  # as above
        found = finished = ""
    before = finished.rpartition(_QUESTION)[2]
    if not found:
        return PromptEnd(text, "", "", known=False)
    shared = len(os.path.commonprefix([text, before]))
    opened = max(text.rfind(bracket, 0, shared) for bracket in "<[")
    if not any(bracket in text[opened:shared] for bracket in ">]"):  # no tag is cut in two
        shared = opened if opened >= 0 else shared
    return PromptEnd(text, text[shared:], before[shared:], known=True)


def difference(student: PromptEnd, teacher: PromptEnd) -> str | None:
    """Why an answer would not begin in the same way after both; `None`: it would."""
    if student.text == teacher.text and student.lead == teacher.lead:
        return None
    if student.thinking != teacher.thinking:
        return f"the student's has {student.thinking}, the teacher's {teacher.thinking}"
    if not (student.known and teacher.known):
        return "and where an answer begins cannot be seen, since a template writes no finished conversation"
    ours, theirs = ((end.taken_back, end.lead) for end in (student, teacher))
    if ours == theirs:
        return None
    said = []
    for who, (taken_back, lead) in (("student", ours), ("teacher", theirs)):
        if taken_back:
            said.append(f"the {who}'s template has {lead!r} before an answer, and {taken_back!r} in the prompt")
        elif lead:
            said.append(f"the {who}'s template writes {lead!r} between this and an answer")
    return ", ".join(said)


def check_prompt_ends(student: Words, teacher_prompt: TeacherPrompt) -> None:
    """Refuse prompts of student and teacher after which an answer would not begin with the same token.

    With the knowledge, and without; what a template refuses to write is left to the records.

    Args:
        student: how the student's prompts are written.
        teacher_prompt: what the teacher reads, with its words.

    Raises:
        ValueError: they end differently; both ends are in the message.
    """
    teacher = teacher_prompt.words or student
    asked = [{"role": "user", "content": _QUESTION}]
    ours = prompt_end(student, asked)
    for knowledge in ("Knowledge.", None):
        theirs = prompt_end(teacher, teacher_prompt.messages(asked, knowledge))
        if ours is None or theirs is None or (fault := difference(ours, theirs)) is None:
            continue
        raise ValueError(
            f"the prompts of student and teacher end differently: {fault}. After the user's words, the student reads "
            f"{ours.text!r} and the teacher {theirs.text!r}, and the first token that the one would write is not the "
            "other's. Make them agree with teacher_chat_template_kwargs or teacher_chat_template: student, or set "
            "allow_different_prompt_ends: true where it is meant"
        )
