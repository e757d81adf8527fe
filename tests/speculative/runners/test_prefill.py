"""What reading prompts costs beside the backbone, and that nothing is read over them."""

import pytest
import torch

from lupi_trainer.speculative.runners.attention import ragged_attention
from lupi_trainer.speculative.runners.runner import Runner
from lupi_trainer.speculative.runners.support import tokens_at_once
from tests.families.tiny import families, small, tiny
from tests.speculative.scene import Scene
from tests.speculative.toy_models import toy


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_lm_head_reads_one_place_of_a_prompt_and_needs_no_copies_of_its_weight(family):
    """Of rows that do not lie one behind another in memory, torch multiplies each with a copy of the weight."""
    scene, seen = Scene(family), []
    hooks = [
        model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for model in (scene.student, scene.teacher)
    ]
    scene.roll(gamma=4)
    for hook in hooks:
        hook.remove()
    assert seen and all(states.is_contiguous() for states in seen)
    assert max(states.shape[1] for states in seen) <= 5 < max(map(len, scene.prompts[1]))


@torch.no_grad()
@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_text"])
def test_prompts_that_are_a_common_prefix_and_one_token_leave_nothing_to_read(family):
    """The forward that would make buffers, where there are none, must not write over the prefix."""
    model = tiny(small(families()[family]), seed=0)
    prompts = [[*range(3, 23), last] for last in (5, 6)]
    with ragged_attention(model):
        runner = Runner(model, prompts, 2, 4, model.config.vocab_size)
        runner.admit([0, 1], [0, 1])
        logits, _ = runner.read(torch.tensor([[5], [6]]), torch.zeros(2, dtype=torch.long), 20)
    expected = model(input_ids=torch.tensor(prompts), use_cache=False).logits[:, -1]
    torch.testing.assert_close(logits[:, 0], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_what_a_forward_makes_is_an_eighth_of_the_weights_and_of_the_cache(kv_heads):
    model, rows, slots = toy(kv_heads=kv_heads), 8, 30
    filled = model(input_ids=torch.ones(rows, slots, dtype=torch.long), use_cache=True).past_key_values
    cache = sum(layer.keys.numel() + layer.values.numel() for layer in filled.layers)
    weights, config, cached = 2**20, model.config, 100  # rows hold a hundred times as many slots
    a_token = 4 * config.intermediate_size + 8 * config.hidden_size
    assert tokens_at_once(config, weights, rows * cached, slots) == (weights + cached * cache) // (8 * a_token)
    assert tokens_at_once(config, 0, 1, 1) == 128 and tokens_at_once(config, 2**40, 1, 1) == 8192
