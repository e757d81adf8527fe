"""`lupi evaluate --perplexity`: perplexity on the answers to questions with contexts."""

import argparse
from typing import Any

from ..data.squad import QA_TEMPLATE, load_qa_records, tokenize_qa
from ..evaluation import perplexity


def report_perplexity(args: argparse.Namespace, model, tokenizer) -> dict[str, Any]:
    """Print a table, and return for every set of questions what `--output` holds of it.

    Returns:
        Set to `{"perplexity": {model, perplexity, nll (nats), num_tokens, records, dropped}}`.

    Raises:
        ValueError: questions that cannot be read.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("questions", "model", "perplexity", "tokens", "records", "dropped")
    report = {}
    for name in args.perplexity:
        records = load_qa_records(name, split=args.split, max_samples=args.max_samples)
        questions = tokenize_qa(records, tokenizer, seq_len=args.seq_len, template=args.qa_template or QA_TEMPLATE)
        result = perplexity(model, questions.dataset, batch_size=args.batch_size)
        counts = {"records": len(questions.dataset), "dropped": len(questions.dropped)}
        report[name] = {"perplexity": {"model": args.model, **result.metrics(), **counts}}
        cells = (f"{result.perplexity:.4g}", result.num_tokens, *counts.values())
        table.add_row(name, args.model, *map(str, cells))
    Console().print(table)
    return report
