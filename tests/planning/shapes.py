"""Models of true width and few layers."""

from transformers import Qwen3Config


def qwen3(layers: int, hidden: int, inner: int, heads: int, vocabulary: int = 151936) -> Qwen3Config:
    """As Qwen3's own, but for its depth."""
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=hidden < 4096,
        max_position_embeddings=40960,
        dtype="bfloat16",
    )


def qwen3_32b(layers: int = 64) -> Qwen3Config:
    return qwen3(layers, 5120, 25600, 64)


def qwen3_4b(layers: int = 36) -> Qwen3Config:
    return qwen3(layers, 2560, 9728, 32)


def qwen3_06b(layers: int = 28) -> Qwen3Config:
    return qwen3(layers, 1024, 3072, 16)
