"""Models and prompts for devices that are not there."""

from transformers import Qwen3Config


def qwen3(layers: int, hidden: int = 64, heads: int = 4, head_dim: int = 16, vocab: int = 512) -> Qwen3Config:
    """A small Qwen3, with two query heads for a K/V head."""
    return Qwen3Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=head_dim,
        max_position_embeddings=40960,
    )


# the student's and the teacher's: knowledge that all share, and a question of each
PROMPTS = [[5 + i] * (2 + i) for i in range(3)], [[4] * 40 + [5 + i] * (2 + i) for i in range(3)]
