"""In bfloat16 ties are common and forwards of different width round differently: the text is judged by logit gaps."""

import pytest
import torch

from lupi_trainer.speculative import speculative_generate
from tests.speculative.toy_models import FAMILIES, perturbed, prompts, toy


QUERIES = prompts(8, 2, 9, seed=1)


@torch.no_grad()
def gaps(model, completions):
    """How far each token is from the argmax when the model reads the finished text, in units of its largest logit."""
    found = []
    for query, completion in zip(QUERIES, completions):
        logits = model(torch.tensor([query + completion]), use_cache=False).logits[0, len(query) - 1 : -1].float()
        chosen = logits.gather(-1, torch.tensor(completion)[:, None])[:, 0]
        found.append((logits.amax(-1) - chosen) / logits.abs().amax(-1))
    return torch.cat(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_is_nearly_the_argmax(family):
    target = toy(family).bfloat16()
    output = speculative_generate(target, perturbed(target, 0.1), QUERIES, max_new_tokens=24, num_draft_tokens=4)
    assert 1.2 < output.stats.acceptance_length < 5
    found = gaps(target, output.completion_ids)
    assert found.max() < 0.03
    assert (found == 0).float().mean() > 0.9
    shifted = [[(token + 1) % 61 for token in row] for row in output.completion_ids]
    assert gaps(target, shifted).median() > 0.3, "the gap must tell another text from this one"
