"""Logits that are no distribution: the target's stop the decoding, the draft's end its proposal."""

from contextlib import contextmanager

import pytest

from lupi_trainer.speculative import speculative_generate
from tests.speculative.loops.test_decoder_sampling import chi_square, pair
from tests.speculative.toy_models import prompts, toy


LIMIT = 12
PROMPTS = prompts(2, 4, 6, seed=1)


@contextmanager
def spoilt(model, token, value=float("nan")):
    """Inside, the model's logits are broken wherever it has just read `token`."""

    def spoil(module, args, kwargs, output):
        output.logits[kwargs["input_ids"][:, -output.logits.shape[1] :] == token] = value
        return output

    hook = model.register_forward_hook(spoil, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def write(target, draft, **options):
    options = {"max_new_tokens": LIMIT, "num_draft_tokens": 3, **options}
    return speculative_generate(target, draft, PROMPTS, **options).completion_ids


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.8}, {"temperature": 0.8, "block_verification": False, "top_p": 0.9}]
)
@pytest.mark.grid(3)
def test_the_target_must_have_a_distribution_where_it_writes(options, value):
    target = toy("qwen3")
    for draft in (target, toy("llama", seed=9)):  # after an accepted token, and after its own
        texts = write(target, draft, **options)
        ends = {prompt[-1] for prompt in PROMPTS}
        token = next(t for t in texts[1][2:-1] if t not in {*texts[0], *ends})
        after = texts[1].index(token) + 1
        with spoilt(target, token, value):
            with pytest.raises(FloatingPointError, match=f"row 1: the target's logits after {after} new tokens"):
                write(target, draft, **options)
            ended = write(target, draft, **options, eos_token_id=token)
        assert ended == [texts[0], texts[1][:after]], "nothing is asked of it after a row's end"


def test_broken_numbers_after_a_rejected_token_do_not_count():
    target, draft = toy("qwen3"), toy("llama", seed=9)
    texts = write(target, draft)
    proposed = write(draft, draft)
    token = next(t for t in proposed[0][:3] if t not in {*sum(texts, []), *sum(PROMPTS, [])})
    with spoilt(target, token):
        assert write(target, draft) == texts


def test_a_draft_whose_numbers_break_costs_speed_alone():
    target = toy("qwen3")
    texts = write(target, target)
    draft = toy("qwen3")  # the same weights
    with spoilt(draft, texts[0][1]):
        output = speculative_generate(target, draft, PROMPTS, max_new_tokens=LIMIT, num_draft_tokens=3)
    assert output.completion_ids == texts
    assert output.stats.accepted == output.stats.drafted < 3 * output.stats.blocks


@pytest.mark.parametrize("block", [False, True])
def test_a_draft_whose_numbers_break_keeps_the_law(block):
    with spoilt(pair()[1], 5):
        pvalue, stats = chi_square({"temperature": 1.0}, 3, block, rows=5_000, full=False)
    assert pvalue > 1e-3 and stats.drafted < 0.9 * 3 * stats.blocks
