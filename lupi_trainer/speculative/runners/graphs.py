"""Forwards as CUDA graphs: recorded once for a shape, then sent to the GPU as one launch.

A small student's step is hundreds of kernels of a few microseconds each, which Python hands over more slowly than the
GPU works them off; compiled, they are fewer, and still handed over one by one. A graph holds them all. What differs
from call to call is copied into the tensors that the graph reads; everything else must be the same, so the numbers
and shapes that are not tensors choose the graph. Graphs last as long as the rollout, whose cache they write to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from ...models.private import has_hook
from .support import base_model


Outputs = tuple["torch.Tensor | None", ...]


class CUDARecorder:
    """Records what a function launches on one GPU; all recordings share a memory pool."""

    def __init__(self, device: torch.device):
        self.device, self.stream, self.pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Returns what runs `function` again, and where its results then are; has not run it when it returns."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            function()  # libraries set themselves up on a stream when they are first used there
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                outputs = function()
            finally:
                graph.capture_end()
        current.wait_stream(self.stream)
        return graph.replay, outputs


@dataclass
class _Recording:
    inputs: list[torch.Tensor]
    outputs: Outputs
    replay: Callable[[], None]


class Graphs:
    """Calls of one model: the first of a kind runs as it is, the second is recorded, the others are replayed.

    `recorder` is None where nothing can be recorded; then every call runs as it is. A recording that fails is said in
    a warning, and is the last that is tried.
    """

    def __init__(self, recorder: CUDARecorder | None):
        self.recorder = recorder
        self.replays = 0
        self._calls: dict[Hashable, _Recording | None] = {}

    def __call__(self, function: Callable[..., Outputs], kind: Hashable, *tensors: torch.Tensor) -> Outputs:
        """Returns `function(*tensors)`; `kind` is all that the function does not read from the tensors."""
        if self.recorder is None:
            return function(*tensors)
        kind = (kind, *((tensor.shape, tensor.dtype) for tensor in tensors))
        if kind not in self._calls:
            self._calls[kind] = None
            return function(*tensors)
        recording = self._calls[kind]
        if recording is None:
            inputs = [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]
            try:
                replay, outputs = self.recorder.record(lambda: function(*inputs))
            except (RuntimeError, NotImplementedError) as error:
                self._give_up(error)
                return function(*tensors)
            recording = self._calls[kind] = _Recording(inputs, outputs, replay)
        for mine, given in zip(recording.inputs, tensors):
            mine.copy_(given)
        recording.replay()
        self.replays += 1
        # the next replay writes over them
        return tuple(None if output is None else output.clone() for output in recording.outputs)

    def _give_up(self, error: Exception) -> None:
        self.recorder = None
        self._calls.clear()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        warnings.warn(
            f"compile=True: the rollout goes on without CUDA graphs, because recording one failed "
            f"({type(error).__name__}: {reason})",
            RuntimeWarning,
        )


def recorder_for(model) -> CUDARecorder | None:
    """A recorder for a model that lies on one GPU entirely, and that nothing moves or gathers around a forward."""
    inner = base_model(model)
    devices = {tensor.device for tensor in (*inner.parameters(), *inner.buffers())}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return None
    if any(map(has_hook, inner.modules())):
        return None
    return CUDARecorder(next(iter(devices)))
