"""`python -m tests.benchmarks.lossless`: lossless decoding against `generate` and assisted generation, same pair.

The draft is the target's first layer with the target's head; the target's later layers are faint, by `--faint`, which
sets how often the two agree. transformers cannot draft for more than one row at a time: at 8 rows its place is empty.
"""

import argparse
import copy
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from lupi_trainer.speculative import speculative_generate


def pair(layers: int, width: int, faint: float):
    """(target, draft): random Qwen3 models in float32, the draft `layers` times cheaper but for its head."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=2048, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 128, head_dim=64, tie_word_embeddings=False,
    )  # fmt: skip
    target = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        target.get_input_embeddings().weight.mul_(20)
        for layer in target.model.layers[1:]:
            layer.self_attn.o_proj.weight.mul_(faint)
            layer.mlp.down_proj.weight.mul_(faint)
    draft = copy.deepcopy(target)
    draft.model.layers = draft.model.layers[:1]
    draft.config.num_hidden_layers, draft.config.layer_types = 1, draft.config.layer_types[:1]
    for model in (target, draft):
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
    return target, draft


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--faint", type=float, default=0.07)
    parser.add_argument("--num_draft_tokens", type=int, default=4)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    target, draft = pair(arguments.layers, arguments.width, arguments.faint)
    draft.generation_config.num_assistant_tokens = arguments.num_draft_tokens
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    for rows in (1, 8):
        ids = torch.randint(3, 2048, (rows, 32), generator=torch.Generator().manual_seed(1))
        options = {"max_new_tokens": arguments.new_tokens, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        outputs = {}
        contenders = {
            "ours": lambda ids=ids: speculative_generate(
                target, draft, ids.tolist(), max_new_tokens=arguments.new_tokens,
                num_draft_tokens=arguments.num_draft_tokens,
            ),
            "generate": lambda ids=ids, options=options: target.generate(ids, **options),
        }  # fmt: skip
        if rows == 1:
            contenders["assisted"] = lambda ids=ids, options=options: target.generate(
                ids, **options, assistant_model=draft
            )
        seconds = {name: [] for name in contenders}
        for turn in range(arguments.repeats + 1):  # the first warms up
            for name, run in contenders.items():
                started = time.perf_counter()
                outputs[name] = run()
                if turn:
                    seconds[name].append(time.perf_counter() - started)
        ours = outputs.pop("ours")
        for name, text in outputs.items():
            assert text[:, ids.shape[1] :].tolist() == ours.completion_ids, f"{name} writes another text"
        median = {name: statistics.median(values) for name, values in seconds.items()}
        print(f"{rows} rows: {ours.stats.acceptance_rate:.0%} of the drafts stand, {median['ours']:.2f} s", flush=True)
        for name, value in median.items():
            if name != "ours":
                print(f"    {value / median['ours']:.2f}x the tokens a second of {name} ({value:.2f} s)", flush=True)


if __name__ == "__main__":
    main()
