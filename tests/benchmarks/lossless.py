"""Lossless decoding against `generate` and assisted generation, same pair.

The draft is the target's first layer with the target's head; the target's later layers are faint, by `faint`, which
sets how often the two agree: on four tokens in five. transformers cannot draft for more than one row at a time: at 8
rows its place is empty.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from lupi_trainer.speculative import speculative_generate
from tests.benchmarks.measure import row, take_turns
from tests.benchmarks.setting import Setting


@dataclass(frozen=True)
class Pair:
    """Sizes of the two models, and how far they agree."""

    layers: int = 13  # ten times the draft's weights, heads included
    width: int = 512
    faint: float = 0.13
    vocab: int = 2048

    def models(self, device: str, dtype: torch.dtype):
        """(target, draft): random Qwen3 models."""
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=self.vocab,
            hidden_size=self.width,
            intermediate_size=3 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // 64,
            num_key_value_heads=self.width // 128,
            head_dim=64,
            tie_word_embeddings=False,
        )
        target = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype).eval()
        with torch.no_grad():
            target.get_input_embeddings().weight.mul_(20)
            for layer in target.model.layers[1:]:
                layer.self_attn.o_proj.weight.mul_(self.faint)
                layer.mlp.down_proj.weight.mul_(self.faint)
        draft = copy.deepcopy(target)
        draft.model.layers = draft.model.layers[:1]
        draft.config.num_hidden_layers, draft.config.layer_types = 1, draft.config.layer_types[:1]
        for model in (target, draft):
            model.generation_config.eos_token_id = None
            model.generation_config.pad_token_id = 0
        return target.to(device), draft.to(device)


def _ours(target, draft, ids, texts, name, new_tokens, **options):
    def run():
        output = speculative_generate(target, draft, ids.tolist(), max_new_tokens=new_tokens, **options)
        texts[name] = output.completion_ids
        texts[f"{name}: stand"] = output.stats.acceptance_rate

    return run


def _theirs(target, draft, ids, texts, name, new_tokens, assistant=None, **settings):
    def run():
        if assistant is not None:
            for key, value in settings.items():
                setattr(assistant.generation_config, key, value)
        out = target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            **({} if assistant is None else {"assistant_model": assistant}),
        )
        texts[name] = out[:, ids.shape[1] :].tolist()

    return run


def weights(model) -> int:
    """Numbers that a token is multiplied with: all but the embedding."""
    return sum(parameter.numel() for parameter in model.parameters()) - model.get_input_embeddings().weight.numel()


@torch.no_grad()
def agreement(draft, ids: torch.Tensor, texts: list[list[int]]) -> float:
    """How often the draft's favorite is the next token of greedy texts: what it is accepted at, token by token."""
    text = torch.tensor(texts, device=ids.device)
    guesses = draft(torch.cat([ids, text], 1)).logits[:, ids.shape[1] - 1 : -1].argmax(-1)
    return (guesses == text).float().mean().item()


ASSISTED = {
    f"assisted {count}": {"num_assistant_tokens": count, "assistant_confidence_threshold": threshold}
    for count, threshold in ((4, 0.0), (8, 0.0), (20, 0.4))  # the last is transformers' own
}


def lossless(setting: Setting, repeats: int, new_tokens: int = 64) -> Iterator[dict]:
    """Tokens a second, greedy: one row beside assisted generation, eight rows beside `generate`."""
    target, draft = Pair().models(setting.device, setting.dtype)
    cheaper = weights(target) / weights(draft)
    assert 9.5 < cheaper < 10.5, f"the draft is {cheaper:.1f} times cheaper, not ten"
    for rows in (1, 8):
        generator = torch.Generator().manual_seed(1)
        ids, texts = torch.randint(3, Pair.vocab, (rows, 32), generator=generator).to(setting.device), {}
        common = (target, draft, ids, texts)
        contenders = {
            "four": _ours(*common, "four", new_tokens, num_draft_tokens=4),
            "goodput": _ours(*common, "goodput", new_tokens, num_draft_tokens=20, gamma_policy="goodput"),
            "compiled": _ours(*common, "compiled", new_tokens, num_draft_tokens=8, compile=True),
            "generate": _theirs(*common, "generate", new_tokens),
        }
        if rows == 1:
            for name, settings in ASSISTED.items():
                contenders[name] = _theirs(*common, name, new_tokens, draft, **settings)
        seconds = take_turns(contenders, repeats)
        if setting.device == "cpu":  # in bfloat16 they may part at a tie
            for name in contenders:
                assert texts[name] == texts["generate"], f"{name} writes another text"
        agreed = agreement(draft, ids, texts["generate"])
        assert abs(agreed - 0.8) < 0.05, f"{rows} rows: the draft is right in {agreed:.0%} of the places, not in 80%"
        best = min(("goodput", "compiled"), key=lambda name: sum(seconds[name]))
        what = f"{rows} row{'s' if rows > 1 else ''}, draft right in {agreed:.0%}: lossless over"
        if rows == 1:
            yield row(f"{what} assisted, both 4", seconds, "assisted 4", "four")
            quickest = min(ASSISTED, key=lambda name: sum(seconds[name]))
            yield row(f"{what} {quickest} ({best})", seconds, quickest, best, ">=", 1.2)
        else:  # transformers: "assisted generate is only supported for batch_size = 1"
            yield row(f"{what} generate, 4", seconds, "generate", "four")
            yield row(f"{what} generate ({best}); HF assists 1 row only", seconds, "generate", best, ">=", 1.15)
