"""What `lupi evaluate` says of closed-book and open-book questions: a block for each set of them."""

import argparse
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.probe_knowledge import KnowledgeOf
from ..data.prompts import TeacherPrompt, load_few_shot_examples
from ..data.records import record_name
from ..evaluation import ClosedBookResult, closed_book, kept
from ..evaluation.closed_book import conversation
from ..evaluation.served import served_closed_book
from ..evaluation.served_differences import Comparison, compare_answers
from ..lab import resolve_model
from ..models.loading import key_named, load_model, load_tokenizer
from ..teachers.chat import ChatServer
from ..teachers.wire import NotAnswered, RequestRefused
from ..training.progress import WorkBar
from .differences import compared_report
from .evaluate import COLUMNS
from .flags import warn_of_thinking
from .tables import legend, table


@dataclass
class Asker:
    """A model and the questions that it is asked: (name of the set, how knowledge is put, or `None`)."""

    role: str
    model: str
    asked: list[tuple[str, TeacherPrompt | None]]
    server: ChatServer | None = None  # that the model is on

    def key(self, is_closed: bool) -> str:
        """What its marks are called in the report."""
        if self.role in ("before", "run"):
            return f"{self.role}, {'closed-book' if is_closed else 'open-book'}"
        if self.role == "student" and not is_closed:
            return "student, open-book"
        return "closed-book" if is_closed else "open-book"


def teacher_prompt(args: argparse.Namespace) -> TeacherPrompt:
    return TeacherPrompt(args.teacher_system_prompt, load_few_shot_examples(args.few_shot_examples))


def template_kwargs(args: argparse.Namespace, role: str) -> dict[str, Any]:
    """What the chat template of a model is given: the teacher's may have values of its own."""
    own = args.teacher_chat_template_kwargs if role == "teacher" else None
    return args.chat_template_kwargs if own is None else own


def labels(names: list[str]) -> dict[str, str]:
    """Sets by the stem of their file, or by all of it where two files have the same stem."""
    stems = Counter(Path(name).stem for name in dict.fromkeys(names))
    return {name: Path(name).stem if stems[Path(name).stem] == 1 else name for name in names}


def with_knowledge(name: str, probes: list[dict[str, Any]], known: KnowledgeOf) -> tuple[list[dict[str, Any]], str]:
    """The questions of a set that can be asked open-book, with their `knowledge`, and the first reason why one cannot
    be."""
    asked, reason = [], ""
    for number, probe in enumerate(probes):
        knowledge, why = known.look_up(probe)
        if knowledge is not None:
            asked.append(probe | {"knowledge": knowledge})
        reason = reason or (why and f"probe of {record_name(probe, number)}: {why}")
    return asked, reason


def open_book_sets(
    args: argparse.Namespace, probe_sets: dict[str, list], known: KnowledgeOf
) -> dict[str, list[dict[str, Any]]]:
    """Of the sets that someone is to answer with their knowledge, the questions that have some.

    Raises:
        ValueError: an `--open_book` set has none, or no set that a teacher is asked has any; the message says why.
    """
    wanted = dict.fromkeys([*args.open_book, *(args.probes if args.teacher else [])])
    found = {name: with_knowledge(name, probe_sets[name], known) for name in wanted}
    sets = {name: asked for name, (asked, _) in found.items() if asked}
    lacking = [name for name in args.open_book if name not in sets]
    if args.teacher and args.probes and not any(name in sets for name in args.probes):
        lacking += args.probes
    if lacking:
        hint = "" if args.records else ": name its --records, or give each probe its `knowledge`"
        raise ValueError(f"{lacking[0]}: no question has knowledge to read ({found[lacking[0]][1]}){hint}")
    for name, (asked, reason) in found.items():
        if reason:
            count = f"{len(probe_sets[name]) - len(asked)} of {len(probe_sets[name])}"
            print(f"{name}: {count} questions are not asked open-book; first: {reason}\n")
    return sets


def askers(args: argparse.Namespace, opened: dict[str, list]) -> list[Asker]:
    """Who is asked what."""
    prompt = teacher_prompt(args)
    questions = [(name, None) for name in args.probes] + [(name, prompt) for name in args.open_book]
    found = [Asker("student", args.model, questions)]
    if args.server:
        words = {"called": "server", "kind": "an OpenAI-compatible", "setting": "--server_timeout"}
        server = ChatServer(
            args.server,
            args.served_model,
            in_flight=args.in_flight,
            timeout=args.server_timeout,
            request_timeout=args.server_timeout,
            name_flag="--served_model",
            words=words,
        )
        found = [Asker("student", f"{server.name} at {server.wire.url}", questions, server)]
    if args.compare:
        found.append(Asker("run", args.compare, questions))
    if args.before:
        found.append(Asker("before", args.before, questions))
    if args.teacher:
        found.append(Asker("teacher", args.teacher, [(name, prompt) for name in args.probes if name in opened]))
    return found


