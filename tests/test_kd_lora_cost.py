"""The chunked loss beside the dense one: what it holds, and how long it takes."""

import pytest
import torch

from .benchmarks.kd_loss import make, peak_bytes, seconds


@pytest.mark.slow
def test_memory_and_time_at_1024_tokens_and_a_vocabulary_of_32k():
    dense, chunked = make(hidden_size=16)
    torch.testing.assert_close(chunked(), dense(), rtol=1e-5, atol=1e-5)
    wide, narrow = peak_bytes(dense), peak_bytes(chunked)
    assert wide > 3 * 4 * 1024 * 32_000  # it does hold several [S, V]
    assert narrow < 0.5 * wide
    slow, quick = seconds((dense, chunked), turns=1)
    assert quick < 1.1 * slow


def test_no_logits_of_all_tokens_are_built():
    _, chunked = make(hidden_size=16, length=1024, vocab_size=32_000)
    assert peak_bytes(chunked) < 4 * 1024 * 32_000
