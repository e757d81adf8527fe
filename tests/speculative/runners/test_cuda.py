"""On a GPU: the kernels, the graphs, and the rollouts that they make."""

import warnings

import pytest
import torch

from lupi_trainer.speculative import speculative_generate
from lupi_trainer.speculative.runners import graphs, kernels
from lupi_trainer.speculative.runners import runner as runner
from lupi_trainer.speculative.runners.attention import attends_by_length, ragged_attention
from lupi_trainer.speculative.runners.float32_logits import float32_logits
from tests.speculative.scene import Scene
from tests.speculative.toy_models import FAMILIES, perturbed, prompts, toy


pytestmark = pytest.mark.gpu


@pytest.fixture
def made(monkeypatch):
    """The `Graphs` of every runner."""
    seen = []
    monkeypatch.setattr(runner, "Graphs", lambda recorder: seen.append(graphs.Graphs(recorder)) or seen[-1])
    return seen


@pytest.mark.parametrize("kernel", kernels._candidates("cuda"), ids=lambda kernel: kernel.__name__)
@pytest.mark.parametrize("head_dim", [16, 64, 128, 256])
def test_kernels_agree_with_masks(kernel, head_dim):
    for dtype in (torch.float16, torch.bfloat16):
        assert kernels.flaw(kernel, "cuda", dtype, head_dim) is None


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_in_float32_equal_the_reference(family, compile, made):
    scene = Scene(family)
    scene.student.cuda(), scene.teacher.cuda()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # neither compilation nor recording fails
        scene.check(scene.roll(gamma=4, max_slots=5, compile=compile))
    assert all(one.replays > 2 for one in made) == compile


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_in_half_precision_are_those_of_the_masks(family, compile, made, monkeypatch):
    model = toy(family, hidden=64).cuda().bfloat16()
    rows = prompts(5, 2, 60, seed=3)
    fed = torch.randint(3, 61, (6, 5, 4), generator=torch.Generator().manual_seed(1)).cuda()

    def read():
        with torch.no_grad(), ragged_attention(model):
            by_length = attends_by_length(model)
            one = runner.Runner(model, rows, 5, 30, 61, compile=compile, widest=4)
            one.admit(list(range(5)), list(range(5)))
            written = torch.zeros(5, dtype=torch.long, device="cuda")
            steps = [one.read(tokens, written + 3 * i, 60 + 3 * i)[0] for i, tokens in enumerate(fed)]
        return by_length, torch.stack(steps)

    kernels.find_kernel.cache_clear()
    found = kernels.find_kernel("cuda", torch.bfloat16, 16) is not None
    by_length, ours = read()
    monkeypatch.setattr(kernels, "_candidates", lambda device: [])
    kernels.find_kernel.cache_clear()
    by_mask, theirs = read()
    kernels.find_kernel.cache_clear()
    assert by_length == found and not by_mask
    scale = theirs.std().item()
    assert (ours - theirs).abs().mean().item() < 0.02 * scale


@pytest.mark.parametrize("compile", [False, True])
def test_lossless_texts(compile, made):
    target = toy("qwen3").cuda()
    given = target, perturbed(toy("qwen3"), 0.1).cuda(), prompts(4, 2, 12, seed=5)
    options = {"max_new_tokens": 24, "max_slots": 3}
    plain = [
        target.generate(torch.tensor([p]).cuda(), max_new_tokens=24, do_sample=False, eos_token_id=None)
        for p in given[2]
    ]
    expected = [ids[0, len(p) :].tolist() for ids, p in zip(plain, given[2])]
    assert speculative_generate(*given, **options, compile=compile).completion_ids == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_keep_what_the_lm_head_has_added_up(dtype):
    model = toy("qwen3", hidden=64).cuda().to(dtype)
    tokens = torch.tensor(prompts(4, 8, 8, seed=5)).cuda()
    with torch.no_grad(), float32_logits(model):
        out = model(input_ids=tokens, output_hidden_states=True)
    exact = out.hidden_states[-1].double() @ model.lm_head.weight.double().t()
    assert (out.logits - exact).abs().max() < 1e-4 * exact.abs().max()
    assert (exact.to(dtype) - exact).abs().max() > 1e-3 * exact.abs().max()  # which half precision rounds away
