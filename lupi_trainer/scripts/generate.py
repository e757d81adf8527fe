"""The target's own text, drafted by a smaller model: prompts from a file, completions to a file or the screen."""

import argparse
import json
import sys
import time
from collections.abc import Callable

from ..data import LAB_PREFIX, describe, load_lab_records, normalize_record, read_records
from ..lab import resolve_model
from ..modeling import MTPHeads
from ..prompts import TeacherPrompt, encode
from ..speculative import HeadsDraft, PromptLookup, SpeculativeStats, speculative_generate
from .evaluate import load_model


LOOKUP = "prompt-lookup"
HEADS = "mtp-heads"


def check_same_tokenizer(target, draft) -> None:
    """Refuse a draft whose token ids mean other tokens; vocabularies that differ in padding alone pass.

    Raises:
        ValueError: the vocabularies differ; the message names a token.
    """
    ours, theirs = target.get_vocab(), draft.get_vocab()
    if ours == theirs:
        return
    different = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda item: (item[1], item[0]))
    token, number = different[0]
    raise ValueError(
        f"the tokenizers of target and draft differ, in {len(different)} entries: token {token!r} is "
        f"{ours.get(token, 'unknown')} to the target and {theirs.get(token, 'unknown')} to the draft (first at id "
        f"{number}); a draft must have the target's own tokens"
    )


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
                f"{describe(record, number)}: {len(record['prompt'])} messages, but the target has no chat "
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
        done: called once for every row that has ended.
    """

    def __init__(self, tokenizer, rows: int, max_new_tokens: int, eos: set[int], stop: list[str],
                 show: Callable[[str], None] | None = None, done: Callable[[], None] = lambda: None):  # fmt: skip
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
        text = self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
        places = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        self.texts[row] = text[: min(places)] if places else text
        if places or ended or len(ids) >= self.limit:
            self.reasons[row] = "stop" if places else "eos" if ended else "length"
            self.done()
        if self.show is not None and row == 0:
            self._show(self.reasons[row] is not None)
        return bool(places)

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
        f"{stats.acceptance_rate:.0%} of {stats.drafted} drafted tokens stand, {stats.rounds} rounds, "
        f"{stats.committed / seconds:.0f} tokens a second\n"
        f"accepted a round: {lengths}"
    )


def main(args: argparse.Namespace) -> int:
    """Complete every prompt and print what the drafts were worth."""
    from rich.console import Console
    from rich.progress import Progress

    records = load_prompts(args.prompts)
    target, tokenizer = load_model(args.target, args.dtype, args.device, chat=False)
    if args.draft == LOOKUP:
        draft = PromptLookup()
    elif args.draft == HEADS:
        heads = MTPHeads.from_pretrained(resolve_model(args.target))
        heads.check(target)
        draft = HeadsDraft(target, heads.to(target.device, target.get_output_embeddings().weight.dtype).eval())
        args.num_draft_tokens = min(args.num_draft_tokens, heads.horizon - 1)  # they look no further
    else:
        draft, draft_tokenizer = load_model(args.draft, args.dtype, args.device, chat=False)
        check_same_tokenizer(tokenizer, draft_tokenizer)
    written = TeacherPrompt(args.system_prompt) if args.with_knowledge else None
    prompt_ids = encode_prompts(tokenizer, records, written)
    eos = target.generation_config.eos_token_id
    eos = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    if not getattr(tokenizer, "chat_template", None):
        errors.print(f"{args.target} has no chat template: prompts are continued as plain text", markup=False)
    streaming = len(records) == 1 and args.output is None
    with Progress(console=errors, disable=streaming, transient=True) as progress:
        task = progress.add_task("completions", total=len(records))
        completions = Completions(
            tokenizer, len(records), args.max_new_tokens, eos, args.stop,
            show=(lambda text: print(text, end="", flush=True)) if streaming else None,
            done=lambda: progress.advance(task),
        )  # fmt: skip
        started = time.perf_counter()
        output = speculative_generate(
            target, draft, prompt_ids, max_new_tokens=args.max_new_tokens,
            num_draft_tokens=args.num_draft_tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
            repetition_penalty=args.repetition_penalty, eos_token_id=sorted(eos), seed=args.seed,
            max_slots=args.batch_size, verification=args.verification, draft_length=args.draft_length,
            compile=args.compile, on_tokens=completions,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    if streaming:
        print()
    else:
        lines = []
        for record, text, ids, reason in zip(records, completions.texts, output.completion_ids, completions.reasons):
            named = {"id": record["id"]} if "id" in record else {}
            row = {**named, "prompt": record["prompt"], "completion": text, "tokens": len(ids), "ended_by": reason}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        if args.output is None:
            sys.stdout.writelines(lines)
        else:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text("".join(lines), encoding="utf-8")
    errors.print(closing_lines(output.stats, len(records), seconds), markup=False)
    return 0
