"""Attention by lengths: with the kernels' contract written out row by row, since the kernels themselves need a GPU."""

import copy
import importlib.util
import inspect
import sys
import types

import pytest
import torch
import torch.nn.attention.varlen as varlen

from lupi_trainer.speculative import AdapterDisabled, skd_rollout, speculative_generate
from lupi_trainer.speculative.runners import kernels
from lupi_trainer.speculative.runners.attention import attends_by_length, ragged_attention
from lupi_trainer.speculative.runners.runner import Runner
from tests.families.tiny import families, pair, small
from tests.speculative.reference import reference_rollout
from tests.speculative.runners.test_cache import uncached
from tests.speculative.runners.test_support import INFORMED, QUERIES, with_lora
from tests.speculative.scene import RULE, Scene
from tests.speculative.toy_models import FAMILIES, MORE_FAMILIES, VOCAB, perturbed, prompts, toy


def attend(query, keys, values, scale, window):
    """query [Q, G * H, D], keys and values [U, H, D], the last query sees the last key -> [Q, G * H, D]."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, 1) for x in (keys, values))
    out = torch.zeros_like(query)
    for j in range(len(query)):
        last = len(keys) - len(query) + j
        first = max(last - window + 1, 0) if window else 0
        seen_keys, seen_values = keys[first : last + 1], values[first : last + 1]
        weights = (torch.einsum("hd,khd->hk", query[j], seen_keys) * scale).softmax(-1)
        out[j] = torch.einsum("hk,khd->hd", weights, seen_values)
    return out


def written_out(query, key, value, used, scale, window):
    rows = zip(query, key, value, used.tolist())
    return torch.stack([attend(q, k[:n], v[:n], scale, window) for q, k, v, n in rows])


@pytest.fixture
def on_cpu(monkeypatch):
    """Lets rollouts on the CPU, in float32, take the kernels that are put into the list, tried on few slots."""
    chosen = [written_out]
    monkeypatch.setattr(kernels, "_candidates", lambda device: chosen)
    monkeypatch.setattr(kernels, "_HALF", (torch.float32,))
    monkeypatch.setattr(kernels, "_CASES", [case for case in kernels._CASES if case.slots < 100])
    kernels.find_kernel.cache_clear()
    yield chosen
    kernels.find_kernel.cache_clear()


@pytest.mark.parametrize("family", FAMILIES + MORE_FAMILIES)
def test_logits_after_random_rejections_equal_uncached_ones(family, on_cpu, monkeypatch):
    monkeypatch.setattr(kernels, "seen_slots", None)  # no mask is made
    kernels.find_kernel.cache_clear()
    monkeypatch.setattr(kernels, "flaw", lambda *a: None)
    model = toy(family)
    rows = prompts(5, 1, 20, seed=3)
    generator = torch.Generator().manual_seed(4)
    texts, base = [row[:-1] for row in rows], [len(row) - 1 for row in rows]
    worst = 0.0
    with torch.no_grad(), ragged_attention(model):
        assert attends_by_length(model)
        runner = Runner(model, rows, slots=5, max_new_tokens=40, vocab_size=VOCAB, widest=6)
        runner.admit(list(range(5)), list(range(5)))
        for step in range(10):
            width = 1 + step % 6
            fed = torch.randint(3, VOCAB, (5, width), generator=generator)
            written = torch.tensor([len(text) - b for text, b in zip(texts, base)])
            logits, _ = runner.read(fed, written, max(map(len, texts)))
            for row in range(5):
                expected = uncached(model, texts[row] + fed[row].tolist(), width)
                worst = max(worst, (logits[row] - expected).abs().max().item())
                kept = int(torch.randint(0, width + 1, (1,), generator=generator))
                texts[row] = texts[row] + fed[row, :kept].tolist()
    assert worst < 1e-5
    assert not attends_by_length(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.grid(2)
def test_rollouts_equal_the_reference(family, on_cpu):
    scene = Scene(family)
    for options in ({"gamma": 5}, {"gamma": 7, "max_slots": 3}, {"gamma": 3, "verification": "sequential"}):
        scene.check(scene.roll(**options))
    for row in range(2):  # alone
        scene.check(scene.roll([row], gamma=4), [row])


def test_adapters_and_their_base(on_cpu):
    student = with_lora(toy("llama"))
    expected = reference_rollout(student, toy("llama"), QUERIES, INFORMED, max_new_tokens=8, acceptance=RULE)
    rollout = skd_rollout(
        student, AdapterDisabled(student), QUERIES, INFORMED, max_new_tokens=8, acceptance=RULE, gamma=4
    )
    assert (rollout.completion_ids, rollout.from_teacher) == tuple(expected[:2])


@pytest.mark.slow
def test_compiled_rollouts_equal_the_reference(on_cpu, tracing):
    scene = Scene("gemma3", rows=3)
    scene.check(scene.roll(gamma=4, compile=True))
    with torch._dynamo.config.patch(error_on_recompile=True):
        scene.check(scene.roll(gamma=4, compile=True))


def test_lossless_decoding(on_cpu):
    target = toy("qwen3")
    texts = prompts(4, 2, 12, seed=5)
    by_length = speculative_generate(target, perturbed(target, 0.1), texts, max_new_tokens=20)
    on_cpu.clear()
    kernels.find_kernel.cache_clear()
    assert (
        by_length.completion_ids
        == speculative_generate(target, perturbed(target, 0.1), texts, max_new_tokens=20).completion_ids
    )


def test_drafts_beyond_the_last_position(on_cpu):
    """Places beyond a text's end exist in the buffer, and a model without such positions is not asked for them."""
    teacher = toy("gpt2", positions=24)
    queries, informed = [[3, 4, 5, 6], [9]], [[*range(10, 20), 3, 4, 5, 6], [*range(10, 20), 9]]
    pair = perturbed(teacher, 0.1), teacher
    expected, _, _ = reference_rollout(*pair, queries, informed, max_new_tokens=10)
    assert skd_rollout(*pair, queries, informed, max_new_tokens=10, gamma=7).completion_ids == expected


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_behind_a_common_prefix_are_read_by_the_kernel_without_a_copy_of_it(family, on_cpu, monkeypatch):
    model, shared, seen = toy(family), prompts(1, 20, 20, seed=6)[0], []
    tails = [[9, 8, 7, 6, 5], [9, 8, 7, 6, 5], [4], [3, 5, 4, 8], [7, 9, 8], [3, 4, 5, 6, 7, 8]]
    rows = [shared + tail for tail in tails]  # of which the second is copied, and the third leaves nothing to read

    def watched(query, key, *rest):
        seen.append((query.shape[0], query.shape[1], key.untyped_storage().data_ptr()))
        return written_out(query, key, *rest)

    with ragged_attention(model):
        runner = Runner(model, rows, slots=6, max_new_tokens=4, vocab_size=VOCAB)
        on_cpu[:] = [watched]
        kernels.find_kernel.cache_clear()
        monkeypatch.setattr(kernels, "flaw", lambda *kind: None)
        runner.admit([*range(6)], [*range(6)])
        buffers = {layer.keys.untyped_storage().data_ptr() for layer in runner.cache.layers}
        # slots 3 to 5 together, and slot 0, in both layers
        assert sorted((r, q) for r, q, _ in seen) == [(1, 4), (1, 4), (3, 5), (3, 5)]
        assert {place for _, _, place in seen} == buffers
        last = torch.tensor([row[-1:] for row in rows])
        logits, _ = runner.read(last, torch.zeros(6, dtype=torch.long), max(map(len, rows)) - 1)
    for row, text in enumerate(rows):
        torch.testing.assert_close(logits[row], uncached(model, text, 1), atol=1e-5, rtol=1e-5)


