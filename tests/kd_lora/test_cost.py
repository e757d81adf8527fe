"""What the chunked loss holds, beside the dense one; `python -m tests.benchmarks.kd_loss` says how long it takes."""

import pytest
import torch

from tests.benchmarks.kd_loss import make, peak_bytes


@pytest.mark.slow
def test_memory_at_1024_tokens_and_a_vocabulary_of_32k():
    dense, chunked = make(hidden_size=16)
    torch.testing.assert_close(chunked(), dense(), rtol=1e-5, atol=1e-5)
    wide, narrow = peak_bytes(dense), peak_bytes(chunked)
    assert wide > 3 * 4 * 1024 * 32_000  # it does hold several [S, V]
    assert narrow < 0.5 * wide


def test_no_logits_of_all_tokens_are_built():
    _, chunked = make(hidden_size=16, length=1024, vocab_size=32_000)
    assert peak_bytes(chunked) < 4 * 1024 * 32_000
