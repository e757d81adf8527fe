"""What `lupi data make` does: models are named, documents read, the work done, and files written."""

import argparse
import dataclasses
import hashlib
import json
import math
import shlex
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from ..data.prompts import TeacherPrompt, encode
from ..data.records import normalize_record
from ..data.wording import counted
from ..documents.chunks import Chunk, Splitter
from ..documents.coverage import by_document, chunk_rows, count
from ..documents.hold_out import hold_out, never_taught
from ..documents.local import LocalModel
from ..documents.make import Made, Maker, Settings
from ..documents.prompts import LANGUAGES, load_prompts
from ..documents.read import LeftOut, read_folder
from ..documents.replies import Model, Replies
from ..documents.server import ServedModel
from ..documents.verdicts import REASONS
from ..documents.write import (
    NEVER,
    PROBES,
    RECIPE,
    RECORDS,
    UNSEEN,
    check_output,
    general_questions,
    recipe_is_changed,
    seal,
    write,
)
from ..lab import resolve_model
from ..models.loading import load_tokenizer
from ..models.vocabulary import check_same_tokenizer
from .flags import warn_of_thinking
from .new import default_device
from .new_recipe import Found, recipe_text


COLUMNS = ("chunks", "empty", "facts", "kept", "questions")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make(args: argparse.Namespace) -> int:
    """Do all of it.

    Raises:
        ValueError: nothing can be read, or nothing can be taught.
    """
    check_output(args.output, args.folder)
    prompts = load_prompts(args.prompts)
    documents = read_folder(args.folder, args.output, round(args.max_megabytes * 1_000_000))
    for one in documents:
        if isinstance(one, LeftOut):
            say(f"{one.name}: left out: {one.why}")
    splitter = load_splitter(args)
    chunks = [chunk for one in documents if not isinstance(one, LeftOut) for chunk in splitter.split(one)]
    asked = [chunk for chunk in chunks if not chunk.fault][: args.limit]
    for chunk in chunks:
        if chunk.fault:
            say(f"{place(chunk)}: left out: {chunk.fault}")
    if not asked:
        raise ValueError(f"{args.folder}: there is no text in it that can be asked about")
    read = sum(not isinstance(one, LeftOut) for one in documents)
    tokens = sum(chunk.tokens for chunk in asked)
    say(f"{counted(read, 'document')}, {counted(len(asked), 'chunk')}, {tokens:,} tokens")
    args.output.mkdir(parents=True, exist_ok=True)
    replies = Replies(args.output)
    known = len(replies.known)
    settings = Settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)})
    writer, reader, student = load_models(args)
    made = Maker(settings, prompts, splitter, replies, bar).make(asked, writer, reader, student)
    replies.sort()
    of = {id(one.chunk): one for one in made}
    everything = [of.get(id(chunk)) or Made(chunk) for chunk in chunks if chunk.fault or id(chunk) in of]
    rows = chunk_rows(documents, everything)
    records, probes, unseen = hold_out(made, args.seed)
    data = {RECORDS: records, PROBES: probes, UNSEEN: unseen}
    data[NEVER] = never_taught(made, args.never, args.seed, prompts)
    languages = Counter(chunk.language for chunk in asked)
    texts = general_questions(sorted(languages))
    if records:
        persona = prompts[languages.most_common(1)[0][0]].persona
        texts[RECIPE] = seal(recipe(args, records, persona))
    if recipe_is_changed(args.output):
        say(f"{args.output / RECIPE} was changed since it was written, and is left as it is")
    about = {"folder": args.folder.resolve().name, "settings": settings_of(args, settings, prompts, writer, reader)}
    counts = write(args.output, rows, data, texts, about | {"versions": versions()})
    show(rows)
    say(f"{counted(replies.new, 'request')}; there were {known} replies before")
    if not records:
        raise ValueError(f"nothing in {args.folder} can be taught; lupi data report {args.output} shows why")
    print(f"{args.output}: {counted(counts['records'], 'record')}, {counted(counts['probes'], 'fact')}")
    print("Next:", *next_commands(args, texts, data), sep="\n  ")
    return 0


def place(chunk: Chunk) -> str:
    return f"{chunk.file}, {chunk.source['heading'] or 'no heading'} ({chunk.start} to {chunk.end})"


def load_splitter(args: argparse.Namespace) -> Splitter:
    """By the tokenizer that is named, else the teacher's, else, where that is served, the student's."""
    names = [args.student, *([args.reader] if args.reader else [])]
    names += [args.teacher] if args.teacher and not args.teacher_server else []
    measure = args.tokenizer or (args.student if args.teacher_server else args.teacher)
    if args.teacher_server and not args.tokenizer:
        say(f"chunks are measured by the tokenizer of {measure}; --tokenizer names another")
    loaded = {}
    for name in {*names, measure}:
        own = name == args.tokenizer  # it may be alone in its folder
        try:
            loaded[name] = load_tokenizer(resolve_model(name, needs_model=not own), chat=not own)
        except ValueError as error:
            raise ValueError(f"--tokenizer: {error}" if own else str(error)) from error
    warn_of_thinking((name, loaded[name], args.chat_template_kwargs) for name in names)
    return Splitter(loaded[measure], args.chunk_tokens, [loaded[name] for name in sorted(loaded)], args.language)


