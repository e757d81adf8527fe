"""`lupi chat`: talk to a student in the terminal, beside what it was before and beside its teacher."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.answers import MAX_ANSWER_TOKENS
from .flags import add_loading_arguments, add_prompt_arguments, check_models


HELP = "talk to a model: lupi chat MODEL"
DESCRIPTION = """\
Each line is a turn, and the turns before it are read again; /new forgets them, /quit ends. Answers are greedy, as
those that `lupi evaluate` marks. An adapter's folder will do.

  lupi chat runs/mine --before Qwen/Qwen3-0.6B            both answers, each with a conversation of its own
  lupi chat runs/mine --teacher Qwen/Qwen3-8B --open_book handbook.md    and the teacher's, who reads the file
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class, parser.description = argparse.RawDescriptionHelpFormatter, DESCRIPTION
    add = parser.add_argument
    add("model", metavar="MODEL", help="a name, a path (of an adapter too), or lab:NAME")
    add("--before", metavar="MODEL", help="also answers: the student before it was trained")
    add("--open_book", metavar="FILE", type=Path, help="text that the teacher reads before each question")
    add("--teacher", metavar="MODEL", help="who reads it (default: MODEL)")
    add("--teacher_system_prompt", help="persona of the teacher")
    add("--system_prompt", help="persona of the others: their system turn")
    add("--max_new_tokens", type=int, default=MAX_ANSWER_TOKENS, help="longest answer")
    add_prompt_arguments(parser)
    add_loading_arguments(parser)


@dataclass
class Speaker:
    """Who answers, and what was said so far.

    Attributes:
        name: before its answers, where there are several.
        model, tokenizer: loaded.
        teacher_prompt: how `knowledge` is put; `None`: closed-book.
        knowledge: what it reads, if it does.
        system: its system turn, or none.
        turns: of the conversation.
    """

    name: str
    model: Any
    tokenizer: Any
    teacher_prompt: Any = None
    knowledge: str | None = None
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def prompt(self, question: str, args: argparse.Namespace) -> list[int]:
        """Token ids of the conversation with a question at its end.

        Raises:
            ValueError: a question that cannot be asked.
        """
        from ..data.completions import encode_prompts
        from ..data.records import normalize_record

        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self.turns, {"role": "user", "content": question}]
        (ids,) = encode_prompts(
            self.tokenizer,
            [normalize_record({"prompt": messages, "privileged_context": self.knowledge}, 0)],
            self.teacher_prompt,
            chat_template_kwargs=args.chat_template_kwargs,
            allow_special_tokens=args.allow_special_tokens,
        )
        return ids

    def answer(self, question: str, args: argparse.Namespace) -> None:
        """Answer on the screen, as it is written, and remember both.

        Raises:
            ValueError: a question that cannot be asked, or a conversation that has become too long.
        """
        from transformers import TextStreamer

        from ..evaluation import generate_answers

        ids = self.prompt(question, args)
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        options: dict[str, Any] = {"max_new_tokens": args.max_new_tokens, "streamer": streamer}
        ((text, finished),) = generate_answers(self.model, self.tokenizer, [ids], **options)
        if not finished:
            print("the answer was cut: --max_new_tokens, or the model's last position", file=sys.stderr)
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]


def lines() -> Iterator[str]:
    """What is typed, until there is no more or it is `/quit`."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line:
            yield line


def speakers(args: argparse.Namespace, knowledge: str | None) -> list[Speaker]:
    """Everybody who answers, loaded once each."""
    from ..data.prompts import TeacherPrompt
    from ..lab import resolve_model
    from ..models.loading import load_model, load_tokenizer

    names = [args.model, *([args.before] if args.before else [])]
    teacher = None if knowledge is None else args.teacher or args.model
    for name in dict.fromkeys([*names, *([teacher] if teacher else [])]):
        load_tokenizer(resolve_model(name))  # raises before weights are loaded
    loaded: dict[str, tuple[Any, Any]] = {}

    def load(name: str) -> tuple[Any, Any]:
        if name not in loaded:
            loaded[name] = load_model(name, args.dtype, args.device)
        return loaded[name]

    found = [Speaker("student", *load(args.model), system=args.system_prompt)]
    if args.before:
        found.append(Speaker("before", *load(args.before), system=args.system_prompt))
    if teacher is not None:
        prompt = TeacherPrompt(args.teacher_system_prompt)
        found.append(Speaker("teacher", *load(teacher), teacher_prompt=prompt, knowledge=knowledge))
    return found


def main(args: argparse.Namespace) -> int:
    """Answer line by line until there are no more.

    Raises:
        ValueError: flags that do not go together, a file without text, or a model that cannot chat.
        OSError: there is no such file or model.
    """
    if args.max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens must be at least 1, got {args.max_new_tokens}")
    if args.open_book is None:
        for name in ("teacher", "teacher_system_prompt"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name} needs --open_book, the text that the teacher reads")
    check_models({"MODEL": args.model, "--before": args.before, "--teacher": args.teacher}, args.device)
    knowledge = None
    if args.open_book is not None:
        if not args.open_book.is_file():
            raise FileNotFoundError(f"--open_book: no such file: {args.open_book}")
        try:
            knowledge = args.open_book.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"--open_book: {args.open_book} is no text in UTF-8") from error
        if not knowledge:
            raise ValueError(f"--open_book: {args.open_book} is empty")
    everybody = speakers(args, knowledge)
    if sys.stdin.isatty():
        print("a line is a turn; /new forgets the conversation, /quit ends", file=sys.stderr)
    for line in lines():
        if line == "/new":
            for speaker in everybody:
                speaker.turns.clear()
            continue
        for speaker in everybody:
            if len(everybody) > 1:
                print(f"{speaker.name}: ", end="", flush=True)
            try:
                speaker.answer(line, args)
            except ValueError as error:
                hint = "; /new begins another conversation" if speaker.turns else ""
                print(f"error: {str(error).removeprefix('record number 0: ')}{hint}", file=sys.stderr)
    return 0
