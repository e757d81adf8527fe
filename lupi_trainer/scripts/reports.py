"""What `lupi evaluate` measures: a table on the screen, and the same for its JSON file."""

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table

from ..data.prompts import TeacherPrompt, check_turns, encode, load_few_shot_examples
from ..data.records import load_sft_data, record_name
from ..data.special_tokens import SpecialTokens
from ..data.squad import QA_TEMPLATE, load_qa_records, tokenize_qa
from ..evaluation import acceptance, closed_book, kept, mentions_context, perplexity, privilege_gap, without_knowledge
from ..models.generation import common_ends, eos_token_ids
from ..models.loading import load_model
from ..models.vocabulary import check_vocabularies
from ..speculative import TopK, skd_rollout
from ..training.progress import WorkBar


def perplexities(args: argparse.Namespace) -> dict[str, Any]:
    """Perplexities of the model on the answers to questions with contexts.

    Returns:
        Set to `{"perplexity": {model, perplexity, nll (nats), num_tokens, records, dropped}}`.

    Raises:
        ValueError: questions that cannot be read.
    """
    model, tokenizer = load_model(args.model, args.dtype, args.device, chat=False)
    table = Table("questions", "model", "perplexity", "tokens", "records", "dropped")
    report = {}
    for name in args.perplexity:
        records = load_qa_records(name, split=args.split, max_samples=args.max_samples)
        questions = tokenize_qa(
            records,
            tokenizer,
            seq_len=args.seq_len,
            template=args.qa_template or QA_TEMPLATE,
            allow_special_tokens=args.allow_special_tokens,
        )
        result = perplexity(model, questions.dataset, batch_size=args.batch_size)
        counts = {"records": len(questions.dataset), "dropped": len(questions.dropped)}
        report[name] = {"perplexity": {"model": args.model, **result.metrics(), **counts}}
        cells = (f"{result.perplexity:.4g}", result.num_tokens, *counts.values())
        table.add_row(name, args.model, *map(str, cells))
    Console().print(table)
    return report


def teacher_prompt(args: argparse.Namespace) -> TeacherPrompt:
    return TeacherPrompt(args.teacher_system_prompt, load_few_shot_examples(args.few_shot_examples))


def marks(args: argparse.Namespace, probe_sets: dict[str, list]) -> dict[str, dict]:
    """Marks by set of questions: of the student closed-book (and open-book: its skill of reading), of the student as
    it was before, of the teacher open-book."""
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
                    allow_special_tokens=args.allow_special_tokens,
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


def privilege(args: argparse.Namespace, rows) -> dict[str, dict]:
    """What the knowledge is worth to the teacher on the student's own text (and on gold text, if a column of it is
    named), how much of the student's drafts the teacher accepts, and how many of the student's texts speak of
    given knowledge."""
    rows = [row | {"place": place} for place, row in enumerate(rows) if row["privileged_context"] is not None]
    if not rows:
        raise ValueError(f"{args.records}: no record has knowledge")
    # spread over the file, so that all of its subjects are in it
    rows = rows[:: max(1, len(rows) // args.samples)][: args.samples]
    student, tokenizer = load_model(args.model, args.dtype, args.device)
    teacher, teacher_tokenizer = load_model(args.teacher, args.dtype, args.device)
    configs = student.config, teacher.config
    vocab_size = check_vocabularies(*configs, tokenizer, teacher_tokenizer)
    special = SpecialTokens(tokenizer, args.allow_special_tokens)
    special.check_prompts(rows)
    prompt = teacher_prompt(args)
    kwargs = args.chat_template_kwargs
    with_knowledge = [prompt.messages(row["prompt"], row["privileged_context"]) for row in rows]
    asked = encode(tokenizer, [row["prompt"] for row in rows], **kwargs)
    informed = encode(tokenizer, with_knowledge, **kwargs)
    check_turns(tokenizer, with_knowledge, **kwargs)
    bare = encode(tokenizer, [without_knowledge(prompt, row["prompt"]) for row in rows], **kwargs)
    settings: dict[str, Any] = {
        "max_new_tokens": args.max_new_tokens,
        "eos_token_id": eos_token_ids(student, tokenizer),
        "vocab_size": vocab_size,
        "max_slots": args.batch_size,
    }
    ends = common_ends(student, tokenizer, teacher, teacher_tokenizer, vocab_size, **(kwargs or {}))
    found = acceptance(student, teacher, asked, informed, **settings | {"eos_token_id": ends})
    own = skd_rollout(
        student, student, asked, asked, acceptance=TopK(vocab_size, 0.0), student_temperature=0.0, **settings
    )
    texts = {"the student's text": own.completion_ids}
    if args.gold:
        gold = load_sft_data(args.records, args.gold)["completion"]
        answers = [gold[row["place"]][0]["content"] for row in rows]
        for row, answer in zip(rows, answers):
            special.check(record_name(row), answer)
        texts["gold text"] = tokenizer(answers, add_special_tokens=False)["input_ids"]
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
