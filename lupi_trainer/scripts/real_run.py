"""The run of `lupi real`: the model, its training, and what it knew before and knows afterwards."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..data.files import find_data
from ..data.probe_knowledge import KnowledgeOf
from ..data.records import load_probes
from ..evaluation import ClosedBookResult, closed_book, kept, perplexity
from ..lab import real
from ..lupi_skd.placement import emulates
from ..training.checkpoints import write_atomically
from ..training.run_log import speaking
from .lupi_skd import build_trainer, make_parser
from .no_plugins import FLAG
from .recipe_files import find_recipe


SETS = {"trained": "probes.json", "unseen": "probes_unseen.json", "general": "general.json"}
TEXT, RECORDS = "text.txt", "records_phrased.json"


def text_rows(path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """A paragraph a row, of a text whose paragraphs are parted by empty lines: every token of it is labeled."""
    rows = []
    for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
        ids = tokenizer(paragraph.strip())["input_ids"]
        rows.append({"input_ids": ids, "labels": ids})
    return rows


def ask(model: Any, trainer: Any, sets: dict[str, list], text: Path, max_new_tokens: int) -> dict[str, Any]:
    """Closed-book marks on every set of questions, and the `perplexity` on the text."""
    asking: dict[str, Any] = {"max_new_tokens": max_new_tokens, "chat_template_kwargs": trainer.chat_template_kwargs}
    tokenizer = trainer.processing_class
    found: dict[str, Any] = {name: closed_book(model, tokenizer, probes, **asking) for name, probes in sets.items()}
    return found | {"perplexity": perplexity(model, text_rows(text, tokenizer)).perplexity}


def ask_open_book(trainer: Any, sets: dict[str, list], max_new_tokens: int) -> dict[str, ClosedBookResult]:
    """The teacher's marks on the questions about the facts, each with the paragraph of the trained ones."""
    known = KnowledgeOf({**probe, "id": probe["record_id"]} for probe in sets["trained"])
    found = {}
    for name in ("trained", "unseen"):
        probes = [{**probe, "knowledge": known.look_up(probe)[0]} for probe in sets[name]]
        found[name] = closed_book(
            trainer.model if trainer.args.teacher_model_name_or_path is None else trainer.teacher_model,
            trainer.processing_class,
            probes,
            teacher_prompt=trainer.teacher_prompt,
            max_new_tokens=max_new_tokens,
            chat_template_kwargs=trainer.chat_template_kwargs,
        )
    return found


def figures(before: dict[str, Any], after: dict[str, Any], opened: dict[str, ClosedBookResult]) -> dict[str, Any]:
    """All figures of a run: marks and shares as fractions of 1."""
    result: dict[str, Any] = {}
    for name in SETS:
        for when, marks in (("before", before[name]), ("after", after[name])):
            result[f"{name}_{when}"] = {"strict": marks.strict, "lenient": marks.lenient}
    for name, marks in opened.items():
        result[f"{name}_open_book"] = {"strict": marks.strict, "lenient": marks.lenient}
        result[f"{name}_of_open_book"] = after[name].lenient / marks.lenient if marks.lenient else None
    general = kept(before["general"], after["general"])
    result |= {"general_known_before": general.known, "general_kept": general.share}
    return result | {f"perplexity_{when}": m["perplexity"] for when, m in (("before", before), ("after", after))}


def table(result: dict[str, Any]) -> Table:
    """What a reader wants to know of a run."""
    shown = Table("lenient mark (strict)", "before", "after", title="The student, closed-book")

    def cell(key: str) -> str:
        return f"{result[key]['lenient']:.1%} ({result[key]['strict']:.1%})"

    rows = {"trained": "facts, trained phrasings", "unseen": "facts, unseen phrasings", "general": "general questions"}
    for name, title in rows.items():
        shown.add_row(title, cell(f"{name}_before"), cell(f"{name}_after"))
    general = "-" if result["general_kept"] is None else f"{result['general_kept']:.1%}"
    shown.add_row(f"... of {result['general_known_before']} that it knew", "", general)
    shown.add_row("perplexity of other text", *(f"{result[f'perplexity_{w}']:.2f}" for w in ("before", "after")))
    for name in ("trained", "unseen"):
        shown.add_row(f"teacher, reading: {name} phrasings", cell(f"{name}_open_book"), "", style="dim")
    return shown


def run_real(args: argparse.Namespace) -> dict[str, Any]:
    """Get, ask, teach, ask again; writes the student, `metrics.json` and `answers.json`.

    Raises:
        ValueError, OSError: the model or a file of questions cannot be had, or the recipe cannot work.
    """
    console, start = Console(), time.perf_counter()
    sets = {name: load_probes(str(args.data_dir / file)) for name, file in SETS.items()}
    text = find_data(args.data_dir / TEXT)
    if not text.is_file():
        raise FileNotFoundError(f"no such data file: {text}")
    recipe = ["--config", str(find_recipe(args.config)), "--dataset_name", str(args.data_dir / RECORDS)]
    model = str(real.get(source=args.source, say=lambda line: console.print(line, highlight=False)))
    # the last of two equal flags counts, so that the user's own do
    named = ["--model_name_or_path", model, "--probes", str(args.data_dir / SETS["trained"])]
    output = ["--output_dir", str(args.output_dir)]
    trust = [FLAG] if args.no_plugins else []
    parsed = make_parser().parse_args_and_config([*recipe, *named, *output, *args.recipe_flags, *trust])
    if parsed[1].teacher_model_name_or_path is not None and "--teacher_model_name_or_path" not in args.recipe_flags:
        parsed[1].teacher_model_name_or_path = model
    if "--dtype" not in args.recipe_flags and emulates(parsed[2].dtype, parsed[1].device):
        parsed[2].dtype = "float32"
        console.print("float32 weights: this processor has no instructions for bfloat16")
    trainer = build_trainer(*parsed)
    seconds = {"setting_up": time.perf_counter() - start}

    console.print("asking the student closed-book, and the teacher open-book")
    before = ask(trainer.model, trainer, sets, text, args.max_new_tokens)
    opened = ask_open_book(trainer, sets, args.max_new_tokens)
    seconds["asking_before"] = time.perf_counter() - start - sum(seconds.values())
    with speaking(trainer, verbose=parsed[0].verbose):
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    trainer.save_without_push(trainer.args.output_dir)
    trainer.save_state()
    seconds["training"] = time.perf_counter() - start - sum(seconds.values())
    after = ask(trainer.model, trainer, sets, text, args.max_new_tokens)
    seconds["asking_after"] = time.perf_counter() - start - sum(seconds.values())

    result = figures(before, after, opened)
    result |= {"model": real.HUB_NAME, "steps": trainer.state.global_step, "seconds": seconds}
    folder = Path(trainer.args.output_dir)
    write_atomically(folder / "metrics.json", json.dumps(result, indent=1))
    texts = {f"{name}_{when}": m[name].answers for when, m in (("before", before), ("after", after)) for name in SETS}
    texts |= {f"{name}_open_book": marks.answers for name, marks in opened.items()}
    write_atomically(folder / "answers.json", json.dumps(texts, ensure_ascii=False, indent=1))
    console.print(table(result))
    console.print(
        f"{trainer.state.global_step} steps, {sum(seconds.values()):.0f} seconds, {seconds['training']:.0f} of them "
        f"training. Student: {folder}; figures: {folder / 'metrics.json'}; every answer: {folder / 'answers.json'}",
        highlight=False,
    )
    return result
