"""The target's own text, drafted by a smaller model: prompts from a file, completions to a file or the screen."""

import argparse
import json
import time
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

from ..data.prompts import TeacherPrompt, encode
from ..data.records import LAB_PREFIX, load_lab_records, normalize_record, read_records, record_name
from ..lab import resolve_model
from ..models.generation import eos_token_ids
from ..models.loading import NO_CODE
from ..models.mtp_heads import MTPHeads
from ..models.vocabulary import check_same_tokenizer
from ..speculative import HeadsDraft, PromptLookup, SpeculativeStats, speculative_generate
from ..speculative.loops.checks import at_least_one, check_prompts_by_config, check_sampling, refuse_former
from ..speculative.runners.packed_weights import pack_setting
from .evaluate import load_model


LOOKUP = "prompt-lookup"
HEADS = "mtp-heads"


def stop_ids(tokenizer, stop: list[str]) -> set[int]:
    """Ids of the stop strings that are special tokens: the text is written without these, and ends as at an eos.

    Raises:
        ValueError: a special token is a part of a longer stop string, which no text can hold.
    """
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for text in stop:
        for token in special:
            if token in text and text not in special:
                raise ValueError(
                    f"--stop {text!r} holds the special token {token!r}, which is left out of the text: give the "
                    "token alone, or the rest alone"
                )
    return {special[text] for text in stop if text in special}


