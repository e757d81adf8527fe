"""Rollouts where they are to run: on a GPU, or two, where there are some; what needs none runs on a CPU as well."""

from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM

from lupi_trainer.speculative import TopK, skd_rollout
from lupi_trainer.speculative.loops.report import Report
from lupi_trainer.speculative.loops.skd import SKD
from lupi_trainer.speculative.runners import kernels
from lupi_trainer.speculative.runners.attention import attends_by_length, ragged_attention
from lupi_trainer.speculative.runners.runner import Runner
from tests.fake_cuda.device import UNABLE
from tests.fake_cuda.rollout import rolled
from tests.fake_cuda.shapes import PROMPTS, qwen3
from tests.speculative.scene import RULE, Scene
from tests.speculative.toy_models import perturbed, prompts, toy


CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def on(device: str, config, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(device, dtype).eval()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("compile", [False, True])
def test_a_teacher_on_the_second_gpu_writes_the_reference_s_text(compile):
    scene = Scene("qwen3")
    scene.student.to("cuda:0"), scene.teacher.to("cuda:1")
    scene.check(scene.roll(gamma=4, max_slots=5, compile=compile, trace_rows=[0, 3], return_teacher_hidden=True))


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_texts_in_bfloat16_part_late_and_seldom(device):
    """Kernels change with the shapes they are given, so that near ties fall to other sides."""
    teacher = toy("qwen3", layers=1)
    pair = [model.to(device, torch.bfloat16) for model in (perturbed(teacher, 0.1), teacher)]
    texts = prompts(6, 2, 12, seed=1)
    options = {"max_new_tokens": 20, "acceptance": RULE, "gamma": 4}
    together, alone = (skd_rollout(*pair, texts, texts, max_slots=slots, **options).completion_ids for slots in (6, 1))
    same = 0
    for ours, theirs in zip(together, alone):
        parted = [i for i, (one, other) in enumerate(zip(ours, theirs)) if one != other]
        same += parted[0] if parted else len(ours)
    assert same >= 0.75 * sum(map(len, together))


@contextmanager
def unasked(set_mode):
    """Inside, a round that asks the device anything but its report is an error, where `set_mode` is CUDA's."""
    step, read = SKD.step, Report.read

    def stepped(rounds, gamma):
        set_mode("error")
        return step(rounds, gamma)

    def reported(report):
        set_mode("default")
        return read(report)

    SKD.step, Report.read = stepped, reported
    try:
        yield
    finally:
        SKD.step, Report.read = step, read


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_round_waits_for_the_device_once(device):
    modes: list[str] = []
    scene = Scene("qwen3", rows=3)
    scene.student.to(device), scene.teacher.to(device)
    scene.roll(gamma=4)  # what libraries do at their first call is no round's
    with unasked(torch.cuda.set_sync_debug_mode if device == "cuda" else modes.append):
        rollout = scene.roll(gamma=4, max_slots=2, trace_rows=[0])
    scene.check(rollout)
    assert device == "cuda" or modes == ["error", "default"] * rollout.stats.rounds


@pytest.mark.skipif(UNABLE is not None, reason=str(UNABLE))
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_the_most_that_is_held_is_what_is_counted_without_a_gpu(device):
    config, rows, limit = qwen3(2, hidden=256, heads=8, head_dim=64, vocab=2048), 3, 64
    options = {"max_new_tokens": limit, "acceptance": TopK(5, 0.0), "gamma": 4, "max_slots": rows}
    _, counted = rolled(config, config, *PROMPTS, devices=("cuda:0", "cuda:0"), lengths=[2] * rows, **options)
    model = on("cpu", config, torch.bfloat16)
    weights = 2 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    slots = sum(max(map(len, texts)) + limit + options["gamma"] - 1 for texts in PROMPTS)
    cache = 2 * config.num_hidden_layers * rows * slots * config.num_key_value_heads * config.head_dim * 2
    assert 0 <= counted.peak["cuda:0"] - weights - cache < 0.1 * weights, "logits, noise, prompts"
    if device == "cuda":
        student, teacher = (on(device, config, torch.bfloat16) for _ in range(2))
        skd_rollout(student, teacher, *PROMPTS, **options)  # libraries keep some memory from their first call on
        before = torch.cuda.memory_allocated() - weights
        torch.cuda.reset_peak_memory_stats()
        skd_rollout(student, teacher, *PROMPTS, **options)
        assert torch.cuda.max_memory_allocated() - before == pytest.approx(counted.peak["cuda:0"], rel=0.1)


@torch.no_grad()
@pytest.mark.parametrize("device, longest", [("cpu", 60), pytest.param("cuda", 6555, marks=pytest.mark.gpu)])
def test_blocks_far_into_texts_of_qwen3_s_heads(device, longest, monkeypatch):
    """Eight query heads of a key/value head, 20 tokens a block: by the kernel, if there is one, as by masks."""
    config = qwen3(2, hidden=256, heads=16, head_dim=128)
    config.num_key_value_heads = 2
    model = on(device, config, torch.bfloat16 if device == "cuda" else torch.float32)
    rows = [[4 + i % 500 for i in range(n)] for n in (longest, longest // 2, 30)]
    fed = torch.randint(4, 500, (3, 20), generator=torch.Generator().manual_seed(1)).to(device)

    def read(candidates):
        monkeypatch.setattr(kernels, "_candidates", lambda device: candidates)
        kernels.find_kernel.cache_clear()
        with ragged_attention(model):
            runner = Runner(model, rows, 3, 20, 512, widest=20)
            runner.admit([0, 1, 2], [0, 1, 2])
            return attends_by_length(model), runner.read(fed, torch.zeros_like(fed[:, 0]), longest - 1)[0]

    if device == "cpu":
        monkeypatch.setattr(kernels, "_HALF", (torch.float32,))
        monkeypatch.setattr(kernels, "_CASES", kernels._CASES[:1])
    there = kernels._candidates("cuda") if device == "cuda" else [kernels.masked]
    (by_length, ours), (by_mask, theirs) = read(there), read([])
    kernels.find_kernel.cache_clear()
    assert by_length == bool(there) and not by_mask
    assert (ours - theirs).abs().max() <= (0.1 if device == "cuda" else 1e-4) * theirs.abs().max()
