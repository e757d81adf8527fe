"""Caches that grow while texts are written: equal texts, and memory that follows what is written."""

import pytest
import torch

from lupi_trainer.speculative import speculative_generate
from lupi_trainer.speculative.drafts.prompt_lookup import PromptLookup
from lupi_trainer.speculative.runners import runner
from lupi_trainer.speculative.runners.attention import ragged_attention
from lupi_trainer.speculative.runners.cache import RaggedCache
from lupi_trainer.speculative.runners.lockstep import Alone
from tests.families.tiny import families, pair, small
from tests.speculative.loops import test_decoder
from tests.speculative.runners import test_replay
from tests.speculative.runners.test_cache import uncached
from tests.speculative.runners.test_kernels import on_cpu  # noqa: F401
from tests.speculative.scene import LIMIT, Scene
from tests.speculative.toy_models import FAMILIES, MORE_FAMILIES, VOCAB, prompts, toy


@pytest.fixture
def grown(monkeypatch):
    """[(cache, slots, rows)] of each growth, while caches begin with four slots behind the longest prompt."""
    seen, before = [], RaggedCache.grow

    def grow(self, slots, rows):
        before(self, slots, rows)
        seen.append((id(self), slots, rows))

    monkeypatch.setattr(RaggedCache, "grow", grow)
    monkeypatch.setattr(runner, "_PAGE", 4)
    monkeypatch.setattr(runner, "_BUCKET", 2)
    return seen


def times(grown) -> list[int]:
    """How often each cache has grown."""
    caches = [cache for cache, _, _ in grown]
    return [caches.count(cache) for cache in dict.fromkeys(caches)]


@pytest.mark.parametrize("family", FAMILIES + MORE_FAMILIES)
def test_texts_are_the_references_in_every_family(family, grown):
    scene = Scene(family, longest=5)
    for options in ({"gamma": 3, "max_slots": 3}, {"gamma": 2, "verification": "sequential"}):
        grown.clear()
        scene.check(scene.roll(**options))
        assert len(times(grown)) == 2 and min(times(grown)) >= 2, options
    grown.clear()
    rows = [5]
    scene.check(scene.roll(rows, gamma=3), rows)  # alone
    assert grown


@pytest.mark.parametrize("family", ["qwen3_5_text", "lfm2", "falcon_h1"])
def test_layers_with_states_beside_keys_and_values(family, grown):
    models = pair(small(families()[family]))
    whole = test_replay.roll(models)
    assert min(times(grown)) >= 1
    grown.clear()
    runner._PAGE = 64
    assert test_replay.roll(models).completion_ids == whole.completion_ids and not grown


def test_kernels_that_take_lengths(grown, on_cpu):  # noqa: F811
    """They count the slots of tokens that are not kept, too."""
    scene = Scene("gemma3", longest=5)
    scene.check(scene.roll(gamma=5, max_slots=3))
    assert len(times(grown)) == 2 and min(times(grown)) >= 2


@pytest.mark.parametrize("family", FAMILIES)
def test_lossless_decoding_writes_the_targets_own_text(family, grown):
    expected = test_decoder.greedy(family)
    assert test_decoder.generate(family, "close", num_draft_tokens=4, max_slots=3).completion_ids == expected
    assert len(times(grown)) == 2 and min(times(grown)) >= 2
    grown.clear()
    given = {"max_new_tokens": test_decoder.LIMIT, "eos_token_id": test_decoder.eos(family), "max_slots": 3}
    target = test_decoder.target(family)
    assert speculative_generate(target, PromptLookup(), test_decoder.PROMPTS, **given).completion_ids == expected
    assert min(times(grown)) >= 2


def test_a_process_in_lockstep_grows_by_itself(grown, monkeypatch):
    scene = Scene("llama", longest=5, rows=6)
    monkeypatch.setattr(Alone, "together", True)  # it takes the way of one, and agrees with nobody
    scene.check(scene.roll(gamma=3, max_slots=2, lockstep=Alone()))
    assert min(times(grown)) >= 2


def test_what_fits_does_not_grow_and_compiled_caches_are_whole(grown, monkeypatch):
    scene = Scene("llama", longest=5)
    compiled = runner.Runner(scene.student, scene.prompts[0], 2, LIMIT, VOCAB, compile=True)
    assert compiled.cache.window.slots == compiled.capacity
    monkeypatch.setattr(runner, "_PAGE", LIMIT)
    scene.check(scene.roll(gamma=3))
    assert not grown


def test_rows_that_have_ended_are_not_kept(grown):
    """One long text, beside which others are short."""
    model, rows = toy("llama"), prompts(4, 5, 9)
    generator = torch.Generator().manual_seed(4)
    one = runner.Runner(model, rows, 4, 60, VOCAB)
    text = list(rows[0])
    with torch.no_grad(), ragged_attention(model):
        one.admit([0, 1, 2, 3], [0, 1, 2, 3])
        one.read(torch.tensor([row[-1:] for row in rows]), torch.zeros(4, dtype=torch.long), 8)
        for step in range(1, 40):
            text += torch.randint(3, VOCAB, (1,), generator=generator).tolist()
            logits, _ = one.read(torch.tensor([text[-1:]]), torch.tensor([step]), len(rows[0]) - 1 + step)
    assert [rows for _, _, rows in grown] == [1] * len(grown) and len(grown) >= 2
    assert one.cache.bytes <= 1.3 * len(text) * 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, their width, bytes
    torch.testing.assert_close(logits[0], uncached(model, text, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompt, limit", [(47, 4096), (2460, 4096), (47, 250), (2460, 250)])
def test_answers_of_250_tokens_take_little_more_than_they_use(prompt, limit):
    """Under whatever limit, with a student's prompts and a teacher's, and 20 tokens a draft, of which 18 are kept."""
    model = toy("llama", layers=1, hidden=8, positions=8192)
    one = runner.Runner(model, [[5 + row] * prompt for row in range(8)], 8, limit, VOCAB, widest=20)
    rows, written = list(range(8)), 0
    with torch.no_grad(), ragged_attention(model):
        one.admit(rows, rows)
        while written < 250:
            one.read(torch.full((8, 20), 7), torch.full((8,), written), prompt - 1 + written)
            written += min(18, 250 - written)
    keys = one.cache.attending[0].keys
    used = 8 * (prompt - 1 + written) * 2 * keys[0, 0].numel() * keys.element_size()
    assert 1 <= one.cache.bytes / used <= 1.3
