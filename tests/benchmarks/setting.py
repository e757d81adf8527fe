"""What is measured: two Qwen3-shaped models of random weights, their prompts, and a teacher of scripted taste."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from lupi_trainer.speculative import Judged


@dataclass(frozen=True)
class Shape:
    """Sizes of one model."""

    layers: int
    width: int
    heads: int
    groups: int  # key/value heads
    inner: int


@dataclass(frozen=True)
class Setting:
    """Sizes of one measurement."""

    student: Shape
    teacher: Shape
    vocab: int = 8192
    rows: int = 8
    student_prompt: int = 32
    teacher_prompt: int = 400
    new_tokens: int = 128
    gamma: int = 5
    acceptance: float = 0.9
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def model(self, role: str):
        """Returns the student or the teacher, always the same one."""
        shape = getattr(self, role)
        torch.manual_seed(0 if role == "student" else 1)
        config = Qwen3Config(
            vocab_size=self.vocab,
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.groups,
            head_dim=shape.width // shape.heads if shape.width < 1024 else 128,
            max_position_embeddings=8192,
        )
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=self.dtype)
        return model.eval().to(self.device)

    def prompts(self, length: int, rows: int | None = None, seed: int = 0) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed + length)
        return torch.randint(3, self.vocab, (rows or self.rows, length), generator=generator).tolist()


CPU = Setting(student=Shape(4, 256, 4, 2, 768), teacher=Shape(12, 512, 8, 4, 1536))
CUDA = Setting(
    student=Shape(28, 1024, 16, 8, 3072),
    teacher=Shape(36, 4096, 32, 8, 12288),
    vocab=151_936,
    rows=32,
    gamma=8,
    device="cuda",
    dtype=torch.bfloat16,
)


@dataclass(frozen=True)
class Scripted:
    """Accepts a share of the tokens, by a hash of the token and its place: models that agree so often."""

    share: float

    state_size = 1  # tokens so far
    needs_student_logits = False

    def initial_state(self) -> list[float]:
        return [0.0]

    def next_state(self, state: torch.Tensor, accepted: bool) -> torch.Tensor:
        return state + 1

    def accept(self, judged: Judged) -> torch.Tensor:
        mixed = (judged.draft.double() * 12.9898 + judged.state[..., 0] * 78.233).sin() * 43758.5453
        return mixed - mixed.floor() < self.share