def load_models(args: argparse.Namespace) -> tuple[Model, Model, Model]:
    """Who writes, who reads, and who must not know; weights are loaded when one is first asked."""
    if args.teacher_server:
        writer: Model = ServedModel(
            args.teacher_server, args.teacher, in_flight=args.in_flight, timeout=args.server_timeout
        )
    else:
        writer = LocalModel(args.teacher, args.dtype, args.device)
    reader = LocalModel(args.reader, args.dtype, args.device) if args.reader else writer
    return writer, reader, LocalModel(args.student, args.dtype, args.device)


@contextmanager
def bar(what: str, total: int) -> Generator:
    """A bar with an estimate, on a terminal; what is yielded advances it, from any thread."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda number: progress.advance(task, number)


def coverage_table(rows: list[dict[str, Any]]) -> Table:
    """A line a document."""
    table = Table(Column("document", overflow="fold"), *(Column(name, justify="right") for name in COLUMNS))
    for name, counts in {**by_document(rows), "all": count(rows)}.items():
        table.add_row(Text(name), *(str(counts[column]) for column in COLUMNS))
    return table


def reasons_table(rows: list[dict[str, Any]]) -> Table:
    """How many facts were kept and rejected, and why."""
    everything = count(rows)
    table = Table(Column("facts", justify="right"), "reason", Column("which is that", overflow="fold"))
    for reason, meaning in REASONS.items():
        if everything[reason]:
            table.add_row(str(everything[reason]), reason, Text(meaning))
    return table


def show(rows: list[dict[str, Any]]) -> None:
    """Print both tables, and every chunk of which nothing is kept."""
    console = Console()
    console.print(coverage_table(rows), reasons_table(rows))
    for row in rows:
        if "facts" in row and not any(fact["reason"] == "kept" for fact in row["facts"]):
            why = f": {row['fault']}" if row["fault"] else ""
            where = f"{row['file']}, {row['heading'] or 'no heading'} ({row['start']} to {row['end']})"
            console.print(Text(f"nothing is kept of {where}{why}"))


def recipe(args: argparse.Namespace, records: list[dict], persona: str) -> str:
    """The text of the recipe, whose teacher is the reader."""
    teacher = args.reader or args.teacher_server or args.teacher
    tokenizer = load_tokenizer(resolve_model(args.student))
    if teacher == args.student:
        teacher = None
    elif args.reader or not args.teacher_server:
        try:
            check_same_tokenizer(tokenizer, load_tokenizer(resolve_model(teacher)))
        except ValueError as error:
            say(f"the recipe has the student teach itself, since {teacher} cannot teach it: {error}")
            teacher = None
    rows = [normalize_record(record, number) for number, record in enumerate(records)]
    prompt = TeacherPrompt(persona)
    read = [prompt.messages(row["prompt"], row["privileged_context"]) for row in rows]
    longest = max(map(len, encode(tokenizer, read, **args.chat_template_kwargs)))
    name = {part: (args.output / part).as_posix() for part in (RECORDS, PROBES)}
    found = Found(name[RECORDS], name[PROBES], None, rows)
    limit = max(256, math.ceil(longest / 64 + 1) * 64)
    device = (args.device or default_device()).partition(":")[0]
    return recipe_text(found, args.student, teacher, device, args.output, persona=persona, longest=limit)


def settings_of(args, settings: Settings, prompts, writer: Model, reader: Model) -> dict[str, Any]:
    texts = json.dumps([prompts[language].texts for language in LANGUAGES], ensure_ascii=False, sort_keys=True)
    named = {"teacher": writer.identity, "reader": reader.identity, "student": args.student, "dtype": args.dtype}
    given = {key: getattr(args, key) for key in ("chunk_tokens", "language", "limit", "max_megabytes", "tokenizer")}
    return named | given | dataclasses.asdict(settings) | {"prompts": hashlib.sha256(texts.encode()).hexdigest()}


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in ("lupi-trainer", "markitdown", "tokenizers", "transformers", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def next_commands(args: argparse.Namespace, texts: dict[str, str], data: dict[str, list[dict]]) -> list[str]:
    folder = args.output.as_posix()
    general = " ".join(f"{folder}/{name}" for name in sorted(texts) if name != RECIPE)
    probes = " ".join(f"{folder}/{name}" for name in (PROBES, UNSEEN, NEVER) if data[name])
    given = shlex.quote(json.dumps(args.chat_template_kwargs)) if args.chat_template_kwargs else ""
    return [
        f"lupi data report {folder}",
        f"lupi data check {folder}/{RECORDS} --probes {folder}/{PROBES}",
        f"lupi skd --config {folder}/{RECIPE}",
        f"lupi evaluate --model {folder}/run --before {args.student} --probes {probes} {general} "
        f"--records {folder}/{RECORDS}" + (given and f" --chat_template_kwargs {given}"),
    ]
