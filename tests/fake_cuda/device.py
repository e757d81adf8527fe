"""CUDA devices that are not there: tensors on `cuda:0` and `cuda:1` with a shape and no numbers, and what they cost.

`FakeTensorMode` computes shapes, types and devices of results, and refuses operations that mix devices. Only indexing
asks for more: that there is a guard, which makes a device the current one. torch's own guard for tensors without
numbers does nothing, and is lent to CUDA; no compiler is needed for it.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lupi_trainer.speculative.runners import attention, kernels


_CUDA, _META = 1, 14  # places in c10's table of guards, one for each type of device
_BLOCK = 512  # bytes: CUDA's allocator rounds up to them
_ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")  # the host waits for the device
_MOVING = ("_to_copy", "copy_", "_copy_from")
_plain_attention = torch.nn.functional.scaled_dot_product_attention
_NOT_LAUNCHED = (
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
    "lift_fresh",
)


def _guards() -> Any:
    """The table of guards; None where torch's library has none by this name, which GCC and Clang give it."""
    name = {"linux": "libc10.so", "darwin": "libc10.dylib"}.get(sys.platform, "c10.dll")
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
        table = (ctypes.c_void_p * 21).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    except (OSError, ValueError):
        return None
    return table if table[_META] else None


UNABLE = None if _guards() is not None else "torch's table of device guards is not to be found here"


def _zeros(tensor: torch.Tensor) -> Any:
    return 0 if tensor.ndim == 0 else [_zeros(part) for part in tensor]


@functools.cache
def _known(operation) -> tuple[str, bool]:
    """An operation's name, and whether it does more than look at a tensor in another way."""
    looks = any(result.alias_info and not result.alias_info.is_write for result in operation._schema.returns)
    return operation.name().split("::")[1].split(".")[0], not looks


def _device(tensor: torch.Tensor) -> str:
    return str(tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device)


