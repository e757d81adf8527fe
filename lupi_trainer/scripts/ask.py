"""`lupi ask`: what one model says to a question, on the screen as it is written."""

import argparse
from typing import Any

from ..data.answers import MAX_ANSWER_TOKENS
from .flags import add_loading_arguments, add_prompt_arguments, check_models, warn_of_thinking


HELP = "ask a model a question: lupi ask MODEL QUESTION"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Answers are greedy, as those that `lupi evaluate` marks. An adapter's folder will do."
    add = parser.add_argument
    add("model", help="a name, a path (of an adapter too), or lab:NAME")
    add("question", nargs="+", help="text; several are asked one by one, each by itself")
    add("--knowledge", help="text that it reads before the question, as a teacher does in training")
    add("--system_prompt", help="persona: its system turn")
    add("--max_new_tokens", type=int, default=MAX_ANSWER_TOKENS, help="longest answer")
    add_prompt_arguments(parser)
    add_loading_arguments(parser)


def prompts(args: argparse.Namespace, tokenizer: Any) -> list[list[int]]:
    """Token ids of every question, as the model is asked it."""
    from ..data.completions import encode_prompts
    from ..data.prompts import TeacherPrompt
    from ..data.records import normalize_record

    asked = [{"prompt": question, "privileged_context": args.knowledge} for question in args.question]
    records = [normalize_record(record, number) for number, record in enumerate(asked)]
    for record in records:
        if args.system_prompt and args.knowledge is None:
            record["prompt"] = [{"role": "system", "content": args.system_prompt}, *record["prompt"]]
    return encode_prompts(
        tokenizer,
        records,
        TeacherPrompt(args.system_prompt) if args.knowledge is not None else None,
        chat_template_kwargs=args.chat_template_kwargs,
        allow_special_tokens=args.allow_special_tokens,
    )


def main(args: argparse.Namespace) -> int:
    """Print the answer to each question.

    Raises:
        ValueError: an empty question or knowledge, or one that cannot be asked.
    """
    import sys

    if args.max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens must be at least 1, got {args.max_new_tokens}")
    if args.knowledge is not None and not args.knowledge.strip():
        raise ValueError("--knowledge is empty")
    check_models({"MODEL": args.model}, args.device)
    from transformers import TextStreamer

    from ..evaluation import generate_answers
    from ..lab import resolve_model
    from ..models.loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(resolve_model(args.model), chat=False)
    asked = prompts(args, tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        print(f"{args.model} has no chat template: questions are continued as plain text", file=sys.stderr)
    warn_of_thinking([(args.model, tokenizer, args.chat_template_kwargs)])
    model, _ = load_model(args.model, args.dtype, args.device, chat=False)
    for number, (question, ids) in enumerate(zip(args.question, asked)):
        if len(asked) > 1:
            print(("\n" if number else "") + f"> {question}", flush=True)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        options: dict[str, Any] = {"max_new_tokens": args.max_new_tokens, "streamer": streamer}
        ((_, finished),) = generate_answers(model, tokenizer, [ids], **options)
        if not finished:
            print("the answer was cut: --max_new_tokens, or the model's last position", file=sys.stderr)
    return 0