def test_more_tokens_than_the_reader_was_made_for(on_cpu):
    model = toy("llama")
    with torch.no_grad(), ragged_attention(model):
        runner = Runner(model, [[3, 4], [5]], slots=2, max_new_tokens=4, vocab_size=VOCAB, widest=2)
        runner.admit([0, 1], [0, 1])
        with pytest.raises(ValueError, match="3 tokens a row, and the runner was made for 2"):
            runner.read(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, dtype=torch.long), 1)


@pytest.mark.parametrize("family", ["qwen3_5_text", "falcon_h1", "phimoe", "llama4_text", "gemma4_text"])
@pytest.mark.grid(3)
def test_families_with_states_windows_and_chunks_of_their_own(family, on_cpu):
    """Phi-3.5-MoE does not hand its window on; chunks, and layers that share keys and values, go by masks."""
    student, teacher = pair(small(families()[family]))
    with ragged_attention(teacher):
        assert attends_by_length(teacher) == (family not in ("llama4_text", "gemma4_text"))
    rows = prompts(3, 9, 14, seed=3)
    expected = reference_rollout(student, teacher, rows, rows, max_new_tokens=6, acceptance=RULE)
    rollout = skd_rollout(student, teacher, rows, rows, max_new_tokens=6, acceptance=RULE, gamma=3, max_slots=2)
    assert rollout.completion_ids == expected[0]