class Counted(TorchDispatchMode):
    """What operations launch, ask and keep, by the phase that they belong to.

    live, peak, phase_peak: bytes by device ("cuda:0"), now, at most, and at most in each phase: (phase, device).
    launches: kernels by (phase, operation); views and new memory are none.
    rounds: launches of some phases up to the end of each round.
    replayed: CUDA graphs, each of which is one launch, and how many were recorded: by phase and "recorded".
    questions: where the host waits for what the device has: (phase, operation, line).
    uploads: copies from the host to a device, for which the host waits too: (phase, operation, line).
    """

    def __init__(self):
        super().__init__()
        self.phase = "other"
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.phase_peak: dict[tuple[str, str], int] = {}
        self.launches: Counter[tuple[str, str]] = Counter()
        self.replayed: Counter[str] = Counter()
        self.questions: Counter[tuple[str, str, str]] = Counter()
        self.uploads: Counter[tuple[str, str, str]] = Counter()
        self.rounds: list[dict[str, int]] = []
        self.answer: Callable[[torch.Tensor], Any] = _zeros  # what `tolist` of a tensor without numbers returns
        self._seen: dict[int, weakref.ref] = {}

    @contextmanager
    def within(self, phase: str) -> Generator[None]:
        """Inside, all is counted as this phase's."""
        before, self.phase = self.phase, phase
        for device, held in self.live.items():  # what lies there is part of a phase's peak
            self._raise(device, held)
        try:
            yield
        finally:
            self.phase = before

    def launched(self, phase: str) -> int:
        """Kernels of one phase."""
        return sum(number for (its, _), number in self.launches.items() if its == phase)

    def _raise(self, device: str, held: int) -> None:
        self.peak[device] = max(self.peak[device], held)
        place = self.phase, device
        self.phase_peak[place] = max(self.phase_peak.get(place, 0), held)

    def _keep(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place, device = storage._cdata, _device(tensor)
        if place in self._seen or device == "cpu":
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK

        def gone(_, place=place, device=device, size=size):
            self.live[device] -= size
            del self._seen[place]

        self._seen[place] = weakref.ref(storage, gone)
        self.live[device] += size
        self._raise(device, self.live[device])

    @staticmethod
    def _line() -> str:
        """The innermost line of the package that is running, as file:number."""
        frame = sys._getframe(1)
        while frame is not None and "/lupi_trainer/" not in frame.f_code.co_filename:
            frame = frame.f_back
        return "outside" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"

    def asked(self, operation: str) -> None:
        """Notes that the host waits for the device."""
        self.questions[self.phase, operation, self._line()] += 1

    @classmethod
    def is_infra_mode(cls) -> bool:
        """True: what is compiled is captured while this counts."""
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, is_new = _known(func)
        if name == "device":  # a tensor is asked for it, by whoever runs
            return func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name in _ASKING and any(_device(tensor) != "cpu" for tensor in given):
            self.asked(name)
        places = {_device(tensor) for tensor in given} - {"cpu", "meta"}
        if len(places) > 1 and name not in _MOVING:  # of an index, torch would see it on a GPU alone
            raise RuntimeError(f"{name} at {self._line()} mixes {' and '.join(sorted(places))}")
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        if is_new:
            for tensor in made:
                self._keep(tensor)
        # a number of the host's is a kernel's argument; an index is copied
        devices = {_device(tensor) for tensor in given if tensor.ndim} | {_device(tensor) for tensor in made}
        if not any(device.startswith("cuda") for device in devices):
            return out
        if name in _MOVING and "cpu" in devices and made[0].device.type == "cpu":
            self.asked(name)
        elif "cpu" in devices:
            self.uploads[self.phase, name, self._line()] += 1
        if is_new and name not in _NOT_LAUNCHED:
            self.launches[self.phase, name] += 1
        return out


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """torch's attention, by the kernel that it takes on a GPU: without one, it would write all scores out."""
    given, kept = (query, key, value), {"scale": scale}
    if query.device.type == "cuda" and attn_mask is None and query.dtype in (torch.float16, torch.bfloat16):
        return torch.ops.aten._scaled_dot_product_flash_attention(*given, dropout_p, is_causal, False, **kept)[0]
    if query.device.type == "cuda" and not (enable_gqa and query.shape[1] != key.shape[1]):
        bias = attn_mask
        if bias is not None and bias.dtype == torch.bool:
            bias = torch.zeros((), dtype=query.dtype, device=bias.device).where(bias, -torch.inf)
        if bias is not None and (over := bias.shape[-1] % 16):  # its rows are to begin at even addresses
            bias = torch.nn.functional.pad(bias, (0, 16 - over))[..., : bias.shape[-1]]
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        return efficient(*given, bias, False, dropout_p, is_causal, **kept)[0]
    return _plain_attention(*given, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


@contextmanager
def fake_cuda() -> Generator[Counted]:
    """Inside, tensors can be made on `cuda:0` and `cuda:1`, and have no numbers; yields what is `Counted`.

    Kernels that take lengths are trusted unseen there. `tolist` is one question, answered by `Counted.answer`.
    """
    guards, counted = _guards(), Counted()
    before = guards[_CUDA]

    def told(tensor):
        if tensor.device.type == "cuda":
            counted.asked("tolist")
        return counted.answer(tensor)

    kernels.find_kernel.cache_clear()
    guards[_CUDA] = guards[_META]
    try:
        with ExitStack() as stack:
            for owner in (torch.nn.functional, attention, kernels):
                stack.enter_context(patch.object(owner, "scaled_dot_product_attention", _attention))
            stack.enter_context(patch.object(kernels, "flaw", lambda *kind: None))
            stack.enter_context(patch.object(FakeTensor, "tolist", told))
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            yield stack.enter_context(counted)
    finally:
        guards[_CUDA] = before
        kernels.find_kernel.cache_clear()
        kernels._bounds.cache_clear()  # what it kept has no numbers
