"""Tiny random models of the families whose caches differ: RoPE, query norms, sliding windows, absolute positions."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)


VOCAB = 61
FAMILIES = ("llama", "qwen3", "gemma3", "gpt2")
MORE_FAMILIES = ("qwen2", "mistral", "phi3")


def _config(family: str, layers: int, hidden: int, vocab: int, positions: int, kv_heads: int = 2):
    if family == "gpt2":
        return GPT2Config(
            vocab_size=vocab,
            n_embd=hidden,
            n_layer=layers,
            n_head=4,
            n_positions=positions,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
        )
    common = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": positions,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    if family == "llama":
        return LlamaConfig(**common)
    if family == "qwen2":
        return Qwen2Config(**common)
    if family == "phi3":
        return Phi3Config(**common)
    if family == "mistral":
        return MistralConfig(**common, sliding_window=8)
    if family == "qwen3":
        return Qwen3Config(**common, head_dim=16)
    kinds = ["sliding_attention", "full_attention"] * layers
    return Gemma3TextConfig(**common, head_dim=16, sliding_window=8, layer_types=kinds[:layers])


def toy(
    family="llama",
    *,
    seed=0,
    layers=2,
    hidden=32,
    vocab=VOCAB,
    positions=512,
    attention="sdpa",
    sharpness=20.0,
    kv_heads=2,
):
    """A random float32 model whose next-token distributions are neither flat nor certain."""
    torch.manual_seed(seed)
    config = _config(family, layers, hidden, vocab, positions, kv_heads)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)  # so that the context matters
        model.get_output_embeddings().weight.mul_(sharpness / 4)
    return model


def perturbed(model, amount: float, seed: int = 1):
    """A copy with noise on its matrices: a student that agrees with its teacher more often than not."""
    generator = torch.Generator().manual_seed(seed)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.ndim >= 2:
                parameter.add_(amount * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return copied


def prompts(rows: int, shortest: int, longest: int, seed: int = 0, vocab: int = VOCAB) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (rows,), generator=generator).tolist()
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]
