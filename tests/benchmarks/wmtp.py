"""`python -m tests.benchmarks.wmtp heads|drafting`: what weights do to the heads, and what the heads do for speed.

`heads`: the lab's student is trained on answers of which four in ten are wrong, by each algorithm and its controls,
and judged by the right ones. `drafting`: heads trained on a frozen student draft for it, beside plain `generate`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

from lupi_trainer.data.prompts import encode
from lupi_trainer.data.records import load_sft_data
from lupi_trainer.lab import resolve_model
from lupi_trainer.speculative import HeadsDraft, speculative_generate
from lupi_trainer.wmtp.drafting import acceptance
from tests.wmtp.training import make_wmtp_trainer


QUESTIONS = 30  # about each island of `lab:common`, one island after another
RHO1 = {"config_rho1_score": "signed", "config_rho1_over": "token", "config_rho1_select": "top"}
ARMS = {
    "mtp-baseline": ("mtp-baseline", {}),
    "critic-wmtp": ("critic-wmtp", {}),
    "critic-wmtp, shuffled": ("critic-wmtp", {"config_head_weighting": "shuffled"}),
    "rho1-wmtp": ("rho1-wmtp", {}),
    "rho1-wmtp, shuffled": ("rho1-wmtp", {"config_head_weighting": "shuffled"}),
    "rho1-wmtp, signed": ("rho1-wmtp", {"config_rho1_score": "signed"}),
    "rho1-wmtp, signed, shuffled": ("rho1-wmtp", {"config_rho1_score": "signed", "config_head_weighting": "shuffled"}),
    "rho1-wmtp, signed, top 60% of tokens": ("rho1-wmtp", RHO1),
    "rho1-wmtp, signed, top 60%, shuffled": ("rho1-wmtp", {**RHO1, "config_head_weighting": "shuffled"}),
}


def compare_heads(seeds: int, steps: int) -> None:
    """A row an arm: the loss and accuracy of every head on the right answers, mean over seeds (and their range)."""
    torch.set_num_threads(1)
    train, right = load_sft_data("lab:common-errors"), load_sft_data("lab:common").select(range(0, 720, 3))
    columns = [f"{figure} {k}" for figure in ("loss", "top-1") for k in range(1, 5)]
    print("| " + " | ".join(["arm", *columns]) + " |")
    print("|" + "---|" * 9)
    for arm, (algorithm, options) in ARMS.items():
        runs = []
        for seed in range(1, seeds + 1):
            with tempfile.TemporaryDirectory() as folder:
                trainer, _ = make_wmtp_trainer(
                    Path(folder),
                    algorithm,
                    train_dataset=train,
                    eval_dataset=right,
                    config_seed=seed,
                    config_max_steps=steps,
                    config_per_device_train_batch_size=16,
                    config_learning_rate=2e-3,
                    config_per_device_eval_batch_size=64,
                    config_lr_scheduler_type="linear",
                    config_logging_steps=1000,
                    config_critic_steps=100,
                    **options,
                )
                trainer.train()
                runs.append(trainer.evaluate())
        cells = []
        for name, form in (("loss", "{:.3f}"), ("top1", "{:.1%}")):
            for k in range(1, 5):
                values = [run[f"eval_{name}/head_{k}"] for run in runs]
                low, high = form.format(min(values)), form.format(max(values))
                cells.append(f"{form.format(statistics.mean(values))} ({low} to {high})")
        print(f"| {arm} | " + " | ".join(cells) + " |", flush=True)


def split_islands(data, count: int):
    """(questions about the first `count` islands of `lab:common`, those about the others)."""
    return data.select(range(count * QUESTIONS)), data.select(range(count * QUESTIONS, len(data)))


def compare_speed(steps: int, repeats: int, threads: int) -> None:
    """Heads of each type: acceptance, and tokens a second over plain `generate`, same texts.

    The heads learn from 18 of the 24 common islands and draft answers about the other six, which the student knows.
    """
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("lab:student"))
    data, held_out = split_islands(load_sft_data("lab:common"), 18)
    asked = [held_out[island + n]["prompt"] for n in (24, 25, 0, 12) for island in range(0, len(held_out), QUESTIONS)]
    prompts = encode(tokenizer, asked)  # half of them answered at length, half with one fact
    for head_type in ("linear", "residual", "transformer"):
        with tempfile.TemporaryDirectory() as folder:
            trainer, _ = make_wmtp_trainer(
                Path(folder),
                train_dataset=data,
                config_freeze_trunk=True,
                config_head_type=head_type,
                config_max_steps=steps,
                config_per_device_train_batch_size=24,
                config_learning_rate=3e-3,
                config_lr_scheduler_type="linear",
                config_logging_steps=1000,
            )
            trainer.train()
        model = trainer.model.eval()
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        for rows in (1, len(prompts)):
            measure(model, tokenizer, prompts, rows, repeats, head_type)


@torch.no_grad()
def measure(model, tokenizer, prompts, rows: int, repeats: int, name: str) -> None:
    """Both ways in turn, `rows` texts at a time; the median of the turns."""
    eos, chosen = tokenizer.eos_token_id, prompts if rows > 1 else prompts[::3]
    batches = [chosen[i : i + rows] for i in range(0, len(chosen), rows)]
    pad = [tokenizer.pad({"input_ids": batch}, padding_side="left", return_tensors="pt") for batch in batches]

    def ours():
        outputs = [
            speculative_generate(
                model,
                HeadsDraft(model, model.mtp_heads),
                batch,
                max_new_tokens=56,
                num_draft_tokens=3,
                eos_token_id=eos,
            )
            for batch in batches
        ]
        return [ids for output in outputs for ids in output.completion_ids], outputs

    def plain():
        texts = []
        for inputs in pad:
            ids = model.generate(**inputs, max_new_tokens=56, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            for row in ids[:, inputs["input_ids"].size(1) :].tolist():
                texts.append(row[: row.index(eos) + 1] if eos in row else row)
        return texts, None

    seconds = {ours: [], plain: []}
    for turn in range(repeats + 1):  # the first warms up
        texts = {}
        for way in seconds:
            started = time.perf_counter()
            texts[way], outputs = way()
            if turn:
                seconds[way].append(time.perf_counter() - started)
            if way is ours:
                stats = outputs
        assert texts[ours] == texts[plain], "another text than the model's own"
    tokens, blocks = (sum(getattr(o.stats, n) for o in stats) for n in ("committed", "blocks"))
    rates = acceptance(stats[0].stats, 4)
    ratio = statistics.median(p / o for o, p in zip(seconds[ours], seconds[plain]))
    print(
        f"{name} heads, {rows} row(s): acceptance length {tokens / blocks:.2f}, "
        + ", ".join(f"{key} {value:.2f}" for key, value in rates.items() if key != "accept_length")
        + f"; {ratio:.2f}x the tokens a second of generate (median of {repeats} turns), equal texts",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("heads", "drafting"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.what == "heads":
        compare_heads(args.seeds, args.steps or 150)
    else:
        compare_speed(args.steps or 250, args.repeats, args.threads)


if __name__ == "__main__":
    main()
