"""`lupi generate`: the target's own text, drafted by a smaller model; prompts from a file, completions to a file."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.wording import counted
from .flags import add_loading_arguments, add_prompt_arguments, check_models, refuse_renamed


if TYPE_CHECKING:
    from ..speculative import SpeculativeStats

HELP = "complete prompts as the target alone would, faster by what drafts them"
RENAMED = {"--draft_length": "--gamma_policy", "--verification": "--block_verification"}
LOOKUP = "prompt-lookup"
HEADS = "mtp-heads"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--target", required=True, help="the model whose text it is: a name, a path, or lab:NAME")
    add(
        "--draft",
        default=LOOKUP,
        help=f"what drafts it: a model with the same tokenizer, {LOOKUP} (default: what the text says already, "
        f"without any model), or {HEADS} (its own)",
    )
    add(
        "--prompts",
        required=True,
        nargs="+",
        action="extend",
        help="text, or records with `prompt`: JSON, JSONL, lab:NAME",
    )
    add("--output", type=Path, help="write completions to this JSONL file (default: to the screen)")
    add("--max_new_tokens", type=int, default=256)
    add("--num_draft_tokens", type=int, default=5, help="tokens that the draft proposes a round")
    add(
        "--gamma_policy",
        choices=("fixed", "goodput"),
        default="fixed",
        help="goodput: the length with the highest expected goodput, --num_draft_tokens at most",
    )
    add("--compile", action="store_true", help="compile both models' forwards")
    add(
        "--pack_weights",
        choices=("auto", "true", "false"),
        default="auto",
        help="lay float32 weights out for the CPU meanwhile; auto: where that can be done; true: or refuse to run",
    )
    add("--temperature", type=float, default=0.0)
    add("--top_k", type=int, default=0, help="0 keeps every token")
    add("--top_p", type=float, default=1.0)
    add("--repetition_penalty", type=float, default=1.0)
    add(
        "--block_verification",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="verify drafted tokens jointly, not one by one; above temperature 0",
    )
    add("--stop", nargs="+", action="extend", default=[], help="strings that end a completion")
    add("--with_knowledge", action="store_true", help="put each record's knowledge into its prompt")
    add("--system_prompt", help="persona, with --with_knowledge")
    add_prompt_arguments(parser)
    add("--seed", type=int, default=0)
    add("--batch_size", type=int, default=16, help="rows that run at a time")
    add_loading_arguments(parser)
    refuse_renamed(parser, RENAMED)


def draft_model(args: argparse.Namespace) -> str | None:
    """The name of the model that drafts, if one does."""
    return None if args.draft in (LOOKUP, HEADS) else args.draft


def look_ahead(args: argparse.Namespace, records: list[dict]) -> None:
    """Checks, before the weights of any model are read, what settings, tokenizers and configurations tell.

    Raises:
        ValueError: what cannot work, by name.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import find_adapter_config_file

    from ..data.completions import stop_ids
    from ..lab import resolve_model
    from ..models.loading import NO_CODE
    from ..models.vocabulary import check_same_tokenizer
    from ..speculative.loops.checks import at_least_one, check_prompts_by_config, check_sampling

    at_least_one(
        max_new_tokens=args.max_new_tokens, num_draft_tokens=args.num_draft_tokens, batch_size=args.batch_size
    )
    check_sampling(args.temperature, args.top_k, args.top_p, args.repetition_penalty)
    if "" in args.stop:
        raise ValueError("--stop holds an empty string, which would end every completion before it begins")
    draft = draft_model(args)
    models = {"target": args.target} | ({} if draft is None else {"draft": draft})
    paths = {role: resolve_model(name) for role, name in models.items()}
    tokenizers = {role: AutoTokenizer.from_pretrained(path, **NO_CODE) for role, path in paths.items()}
    if "draft" in tokenizers:
        check_same_tokenizer(tokenizers["target"], tokenizers["draft"])
    stop_ids(tokenizers["target"], args.stop)
    prompt_ids = encode(args, tokenizers["target"], records)
    for role, path in paths.items():
        if find_adapter_config_file(path) is None:  # an adapter's base is known once it is loaded
            check_prompts_by_config(role, AutoConfig.from_pretrained(path, **NO_CODE), prompt_ids, args.max_new_tokens)


