"""What `lupi data select` does: both models are asked, every reply is kept at once, and the marks decide."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..data.prompts import TeacherPrompt, load_few_shot_examples
from ..data.records import load_probes, read_records, record_name
from ..evaluation import closed_book
from ..evaluation.teachable import REASONS, count, reason, training_records
from ..experiments.results import difference
from ..models.loading import load_model
from ..training.checkpoints import write_atomically
from ..training.progress import WorkBar


ANSWERS = "answers.jsonl"  # a reply a line, so that a selection that was ended goes on
NO_ANSWER = {"answer": "", "finished": True}
CHUNK = 4  # batches asked between two writes


def load_questions(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The probes, each with its `knowledge`, and with the `category` of its record if that has one.

    Raises:
        ValueError: a question without knowledge (named), or one that is there twice.
    """
    records = {record.get("id"): record for record in read_records(args.file)} if args.file else {}
    probes = [dict(probe) for probe in load_probes(args.probes)]
    seen: set[tuple] = set()
    for number, probe in enumerate(probes):
        record = records.get(probe["record_id"], {})
        for key, given in (("knowledge", "knowledge"), ("knowledge", "privileged_context"), ("category", "category")):
            if record.get(given):
                probe.setdefault(key, record[given])
        where = f"probe of {record_name(probe, number)}"
        if not isinstance(probe.get("knowledge"), str) or not probe["knowledge"].strip():
            have = f"and {args.file} has no such record with knowledge" if args.file else "and no records are given"
            raise ValueError(f"{where}: it has no `knowledge`, {have}")
        key = (probe["record_id"], probe["question"])
        if key in seen:
            raise ValueError(f"{where}: the same question is asked twice: {probe['question']!r}")
        seen.add(key)
    return probes


def settings_of(args: argparse.Namespace, probes: list[dict[str, Any]]) -> dict[str, Any]:
    """All that the replies depend on; marks and accepted answers do not, and may change."""
    texts = json.dumps([(p["record_id"], p["question"], p["knowledge"]) for p in probes], ensure_ascii=False)
    return {
        "student": args.student,
        "teacher": args.teacher or args.student,
        "teacher_system_prompt": args.teacher_system_prompt,
        "few_shot_examples": [list(pair) for pair in load_few_shot_examples(args.few_shot_examples)],
        "chat_template_kwargs": args.chat_template_kwargs,
        "max_new_tokens": args.max_new_tokens,
        "dtype": args.dtype,
        "questions": hashlib.sha256(texts.encode()).hexdigest(),
    }


class Replies:
    """The replies that a folder holds: role and question to `{answer, finished}`.

    Raises:
        ValueError: the folder has those of other settings, or lines that are no replies.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.path = folder / ANSWERS
        self.known: dict[tuple[str, int], dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.is_file() else []
        complete = lines[:-1]  # what follows the last end of line was cut off as it was written
        try:
            entries = [json.loads(line) for line in complete]
            before = entries[0]["settings"] if entries else None
            replies = {(e["role"], e["number"]): {k: e[k] for k in ("answer", "finished")} for e in entries[1:]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not what `lupi data select` wrote ({error!r}); delete it") from error
        if before is None:
            write_atomically(self.path, json.dumps({"settings": settings}, ensure_ascii=False) + "\n")
            return
        for key, value in settings.items():
            if before.get(key) != value:
                change = difference(key, before.get(key), value)
                raise ValueError(f"{folder} was made with other settings ({change}); choose another --output_dir")
        self.known = replies
        write_atomically(self.path, "".join(line + "\n" for line in complete))

    def add(self, role: str, numbers: list[int], replies: list[dict[str, Any]]) -> None:
        lines = []
        for number, reply in zip(numbers, replies):
            self.known[role, number] = kept = {"answer": reply["answer"], "finished": reply["finished"]}
            lines.append(json.dumps({"role": role, "number": number, **kept}, ensure_ascii=False) + "\n")
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(lines))


class Asker:
    """Puts questions to the models by their names, each loaded when it is first needed."""

    def __init__(self, args: argparse.Namespace, replies: Replies):
        self.args, self.replies = args, replies
        self.name: str | None = None
        self.loaded: Any = None

    def ask(self, role: str, probes: list[dict[str, Any]], numbers: list[int], prompt: TeacherPrompt | None) -> None:
        """Has a reply of `role` to each of the questions `numbers`; those that are there are not asked again."""
        open_ones = [number for number in numbers if (role, number) not in self.replies.known]
        if not open_ones:
            return
        name = self.args.student if role == "student" else self.args.teacher or self.args.student
        if name != self.name:
            self.loaded = None  # before the other one is read: one of them at a time is in memory
            self.name, self.loaded = name, load_model(name, self.args.dtype, self.args.device)
        size = self.args.batch_size * CHUNK
        with WorkBar(role, len(open_ones)) as bar:
            for start in range(0, len(open_ones), size):
                chunk = open_ones[start : start + size]
                result = closed_book(
                    *self.loaded,
                    [probes[number] for number in chunk],
                    teacher_prompt=prompt,
                    max_new_tokens=self.args.max_new_tokens,
                    batch_size=self.args.batch_size,
                    chat_template_kwargs=self.args.chat_template_kwargs,
                    on_batch=lambda done, tokens, start=start: bar.update(start + done, tokens),
                )
                self.replies.add(role, chunk, result.answers)


def select(args: argparse.Namespace) -> None:
    """Ask the teacher everything, the student what the teacher reads, and write what is kept, and why.

    Raises:
        ValueError: as [`load_questions`] and [`Replies`]; or nothing can be taught.
    """
    probes = load_questions(args)
    prompt = TeacherPrompt(args.teacher_system_prompt, load_few_shot_examples(args.few_shot_examples))
    settings = settings_of(args, probes)
    replies = Replies(args.output_dir, settings)
    asker = Asker(args, replies)
    asker.ask("teacher", probes, list(range(len(probes))), prompt)
    opened = [replies.known["teacher", number] for number in range(len(probes))]
    # a student that would be asked to no purpose is not asked
    read = [n for n, probe in enumerate(probes) if reason(probe, opened[n], NO_ANSWER, args.mark) != "unread"]
    asker.ask("student", probes, read, None)
    closed = [replies.known.get(("student", number)) for number in range(len(probes))]
    reasons = [reason(*given, args.mark) for given in zip(probes, opened, closed)]
    counts = count(reasons, [probe.get("category") for probe in probes])
    questions = [
        {
            "record_id": probe["record_id"],
            "question": probe["question"],
            "reason": why,
            "teacher": teacher["answer"],
            "student": student["answer"] if student else None,
        }
        for probe, why, teacher, student in zip(probes, reasons, opened, closed)
    ]
    kept = [probe for probe, why in zip(probes, reasons) if why == "kept"]
    written = {
        "selection.json": {
            "settings": settings | {"mark": args.mark},
            "counts": counts,
            "reasons": REASONS,
            "questions": questions,
        },
        "probes.json": kept,
        "records.json": training_records(kept),
    }
    for name, content in written.items():
        write_atomically(args.output_dir / name, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    table = Table("category", "asked", *REASONS)
    for name, part in [*counts.get("categories", {}).items(), ("all", counts)]:
        table.add_row(name, *(str(part[key]) for key in ("asked", *REASONS)))
    Console().print(table)
    if not kept:
        raise ValueError(f"none of the {len(probes)} questions can be taught; {args.output_dir / 'selection.json'}")
