"""What reading prompts costs beside the backbone."""

import pytest

from tests.speculative.scene import Scene


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