def marks(args: argparse.Namespace, probe_sets: dict[str, list], rows) -> dict[str, dict]:
    """Marks by set of questions: of the student closed-book (and open-book: its skill of reading), of the student as
    it was before, of the teacher open-book.

    Raises:
        ValueError: a question that cannot be asked (its file and place are named), or a model that cannot chat.
        TeacherServerError: a server that does not answer, or refuses a question (which is named).
    """
    opened = open_book_sets(args, probe_sets, KnowledgeOf(rows if rows is not None else []))
    asking = askers(args, opened)
    written = []
    for asker in asking:
        if asker.server is None:
            with key_named(asker.model):
                tokenizer = load_tokenizer(resolve_model(asker.model))
            written.append((asker.model, tokenizer, template_kwargs(args, asker.role)))
    warn_of_thinking(written)
    results: dict[tuple[str, str, bool], ClosedBookResult] = {}
    compared: dict[tuple[str, bool], Comparison] = {}
    server = asking[0].server
    for asker in asking:
        model, tokenizer = (None, None) if asker.server else load_model(asker.model, args.dtype, args.device)
        for name, prompt in asker.asked:
            probes = probe_sets[name] if prompt is None else opened[name]
            closed = prompt is None
            with WorkBar(f"{asker.role}: {name}", len(probes)) as bar, named(name):
                result = asker_marks(args, asker, model, tokenizer, probes, prompt, bar)
            results[asker.role, name, closed] = result
            if asker.role == "run" and server is not None:
                compared[name, closed] = compare_answers(
                    server,
                    model,
                    tokenizer,
                    [conversation(probe, prompt) for probe in probes],
                    results["student", name, closed],
                    result,
                    max_new_tokens=args.max_new_tokens,
                    chat_template_kwargs=args.chat_template_kwargs,
                )
    report = report_of(asking, results)
    for (name, is_closed), comparison in compared.items():
        book = "closed-book" if is_closed else "open-book"
        report[name][f"compared, {book}"] = compared_report(f"{name}, {book}", args.compare, comparison)
    return report


@contextmanager
def named(name: str) -> Generator[None]:
    """Put the name of a set before what is wrong with a question of it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except RequestRefused as error:
        raise RequestRefused(f"{name}: {error}", error.status) from error
    except NotAnswered as error:
        raise NotAnswered(f"{name}: {error}") from error


def asker_marks(
    args: argparse.Namespace,
    asker: Asker,
    model: Any,
    tokenizer: Any,
    probes: list[dict[str, Any]],
    prompt: TeacherPrompt | None,
    bar: WorkBar,
) -> ClosedBookResult:
    """One set of questions, put to one model, here or on its server."""
    options: dict[str, Any] = {
        "teacher_prompt": prompt,
        "max_new_tokens": args.max_new_tokens,
        "chat_template_kwargs": template_kwargs(args, asker.role),
        "on_batch": bar.update,
    }
    if asker.server is not None:
        return served_closed_book(asker.server, probes, **options)
    special = args.allow_special_tokens
    return closed_book(model, tokenizer, probes, batch_size=args.batch_size, allow_special_tokens=special, **options)


def report_of(asking: list[Asker], results: dict[tuple[str, str, bool], ClosedBookResult]) -> dict[str, dict]:
    """Prints the blocks, and returns the same by set and by who was asked, with every answer."""
    report: dict[str, dict] = {}
    lines: dict[str, list[list[str]]] = {}
    shown = [name for name in COLUMNS if name != "kept" or any(asker.role == "before" for asker in asking)]
    for asker in asking:
        for name, prompt in asker.asked:
            result = results[asker.role, name, prompt is None]
            earlier = results.get(("before", name, prompt is None)) if asker.role == "student" else None
            cells = [f"{asker.role}, {'closed-book' if prompt is None else 'open-book'}"]
            cells += [f"{result.strict:.1%}", f"{result.lenient:.1%}"]
            still = {}
            if "kept" in shown:
                both = [] if earlier is None else [kept(earlier, result, mark) for mark in ("strict", "lenient")]
                texts = [one.text for one in both]
                cells.append("-" if set(texts) == {"-"} else " / ".join(texts))
                for one, suffix in zip(both, ("_strict", "")):
                    still |= {f"kept{suffix}": one.share, f"known{suffix}": one.known}
            lines.setdefault(name, []).append([*cells, f"{result.leakage:.1%}", str(result.num_probes)])
            entry = {"model": asker.model, **result.metrics(), **still, "answers": result.answers}
            report.setdefault(name, {})[asker.key(prompt is None)] = entry
    for asker in asking:
        print(f"{asker.role}: {asker.model}")
    called = labels(list(lines))
    for name, rows in lines.items():
        print(f"\n{called[name]}\n{table(['', *shown], rows)}")
    print(f"\n{legend(COLUMNS, shown)}")
    return report
