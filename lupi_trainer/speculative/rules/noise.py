"""Gumbel noise that is addressed, not drawn in order.

Every number is a pure function of (seed, row id, position in the completion, writer, vocabulary index), so a
rollout does not depend on block lengths, batch layout or the order of calls. The hash is counter-based: a 64-bit key
for each (row, position), then two rounds of 32-bit multiply-xorshift over the vocabulary, all in integer tensor ops
that wrap in the same way on every device.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


STUDENT, TEACHER = 0, 1

_MASK64 = (1 << 64) - 1


def _signed(value: int, bits: int = 64) -> int:
    """The two's complement reading of an unsigned constant, as torch's signed integer tensors want it."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_AGAIN = 0xD1342543DE82EF95  # far from any small number, as are its multiples
_MIX_A, _MIX_B = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shift(x: torch.Tensor, n: int, bits: int) -> torch.Tensor:
    """Logical right shift of a signed tensor (torch's own shift copies the sign bit)."""
    return (x >> n).bitwise_and_((1 << (bits - n)) - 1)


def _mix64(x: torch.Tensor) -> torch.Tensor:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014) on an int64 tensor."""
    x = (x ^ _shift(x, 30, 64)) * _MIX_A
    x = (x ^ _shift(x, 27, 64)) * _MIX_B
    return x ^ _shift(x, 31, 64)


def addresses(row_ids: Iterable[int], times: dict[int, int] | None = None) -> list[int]:
    """Returns row ids, all different: one that has come before gets an address of its own at every further time.

    `times` holds how often ids came in earlier calls, beyond the first time; these are counted in it.
    """
    times, found = {} if times is None else times, []
    for row in (row_id & _MASK64 for row_id in row_ids):
        times[row] = times.get(row, -1) + 1
        found.append((row + times[row] * _AGAIN) & _MASK64)
    return found


def row_keys(seed: int, row_ids: Iterable[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Returns [B] int64 keys, one for each row id, of equal ones too; the only place where the seed enters."""
    base = _mix64(torch.tensor([_signed(seed & _MASK64)]) + _GOLDEN)
    rows = torch.tensor([_signed(row) for row in addresses(row_ids)])
    return _mix64(base + rows * _GOLDEN).to(device)


def gumbel(keys: torch.Tensor, positions: torch.Tensor, writer: int, vocab_size: int) -> torch.Tensor:
    """keys [B] int64, positions [B] int64 -> [B, vocab_size] float32 standard Gumbel noise.

    `writer` is `STUDENT` or `TEACHER`. Values lie in [-2.82, 22.88]: the uniform numbers below have 32 bits, finest
    near the end that decides which token wins, so neither ties nor the cut tail matter at any vocabulary size.
    """
    key = _mix64(keys + (2 * positions + (1 + writer)) * _GOLDEN)[:, None]
    first, second = key.to(torch.int32), _shift(key, 32, 64).to(torch.int32)  # narrowing keeps the low 32 bits
    x = torch.arange(vocab_size, dtype=torch.int32, device=keys.device) + first
    x = x.bitwise_xor_(_shift(x, 16, 32)).mul_(_signed(0x21F0AAAD, 32))
    x = x.bitwise_xor_(_shift(x, 15, 32)).add_(second)
    x = x.bitwise_xor_(_shift(x, 16, 32)).mul_(_signed(0x7FEB352D, 32))
    x = x.bitwise_xor_(_shift(x, 15, 32)).mul_(_signed(0x846CA68B, 32))
    x = x.bitwise_xor_(_shift(x, 16, 32))
    # u = (unsigned x + 1/2) / 2^32 is exact near 0, the end that wins; near 1 float32 rounds up to 1, hence the clamp
    u = x.to(torch.float32).add_(x < 0, alpha=2.0**32).add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    return u.neg_().log1p_().neg_().log_().neg_()  # -log(-log(1 - u))


def sample(logits: torch.Tensor, temperature: float, keys: torch.Tensor, positions: torch.Tensor, writer: int):
    """logits [B, V] float32 -> token [B] int64, drawn from softmax(logits / temperature); 0 means argmax."""
    if temperature == 0:
        return logits.argmax(-1)
    return (logits / temperature).add_(gumbel(keys, positions, writer, logits.shape[-1])).argmax(-1)
