"""What `lupi evaluate` measures: a table on the screen, and the same for its JSON file."""

import argparse
from typing import Any

from ..data.prompts import Words, teacher_words
from ..data.records import load_sft_data, record_name
from ..data.special_tokens import SpecialTokens
from ..data.squad import QA_TEMPLATE, load_qa_records, tokenize_qa
from ..evaluation import acceptance, mentions_context, perplexity, privilege_gap, without_knowledge
from ..models.generation import common_ends, eos_token_ids
from ..models.loading import load_model
from ..models.vocabulary import check_vocabularies
from ..speculative import TopK, skd_rollout
from .flags import warn_of_thinking
from .marks import teacher_prompt, template_kwargs
from .tables import legend, table


PERPLEXITY = {
    "perplexity": "of the model on the answers, e to the mean nats a token; 1 is certainty",
    "tokens": "answer tokens that it was measured on",
    "records": "questions that they are from",
    "dropped": "questions left out, since they are longer than --seq_len",
}
PRIVILEGE = {
    "with knowledge": "surprise of the teacher at the text, when it reads the knowledge",
    "without": "the same, when it does not",
    "gap": "the difference: what the knowledge is worth; 0 if it says nothing about the text",
    "tokens": "tokens of the text",
}


def perplexities(args: argparse.Namespace) -> dict[str, Any]:
    """Perplexities of the model on the answers to questions with contexts.

    Returns:
        Set to `{"perplexity": {model, perplexity, nll (nats), num_tokens, records, dropped}}`.

    Raises:
        ValueError: questions that cannot be read.
    """
    asked = {name: load_qa_records(name, split=args.split, max_samples=args.max_samples) for name in args.perplexity}
    model, tokenizer = load_model(args.model, args.dtype, args.device, chat=False)
    header, lines, report = ["questions", *PERPLEXITY], [], {}
    for name, records in asked.items():
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
        lines.append([name, f"{result.perplexity:.4g}", *map(str, (result.num_tokens, *counts.values()))])
    print(f"model: {args.model}\n{table(header, lines)}\n\n{legend(PERPLEXITY, header)}")
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
    prompt = teacher_prompt(args)
    gold = load_sft_data(args.records, args.gold)["completion"] if args.gold else []
    student, tokenizer = load_model(args.model, args.dtype, args.device)
    teacher, teacher_tokenizer = load_model(args.teacher, args.dtype, args.device)
    if not (args.probes or args.open_book):  # else it has been said
        both = {"student": (args.model, tokenizer), "teacher": (args.teacher, teacher_tokenizer)}
        warn_of_thinking((*model, template_kwargs(args, role)) for role, model in both.items())
    configs = student.config, teacher.config
    vocab_size = check_vocabularies(*configs, tokenizer, teacher_tokenizer)
    kwargs, its = args.chat_template_kwargs, args.teacher_chat_template_kwargs
    own = Words(tokenizer, kwargs)
    words = teacher_words(own, teacher_tokenizer, template_kwargs=its)
    special = SpecialTokens(tokenizer, args.allow_special_tokens, words.tokenizer)
    special.check_prompts(rows)
    with_knowledge = [prompt.messages(row["prompt"], row["privileged_context"]) for row in rows]
    asked, informed = own.encode([row["prompt"] for row in rows]), words.encode(with_knowledge)
    words.check_turns(with_knowledge)
    bare = words.encode([without_knowledge(prompt, row["prompt"]) for row in rows])
    settings: dict[str, Any] = {
        "max_new_tokens": args.max_new_tokens,
        "eos_token_id": eos_token_ids(student, tokenizer),
        "vocab_size": vocab_size,
        "max_slots": args.batch_size,
    }
    ends = common_ends(student, tokenizer, teacher, teacher_tokenizer, vocab_size, its, **kwargs)
    found = acceptance(student, teacher, asked, informed, **settings | {"eos_token_id": ends})
    written = skd_rollout(
        student, student, asked, asked, acceptance=TopK(vocab_size, 0.0), student_temperature=0.0, **settings
    )
    texts = {"the student's text": written.completion_ids}
    if args.gold:
        answers = [gold[row["place"]][0]["content"] for row in rows]
        for row, answer in zip(rows, answers):
            special.check(record_name(row), answer)
        texts["gold text"] = tokenizer(answers, add_special_tokens=False)["input_ids"]
    header, lines = ["nats a token", *PRIVILEGE], []
    leaks = [mentions_context(tokenizer.decode(ids, skip_special_tokens=True)) for ids in written.completion_ids]
    report = {"records": len(rows), "acceptance": found, "leakage": sum(leaks) / len(leaks)}
    for what, ids in texts.items():
        gap = privilege_gap(teacher, informed, bare, ids)
        report[what] = gap.metrics()
        shown = [f"{value:.3f}" for value in (gap.with_knowledge, gap.without_knowledge, gap.gap)]
        lines.append([what, *shown, str(gap.num_tokens)])
    print(f"\n{table(header, lines)}\n\n{legend(PRIVILEGE, header)}\n")
    figures = found | {"leakage of the student's text": report["leakage"]}
    print("  ".join(f"{name} {value:.1%}" for name, value in figures.items()))
    return {"privilege": report}
