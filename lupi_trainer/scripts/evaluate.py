"""Closed-book marks of a student, beside the open-book ceiling of its teacher."""

import argparse
import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file, find_adapter_config_file

from ..data import load_probes, load_training_data
from ..evaluation import closed_book
from ..lab import resolve_model
from ..loading import NO_CODE, SAFE_WEIGHTS
from ..prompts import TeacherPrompt, check_tokenizer, load_few_shot_examples
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
    """Print a table of marks, and of perplexities; with `--output`, write them with every answer.

    Raises:
        ValueError: nothing is asked for.
    """
    from rich.console import Console
    from rich.table import Table

    if not args.probes and not args.perplexity:
        raise ValueError("nothing to ask: --probes or --perplexity is needed")
    probe_sets = {name: load_probes(name) for name in args.probes}
    if args.records:
        rows = load_training_data(args.records)
        knowledge = dict(zip(rows["id"], rows["privileged_context"])) if "id" in rows.column_names else {}
        for probes in probe_sets.values():
            for probe in probes:
                probe.setdefault("knowledge", knowledge.get(probe["record_id"]))
    table = Table("probes", "model", "strict", "lenient", "questions")
    report: dict[str, dict] = {}
    if args.perplexity:
        report |= report_perplexity(args, *load_model(args.model, args.dtype, args.device, chat=False))
    askers = [("closed-book", args.model, None)] if args.probes else []
    if args.teacher and args.probes:
        examples = load_few_shot_examples(args.few_shot_examples)
        askers.append(("open-book", args.teacher, TeacherPrompt(args.teacher_system_prompt, examples)))
    for book, model_name, teacher_prompt in askers:
        model, tokenizer = load_model(model_name, args.dtype, args.device)
        for name, probes in probe_sets.items():
            result = closed_book(
                model,
                tokenizer,
                probes,
                teacher_prompt=teacher_prompt,
                max_new_tokens=args.max_new_tokens,
                batch_size=args.batch_size,
            )
            table.add_row(
                name, f"{model_name} ({book})", f"{result.strict:.1%}", f"{result.lenient:.1%}", str(result.num_probes)
            )
            report.setdefault(name, {})[book] = {"model": model_name, **result.metrics(), "answers": result.answers}
    if args.probes:
        Console().print(table)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    return 0
