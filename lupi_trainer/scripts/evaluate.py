"""`lupi evaluate`: what a student knows, what it forgot, what its teacher knows, and what the knowledge is worth."""

import argparse
import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file, find_adapter_config_file

from ..data.prompts import TeacherPrompt, encode, load_few_shot_examples
from ..data.records import load_probes, load_sft_data, load_training_data
from ..evaluation import acceptance, closed_book, kept, mentions_context, privilege_gap, without_knowledge
from ..lab import resolve_model
from ..models.generation import eos_token_ids
from ..models.loading import NO_CODE, SAFE_WEIGHTS
from ..models.vocabulary import check_tokenizer, check_vocabularies
from ..speculative import TopK, skd_rollout
from ..training.progress import WorkBar
from .perplexity import report_perplexity


def load_model(name: str, dtype: str = "auto", device: str | None = None, *, chat: bool = True):
    """A causal language model and its tokenizer, from a name or a folder, of a LoRA adapter too.

    Returns:
        (model in eval mode on its device, tokenizer).

    Raises:
        ValueError: the tokenizer has no chat template or pad token, where the model shall chat; or the model is code
            of its own.
        OSError: there is no such model, or its weights are not safetensors.
    """
    path = resolve_model(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if find_adapter_config_file(path) is not None:
        from peft import AutoPeftModelForCausalLM

        cached_file(path, "adapter_model.safetensors")  # raises where there is none: PEFT would read a pickle
        model = AutoPeftModelForCausalLM.from_pretrained(path, dtype=dtype, **SAFE_WEIGHTS)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **SAFE_WEIGHTS)
    tokenizer = AutoTokenizer.from_pretrained(path, **NO_CODE)
    if chat:
        check_tokenizer(tokenizer)
    return model.to(device).eval(), tokenizer


def main(args: argparse.Namespace) -> int:
    """Print what is asked for as tables; with `--output`, write it with every answer.

    Raises:
        ValueError: nothing is asked for, or something lacks what it needs.
    """
    if not any((args.probes, args.perplexity, args.open_book, args.privilege)):
        raise ValueError("nothing to ask: --probes, --open_book, --privilege or --perplexity is needed")
    if args.privilege and not (args.teacher and args.records):
        raise ValueError("--privilege needs a --teacher, and --records whose knowledge it reads")
    probe_sets = {name: load_probes(name) for name in (*args.probes, *args.open_book)}
    if args.records:
        rows = load_training_data(args.records)
        knowledge = dict(zip(rows["id"], rows["privileged_context"])) if "id" in rows.column_names else {}
        for probes in probe_sets.values():
            for probe in probes:
                probe.setdefault("knowledge", knowledge.get(probe["record_id"]))
    report: dict[str, dict] = {}
    if args.perplexity:
        report |= report_perplexity(args, *load_model(args.model, args.dtype, args.device, chat=False))
    if probe_sets:
        report |= report_marks(args, probe_sets)
    if args.privilege:
        report |= report_privilege(args, rows)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    return 0


def teacher_prompt(args: argparse.Namespace) -> TeacherPrompt:
    return TeacherPrompt(args.teacher_system_prompt, load_few_shot_examples(args.few_shot_examples))


