"""The main job, shown: a student that cannot know a fact, a teacher that reads it, and the student afterwards."""

import io
import json
import re
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from ..data.prompts import encode
from ..evaluation import closed_book
from ..lab import load_lab_records, world
from ..speculative import Rollout, TopK, skd_rollout
from ..training.progress import quiet_bars
from ..training.run_log import speaking
from .lupi_skd import build_trainer, make_parser
from .recipe_files import recipes_dir


RECIPE = "lab/lupi_skd/config_full.yaml"
PROBES = {
    "new facts, trained phrasings": "lab:probes",
    "new facts, unseen phrasings": "lab:probes-unseen",
    "new facts, described at length": "lab:probes-long",
    "old facts, not to be forgotten": "lab:probes-common",
}


def paint(tokenizer, rollout: Rollout, row: int = 0) -> Text:
    """One completion in two colors: green what the student wrote, red in brackets what the teacher put in."""
    text, ids, written, students = Text(), rollout.completion_ids[row], "", ""
    for n, by_teacher in enumerate(rollout.from_teacher[row]):
        # the text that this token adds, so that tokens of bytes and of spaces come out as they read
        so_far = tokenizer.decode(ids[: n + 1], skip_special_tokens=True)
        added, written = so_far[len(written) :], so_far
        if by_teacher:
            space = added[: len(added) - len(added.lstrip())]
            text.append(students + space, style="green").append(f"[{added.strip()}]", style="bold red")
            students = ""
        else:
            students += added
    return text.append(students, style="green")


# Filled in by rich; its colors are variables, of which readers of light and of dark pages have their own.
PICTURE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 4 {terminal_width} {terminal_height}">
<style>
:root {{ --text: #1f2328; --student: #1a7f37; --teacher: #cf222e }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #e6edf3; --student: #56d364; --teacher: #ff7b72 }} }}
text {{ font: {char_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre }}
{styles}
</style>
{matrix}
</svg>
"""
COLORS = {"#010101": "--text", "#020202": "--student", "#030303": "--teacher"}  # as the exported picture names them


def picture(before: Text, after: Text) -> str:
    """The same training text before and after, as an SVG that needs no network, for light and dark pages."""
    console = Console(record=True, width=92, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("the student's tokens", "green"), ("   [the teacher's]\n", "bold red")))
    for title, text in (("before", before), ("after", after)):
        console.print(Text.assemble((f"{title}: ", "bold"), text))
    grey, student, teacher = ((n, n, n) for n in (1, 2, 3))
    theme = TerminalTheme((255, 255, 255), grey, [grey, teacher, student, *[grey] * 5], [grey, teacher, student])
    svg = console.export_svg(theme=theme, code_format=PICTURE)
    svg = re.sub("#0[123]0[123]0[123]", lambda color: f"var({COLORS[color[0]]})", svg)
    return re.sub(r' clip-path="url\(.*?\)"', "", svg)


def write_together(trainer, question: str, knowledge: str) -> Rollout:
    """One rollout of student and teacher about one question."""
    prompt = [{"role": "user", "content": question}]
    student_ids = encode(trainer.processing_class, [prompt])
    teacher_ids = trainer.teacher_words.encode([trainer.teacher_prompt.messages(prompt, knowledge)])
    args = trainer.args
    return skd_rollout(
        trainer.model,
        trainer.teacher_model,
        student_ids,
        teacher_ids,
        max_new_tokens=args.max_completion_length,
        gamma=args.gamma,
        acceptance=TopK(args.accept_top_k, args.teacher_min_prob),
        student_temperature=args.student_temperature,
        teacher_temperature=args.teacher_temperature,
        eos_token_id=trainer.eos_token_ids,
    )


def ask_all(trainer) -> dict[str, float]:
    """Closed-book marks of the student on every set of probes (lenient: the value is named)."""
    return {
        what: closed_book(trainer.model, trainer.processing_class, load_lab_records(name)).lenient
        for what, name in PROBES.items()
    }


@quiet_bars(everywhere=True)
def run_demo(output_dir: Path, *flags: str) -> None:
    """Run the demo from its recipe; writes the student, `metrics.json` (fractions of 1) and `rollout.svg`.

    Args:
        output_dir: for all of it.
        flags: `--KEY VALUE` of the recipe, for a shorter one.
    """
    torch.set_num_threads(1)  # these models are too small to share out: a second thread only waits for the first
    console, start = Console(), time.perf_counter()
    recipe = str(recipes_dir() / RECIPE)
    overrides = ["--output_dir", str(output_dir), "--record_rollouts", "300", *flags]
    trainer = build_trainer(*make_parser().parse_args_and_config(["--config", recipe, *overrides]))

    island = world.NEW[0]
    question, knowledge = f"Tell me about {island.name}.", load_lab_records("lab:probes")[0]["knowledge"]
    console.rule("Only the teacher reads this")
    console.print(Text(knowledge, style="cyan"))
    open_book = closed_book(
        trainer.teacher_model,
        trainer.processing_class,
        load_lab_records("lab:probes"),
        teacher_prompt=trainer.teacher_prompt,
    ).lenient
    before = ask_all(trainer)
    console.rule("A training text before: the student's tokens, and the teacher's in brackets")
    text_before = paint(trainer.processing_class, write_together(trainer, question, knowledge))
    console.print(text_before)
    console.rule(f"Training: {trainer.args.max_steps} steps")
    with speaking(trainer):
        trainer.train()
    console.rule("The same text after")
    text_after = paint(trainer.processing_class, write_together(trainer, question, knowledge))
    console.print(text_after)
    after = ask_all(trainer)
    trainer.save_model(str(output_dir / "student"))
    trainer.save_state()

    table = Table("share of questions answered right", "before", "after", title="The student, closed-book")
    for what in PROBES:
        table.add_row(what, f"{before[what]:.1%}", f"{after[what]:.1%}")
    table.add_row("teacher, reading the knowledge", f"{open_book:.1%}", "", style="dim")
    console.print(table)
    trained, unseen, long, common = PROBES
    accepted = [log["acc_rate/mean"] for log in trainer.state.log_history if "acc_rate/mean" in log]
    metrics = {
        "teacher_open_book": open_book,
        "student_closed_book_before": before[trained],
        "student_closed_book_after": after[trained],
        "student_unseen_phrasing_before": before[unseen],
        "student_unseen_phrasing_after": after[unseen],
        "student_long_form_after": after[long],
        "common_facts_before": before[common],
        "common_facts_after": after[common],
        "acceptance_first": accepted[0],
        "acceptance_last": accepted[-1],
        "seconds": time.perf_counter() - start,
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    (output_dir / "rollout.svg").write_text(picture(text_before, text_after), encoding="utf-8")
    console.print(
        f"{metrics['seconds']:.0f} seconds. Student: {output_dir / 'student'}; figures: {output_dir / 'metrics.json'};"
        f" to look into it: lupi inspect {output_dir}",
        highlight=False,
    )