def test_who_attends_by_length(on_cpu):
    model = toy("llama")
    for before, inside in (("sdpa", True), ("flash_attention_2", True), ("eager", False)):
        model.config._attn_implementation = before
        with ragged_attention(model):
            assert attends_by_length(model) == inside
            with ragged_attention(model):
                assert attends_by_length(model) == inside
        assert model.config._attn_implementation == before
    model.config._attn_implementation, model._supports_flash_attn = "sdpa", False
    with ragged_attention(model):
        assert not attends_by_length(model)
    double = toy("llama").double()
    with ragged_attention(double):
        assert not attends_by_length(double)


def test_outside_a_rollout_such_a_model_attends_as_before(on_cpu):
    model = toy("gemma3")
    ids = torch.tensor(prompts(1, 12, 12))
    before = model(ids).logits
    with ragged_attention(model):
        assert torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)


def one_too_many(query, key, value, used, scale, window):
    return written_out(query, key, value, used + 1, scale, window)


def from_the_first_slot(query, key, value, used, scale, window):
    """Query 0 lined up with slot 0, as flash attention did before 2.1."""
    width = query.shape[1]
    return torch.stack([attend(*row, scale, window) for row in zip(query, key[:, :width], value[:, :width])])


def without_its_window(query, key, value, used, scale, window):
    return written_out(query, key, value, used, scale, 0)


def wider_by_one(query, key, value, used, scale, window):
    return written_out(query, key, value, used, scale, window + bool(window))


def of_no_use(*args):
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nand so on")


@pytest.mark.parametrize("wrong", [one_too_many, from_the_first_slot, without_its_window, wider_by_one, of_no_use])
def test_a_kernel_that_is_wrong_is_named_and_not_used(wrong, on_cpu):
    on_cpu[:] = [wrong]
    reason = "Ampere GPUs or newer.$" if wrong is of_no_use else "away from plain attention's"
    with pytest.warns(RuntimeWarning, match=f"do not use {wrong.__name__} on this machine: .*{reason}"):
        assert kernels.find_kernel("cpu", torch.float32, 16) is None
    on_cpu[:] = [wrong, written_out]
    kernels.find_kernel.cache_clear()
    with pytest.warns(RuntimeWarning):
        assert kernels.find_kernel("cpu", torch.float32, 16) is written_out


@pytest.mark.parametrize("queries", [1, 20])
def test_a_kernel_that_is_wrong_on_many_slots_alone_is_found(queries, monkeypatch):
    """Of Qwen3's shapes: eight query heads of a key/value head, 6,575 slots."""
    (case,) = (case for case in kernels._CASES if case.slots > 6000 and case.queries == queries)
    monkeypatch.setattr(kernels, "_CASES", [case])

    def of_four_thousand(query, key, value, used, *rest):
        return kernels.masked(query, key[:, :4096], value[:, :4096], used.clamp(max=4096), *rest)

    def one_too_few(query, key, value, used, *rest):
        return kernels.masked(query, key, value, used - 1, *rest)

    def one_too_many(query, key, value, used, *rest):
        return kernels.masked(query, key, value, used + 1, *rest)

    found = {kernel: kernels.flaw(kernel, "cpu", torch.bfloat16, 32) for kernel in (of_four_thousand, one_too_few)}
    found[one_too_many] = kernels.flaw(one_too_many, "cpu", torch.bfloat16, 32)
    assert all("(6575 slots" in str(reason) for reason in found.values()), found
    assert kernels.flaw(written_out, "cpu", torch.float32, 32) is None