def look_ahead(args: argparse.Namespace, records: list[dict]) -> None:
    """Checks, before the weights of any model are read, what settings, tokenizers and configurations tell.

    Raises:
        ValueError: what cannot work, by name.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import find_adapter_config_file

    refuse_former(verification=args.verification, draft_length=args.draft_length)
    at_least_one(
        max_new_tokens=args.max_new_tokens, num_draft_tokens=args.num_draft_tokens, batch_size=args.batch_size
    )
    check_sampling(args.temperature, args.top_k, args.top_p, args.repetition_penalty)
    if "" in args.stop:
        raise ValueError("--stop holds an empty string, which would end every completion before it begins")
    models = {"target": args.target} | ({} if args.draft in (LOOKUP, HEADS) else {"draft": args.draft})
    paths = {role: resolve_model(name) for role, name in models.items()}
    tokenizers = {role: AutoTokenizer.from_pretrained(path, **NO_CODE) for role, path in paths.items()}
    if "draft" in tokenizers:
        check_same_tokenizer(tokenizers["target"], tokenizers["draft"])
    stop_ids(tokenizers["target"], args.stop)
    prompt_ids = encode_prompts(tokenizers["target"], records, _written(args))
    for role, path in paths.items():
        if find_adapter_config_file(path) is None:  # an adapter's base is known once it is loaded
            check_prompts_by_config(role, AutoConfig.from_pretrained(path, **NO_CODE), prompt_ids, args.max_new_tokens)


def _written(args: argparse.Namespace) -> TeacherPrompt | None:
    return TeacherPrompt(args.system_prompt) if args.with_knowledge else None


def load_prompts(source: str) -> list[dict]:
    """Records with `prompt` (text or messages; `query` is the same) from a JSON or JSONL file, or `lab:NAME`.

    Raises:
        ValueError: no record, or one without a prompt (named).
    """
    records = load_lab_records(source) if source.startswith(LAB_PREFIX) else read_records(source)
    if not records:
        raise ValueError(f"{source}: no prompt in it")
    for record in records:
        if "knowledge" not in record:
            record.setdefault("privileged_context", None)
    return [normalize_record(record, number) for number, record in enumerate(records)]


def encode_prompts(tokenizer, records: list[dict], written: TeacherPrompt | None) -> list[list[int]]:
    """Token ids of every prompt: by the chat template, or, where the tokenizer has none, of the plain text.

    Args:
        records: of `load_prompts`.
        written: puts each record's knowledge into its prompt, if given.

    Raises:
        ValueError: without a chat template, a prompt of several messages (named), or knowledge to put into one.
    """
    if getattr(tokenizer, "chat_template", None):
        conversations = [
            written.messages(record["prompt"], record["privileged_context"]) if written else record["prompt"]
            for record in records
        ]
        return encode(tokenizer, conversations)
    if written:
        raise ValueError("the target's tokenizer has no chat template: knowledge has no place in a plain text")
    for number, record in enumerate(records):
        if len(record["prompt"]) > 1:
            raise ValueError(
                f"{record_name(record, number)}: {len(record['prompt'])} messages, but the target has no chat "
                "template to write them with: give plain text, which is continued as it is"
            )
    return [tokenizer(record["prompt"][0]["content"])["input_ids"] for record in records]


class Completions:
    """Text of every row while it is written; knows where a row ends.

    Args:
        tokenizer: the target's.
        rows: how many.
        max_new_tokens: the longest completion.
        eos: ids that end one.
        stop: strings that end one, and are not part of it.
        show: where the text of row 0 goes as it is written.
        done: called with a row's index when it has ended.
    """

    def __init__(self, tokenizer, rows: int, max_new_tokens: int, eos: set[int], stop: list[str],
                 show: Callable[[str], None] | None = None,
                 done: Callable[[int], None] = lambda row: None):  # fmt: skip
        self.tokenizer, self.limit, self.eos, self.stop = tokenizer, max_new_tokens, eos, stop
        self.show, self.done = show, done
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.texts = [""] * rows
        self.reasons: list[str | None] = [None] * rows
        self.shown = 0

    def __call__(self, row: int, tokens: list[int]) -> bool:
        ids = self.ids[row]
        ids += tokens
        ended = ids[-1] in self.eos
        text = self._decode(ids[:-1] if ended else ids)
        places = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        self.texts[row] = text[: min(places)] if places else text
        if places or ended or len(ids) >= self.limit:
            self.reasons[row] = "stop" if places else "eos" if ended else "length"
            self.done(row)
        if self.show is not None and row == 0:
            self._show(self.reasons[row] is not None)
        return bool(places)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def count(self, row: int) -> int:
        """Tokens of a row, its eos included; up to a stop string, as many as its text needs."""
        ids, text = self.ids[row], self.texts[row]
        if self.reasons[row] != "stop":
            return len(ids)
        return bisect_left(range(len(ids)), True, key=lambda n: self._decode(ids[:n]).startswith(text))

    def _show(self, ended: bool) -> None:
        """Shows what cannot change any more: no half character, and nothing that may begin a stop string."""
        text = self.texts[0]
        if not ended:
            text = text.rstrip("\ufffd")
            text = text[: len(text) - max(map(len, self.stop), default=1) + 1]
        self.show(text[self.shown :])
        self.shown = max(self.shown, len(text))


def closing_lines(stats: SpeculativeStats, rows: int, seconds: float) -> str:
    """What the drafts were worth."""
    lengths = ", ".join(f"{i}: {n / stats.blocks:.0%}" for i, n in enumerate(stats.accepted_lengths))
    return (
        f"{rows} completions, {stats.committed} tokens: acceptance length {stats.acceptance_length:.2f}, "
        f"{stats.acceptance_rate:.0%} of {stats.drafted} drafted tokens accepted, {stats.rounds} rounds, "
        f"{stats.committed / seconds:.0f} tokens a second\n"
        f"accepted a round: {lengths}"
    )


class Lines:
    """Rows of JSONL, written in the order of the prompts and whole, each as soon as it and those before it have ended.

    Args:
        output: the file; None: the screen.
    """

    def __init__(self, output: Path | None):
        self.ended: dict[int, dict] = {}
        self.next = 0
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
        # without a buffer: a line is one write, and is there when the process is killed
        self.file = None if output is None else open(output, "wb", buffering=0)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, number: int, row: dict) -> None:
        self.ended[number] = row
        while self.next in self.ended:
            line = json.dumps(self.ended.pop(self.next), ensure_ascii=False) + "\n"
            if self.file is None:
                print(line, end="", flush=True)
            else:
                self.file.write(line.encode())
            self.next += 1


def main(args: argparse.Namespace) -> int:
    """Complete every prompt and print what the drafts were worth."""
    from rich.console import Console
    from rich.progress import Progress

    records = load_prompts(args.prompts)
    look_ahead(args, records)
    target, tokenizer = load_model(args.target, args.dtype, args.device, chat=False)
    if args.draft == LOOKUP:
        draft = PromptLookup()
    elif args.draft == HEADS:
        heads = MTPHeads.from_pretrained(resolve_model(args.target))
        heads.check(target)
        draft = HeadsDraft(target, heads.to(target.device, target.get_output_embeddings().weight.dtype).eval())
        args.num_draft_tokens = min(args.num_draft_tokens, heads.horizon - 1)  # they look no further
    else:
        draft, _ = load_model(args.draft, args.dtype, args.device, chat=False)
    prompt_ids = encode_prompts(tokenizer, records, _written(args))
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
            tokenizer, len(records), args.max_new_tokens, eos, args.stop,
            show=(lambda text: print(text, end="", flush=True)) if streaming else None, done=done,
        )  # fmt: skip
        started = time.perf_counter()
        output = speculative_generate(
            target, draft, prompt_ids, max_new_tokens=args.max_new_tokens,
            num_draft_tokens=args.num_draft_tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
            repetition_penalty=args.repetition_penalty, eos_token_id=sorted(eos), seed=args.seed,
            max_slots=args.batch_size, block_verification=args.block_verification, gamma_policy=args.gamma_policy,
            compile=args.compile, pack_weights=pack_setting(args.pack_weights), on_tokens=completions,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    if streaming:
        print()
    errors.print(closing_lines(output.stats, len(records), seconds), markup=False)
    return 0