def encode(args: argparse.Namespace, tokenizer, records: list[dict]) -> list[list[int]]:
    """Token ids of every prompt, each record's knowledge in it if that is asked for."""
    from ..data.completions import encode_prompts
    from ..data.prompts import TeacherPrompt

    return encode_prompts(
        tokenizer,
        records,
        TeacherPrompt(args.system_prompt) if args.with_knowledge else None,
        chat_template_kwargs=args.chat_template_kwargs,
        allow_special_tokens=args.allow_special_tokens,
    )


def load_draft(args: argparse.Namespace, target):
    """(what drafts, how many tokens a round it may draft at most)."""
    from ..lab import resolve_model
    from ..models.loading import load_model
    from ..models.mtp_heads import MTPHeads
    from ..speculative import HeadsDraft, PromptLookup

    if args.draft == LOOKUP:
        return PromptLookup(), args.num_draft_tokens
    if args.draft != HEADS:
        draft, _ = load_model(args.draft, args.dtype, args.device, chat=False)
        return draft, args.num_draft_tokens
    heads = MTPHeads.from_pretrained(resolve_model(args.target))
    heads.check(target)
    draft = HeadsDraft(target, heads.to(target.device, target.get_output_embeddings().weight.dtype).eval())
    return draft, min(args.num_draft_tokens, heads.horizon - 1)  # they look no further


def closing_lines(stats: "SpeculativeStats", rows: int, seconds: float) -> str:
    """What the drafts were worth."""
    lengths = ", ".join(f"{i}: {n / stats.blocks:.0%}" for i, n in enumerate(stats.accepted_lengths))
    return (
        f"{counted(rows, 'completion')}, {counted(stats.committed, 'token')}: "
        f"acceptance length {stats.acceptance_length:.2f}, "
        f"{stats.acceptance_rate:.0%} of {stats.drafted} drafted tokens accepted, {counted(stats.rounds, 'round')}, "
        f"{stats.committed / seconds:.0f} tokens a second\n"
        f"accepted a round: {lengths}"
    )


def main(args: argparse.Namespace) -> int:
    """Complete every prompt and print what the drafts were worth."""
    check_models({"--target": args.target, "--draft": draft_model(args)}, args.device)
    from rich.console import Console
    from rich.progress import Progress

    from ..data.completions import Completions, Lines, load_prompts, stop_ids
    from ..models.generation import eos_token_ids
    from ..models.loading import load_model
    from ..speculative import speculative_generate
    from ..speculative.runners.packed_weights import pack_setting

    records = load_prompts(*args.prompts)
    look_ahead(args, records)
    target, tokenizer = load_model(args.target, args.dtype, args.device, chat=False)
    draft, num_draft_tokens = load_draft(args, target)
    prompt_ids = encode(args, tokenizer, records)
    eos = {*eos_token_ids(target, tokenizer), *stop_ids(tokenizer, args.stop)}
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    if not getattr(tokenizer, "chat_template", None):
        errors.print(f"{args.target} has no chat template: prompts are continued as plain text", markup=False)
    streaming = len(records) == 1 and args.output is None
    with Progress(console=errors, disable=streaming, transient=True) as progress, Lines(args.output) as lines:
        task = progress.add_task("completions", total=len(records))

        def done(row: int) -> None:
            progress.advance(task)
            if not streaming:
                named = {key: records[row][key] for key in ("id", "prompt") if key in records[row]}
                text, reason = completions.texts[row], completions.reasons[row]
                lines.add(row, {**named, "completion": text, "tokens": completions.count(row), "ended_by": reason})

        completions = Completions(
            tokenizer,
            len(records),
            args.max_new_tokens,
            eos,
            args.stop,
            show=(lambda text: print(text, end="", flush=True)) if streaming else None,
            done=done,
        )
        started = time.perf_counter()
        output = speculative_generate(
            target,
            draft,
            prompt_ids,
            max_new_tokens=args.max_new_tokens,
            num_draft_tokens=num_draft_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            repetition_penalty=args.repetition_penalty,
            eos_token_id=sorted(eos),
            seed=args.seed,
            max_slots=args.batch_size,
            block_verification=args.block_verification,
            gamma_policy=args.gamma_policy,
            compile=args.compile,
            pack_weights=pack_setting(args.pack_weights),
            on_tokens=completions,
        )
        seconds = time.perf_counter() - started
    if streaming:
        print()
    errors.print(closing_lines(output.stats, len(records), seconds), markup=False)
    return 0