def report_marks(args: argparse.Namespace, probe_sets: dict[str, list]) -> dict[str, dict]:
    """Marks by set of questions: of the student closed-book (and open-book: its skill of reading), of the student as
    it was before, of the teacher open-book."""
    from rich.console import Console
    from rich.table import Table

    with_knowledge = teacher_prompt(args)
    closed, opened = [(name, None) for name in args.probes], [(name, with_knowledge) for name in args.open_book]
    askers = [(args.model, "", closed + opened)]
    if args.before:
        askers.append((args.before, "before: ", closed + opened))
    if args.teacher:
        asked = [name for name in args.probes if all(probe.get("knowledge") for probe in probe_sets[name])]
        if not asked and args.probes:
            raise ValueError("no set of questions has knowledge for the teacher to read: name its --records")
        askers.append((args.teacher, "teacher: ", [(name, with_knowledge) for name in asked]))
    table = Table("probes", "model", "strict", "lenient", "kept", "leaks", "questions")
    results, report = {}, {}
    for model_name, role, asked in askers:
        model, tokenizer = load_model(model_name, args.dtype, args.device)
        for name, prompt in asked:
            with WorkBar(f"{role}{name}", len(probe_sets[name])) as bar:
                results[role, name, prompt is None] = closed_book(
                    model,
                    tokenizer,
                    probe_sets[name],
                    teacher_prompt=prompt,
                    max_new_tokens=args.max_new_tokens,
                    batch_size=args.batch_size,
                    chat_template_kwargs=args.chat_template_kwargs,
                    on_batch=bar.update,
                )
    for (role, name, is_closed), result in results.items():
        book = "closed-book" if is_closed else "open-book"
        model_name = {"": args.model, "before: ": args.before, "teacher: ": args.teacher}[role]
        earlier = results.get(("before: ", name, is_closed)) if role == "" else None
        still = {"kept": kept(earlier, result)} if earlier is not None else {}
        figures = [result.strict, result.lenient, still.get("kept"), result.leakage]
        shown = ["" if figure is None else f"{figure:.1%}" for figure in figures]
        table.add_row(name, f"{model_name} ({book})", *shown, str(result.num_probes))
        key = book if role != "before: " else f"before, {book}"
        if role == "" and not is_closed:
            key = "student, open-book"
        entry = {"model": model_name, **result.metrics(), **still, "answers": result.answers}
        report.setdefault(name, {})[key] = entry
    Console().print(table)
    return report


def report_privilege(args: argparse.Namespace, rows) -> dict[str, dict]:
    """What the knowledge is worth to the teacher on the student's own text (and on gold text, if a column of it is
    named), how much of the student's drafts the teacher accepts, and how many of the student's texts speak of
    given knowledge."""
    from rich.console import Console
    from rich.table import Table

    rows = [row for row in rows if row["privileged_context"] is not None]
    if not rows:
        raise ValueError(f"{args.records}: no record has knowledge")
    # spread over the file, so that all of its subjects are in it
    rows = rows[:: max(1, len(rows) // args.samples)][: args.samples]
    student, tokenizer = load_model(args.model, args.dtype, args.device)
    teacher, teacher_tokenizer = load_model(args.teacher, args.dtype, args.device)
    configs = student.config, teacher.config
    vocab_size = check_vocabularies(*configs, tokenizer, teacher_tokenizer)
    prompt = teacher_prompt(args)
    kwargs = args.chat_template_kwargs
    asked = encode(tokenizer, [row["prompt"] for row in rows], **kwargs)
    informed = encode(tokenizer, [prompt.messages(row["prompt"], row["privileged_context"]) for row in rows], **kwargs)
    bare = encode(tokenizer, [without_knowledge(prompt, row["prompt"]) for row in rows], **kwargs)
    settings = {
        "max_new_tokens": args.max_new_tokens,
        "eos_token_id": eos_token_ids(student, tokenizer),
        "vocab_size": vocab_size,
        "max_slots": args.batch_size,
    }
    found = acceptance(student, teacher, asked, informed, **settings)
    own = skd_rollout(
        student, student, asked, asked, acceptance=TopK(vocab_size, 0.0), student_temperature=0.0, **settings
    )
    texts = {"the student's text": own.completion_ids}
    if args.gold:
        gold = load_sft_data(args.records, args.gold)["completion"]
        texts["gold text"] = [
            tokenizer(gold[row["row_id"]][0]["content"], add_special_tokens=False)["input_ids"] for row in rows
        ]
    table = Table("nats a token of the teacher", "with knowledge", "without", "gap", "tokens")
    leaks = [mentions_context(tokenizer.decode(ids, skip_special_tokens=True)) for ids in own.completion_ids]
    report = {"records": len(rows), "acceptance": found, "leakage": sum(leaks) / len(leaks)}
    for what, ids in texts.items():
        gap = privilege_gap(teacher, informed, bare, ids)
        report[what] = gap.metrics()
        shown = [f"{value:.3f}" for value in (gap.with_knowledge, gap.without_knowledge, gap.gap)]
        table.add_row(what, *shown, str(gap.num_tokens))
    Console().print(table)
    figures = found | {"leakage of the student's text": report["leakage"]}
    Console().print("  ".join(f"{name} {value:.1%}" for name, value in figures.items()), highlight=False)
    return {"privilege": report}