def test_the_mask_says_the_same(on_cpu):
    assert kernels.flaw(written_out, "cpu", torch.float32, 24) is None
    assert kernels.find_kernel("cpu", torch.float32, 12) is None, "not a multiple of 8"
    assert kernels.find_kernel("cpu", torch.float64, 16) is None
    seen = kernels.seen_slots(torch.tensor([3, 5]), 2, 6, 2)[:, 0].int().tolist()
    assert seen == [[[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]], [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0]]]


def test_torchs_kernel_is_tried_and_found_to_need_a_gpu(on_cpu, monkeypatch):
    assert kernels._has_torch_varlen()
    on_cpu[:] = [kernels.torch_varlen]
    monkeypatch.setattr(kernels, "_HALF", (torch.bfloat16,))
    with pytest.warns(RuntimeWarning, match="do not use torch_varlen on this machine: NotImplementedError"):
        assert kernels.find_kernel("cpu", torch.bfloat16, 64) is None


@pytest.mark.parametrize("installed", [True, False])
def test_what_is_installed_is_tried_on_a_gpu_and_nothing_elsewhere(monkeypatch, installed):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert kernels._candidates("cuda") == [kernels.torch_varlen] + [kernels.flash_attn] * installed
    assert kernels._candidates("cpu") == []


def test_without_a_gpu_nothing_changes():
    assert kernels.find_kernel("cpu", torch.bfloat16, 64) is None
    model = toy("llama").bfloat16()
    with ragged_attention(model):
        assert not attends_by_length(model)


# What the two adapters hand to their kernels, whose contracts are written out here from their documentation


def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa, seqused_k):
    assert query.shape[1] == key.shape[1] or enable_gqa
    assert cu_seq_q.dtype == cu_seq_k.dtype == seqused_k.dtype == torch.int32
    # of a single query both sides open, which FlashAttention has a quick path for; of several, none sees what follows
    assert window_size == (-1, -1) if max_q == 1 and window_size[0] < 0 else window_size[1] == 0
    out = torch.empty_like(query)
    for row, n in enumerate(seqused_k.tolist()):
        (q0, q1), (k0, k1) = cu_seq_q[row : row + 2].tolist(), cu_seq_k[row : row + 2].tolist()
        assert q1 - q0 <= max_q and n <= k1 - k0 <= max_k and k1 <= len(key)
        out[q0:q1] = attend(query[q0:q1], key[k0 : k0 + n], value[k0 : k0 + n], scale, window_size[0] + 1)
    return out


def flash_attn_with_kvcache(q, k_cache, v_cache, *, cache_seqlens, softmax_scale, causal, window_size):
    assert causal and cache_seqlens.dtype == torch.int32 and q.stride(-1) == k_cache.stride(-1) == 1
    assert window_size == (-1, -1) or window_size[1] == 0
    return written_out(q, k_cache, v_cache, cache_seqlens, softmax_scale, window_size[0] + 1)


@pytest.mark.parametrize("adapter", [kernels.torch_varlen, kernels.flash_attn])
def test_what_the_kernels_are_given(adapter, on_cpu, monkeypatch):
    named = inspect.signature(varlen.varlen_attn).parameters
    assert set(inspect.signature(varlen_attn).parameters) <= set(named), "torch's own takes what the test's takes"
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    flash = types.ModuleType("flash_attn")
    flash.flash_attn_with_kvcache = flash_attn_with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", flash)
    assert kernels.flaw(adapter, "cpu", torch.float32, 16) is None
    on_cpu[:] = [adapter]
    scene = Scene("gemma3", rows=4)
    copied = copy.deepcopy(scene.teacher)
    with ragged_attention(copied):
        assert attends_by_length(copied)
    scene.check(scene.roll(gamma=4, max_slots=3))
