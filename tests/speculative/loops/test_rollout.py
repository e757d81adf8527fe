"""Every way of making a rollout equals the reference, token by token and writer by writer."""

import pytest
import torch

from lupi_trainer.speculative import TopK, skd_rollout
from tests.speculative.reference import reference_rollout
from tests.speculative.scene import LIMIT, RULE, Scene
from tests.speculative.toy_models import FAMILIES, MORE_FAMILIES, perturbed, prompts, toy


# every pair of a family, a gamma, a verification and a policy
CELLS = [
    (family, gamma, ("parallel", "sequential")[(f + g) % 2], ("fixed", "adaptive", "goodput")[(f + g) % 3])
    for f, family in enumerate(FAMILIES)
    for g, gamma in enumerate((1, 2, 3, 5, 8, 20))
]


@pytest.fixture(scope="module", params=FAMILIES)
def scene(request):
    return Scene(request.param)


@pytest.fixture(scope="module")
def gpt2():
    """Absolute positions: rotary ones hide a shift of an entire row."""
    return Scene("gpt2")


def test_the_scene_ends_rows_in_both_ways(scene):
    assert {len(row) == LIMIT for row in scene.tokens} == {True, False}


@pytest.mark.parametrize(("scene", "gamma", "verification", "policy"), CELLS, indirect=["scene"])
@pytest.mark.grid(4)
def test_gamma_verification_and_policy(scene, gamma, verification, policy):
    rollout = scene.roll(gamma=gamma, verification=verification, gamma_policy=policy)
    scene.check(rollout)
    assert policy == "fixed" or gamma < 5 or len(set(rollout.stats.gamma_history)) > 1


class Always:
    """Wants the same length in every round."""

    def __init__(self, gamma):
        self.gamma = gamma

    def choose(self, remaining, waiting):
        return self.gamma

    def observe(self, gamma, outcomes, seconds):
        pass


@pytest.mark.parametrize(
    "wanted, words",
    [
        (0, "at least 1, got 0"),
        (-1, "at least 1, got -1"),
        (2.0, "an integer, got 2.0"),
        (None, "an integer, got None"),
    ],
)
def test_a_policy_that_chooses_no_length_is_named(gpt2, wanted, words):
    with pytest.raises(ValueError, match=rf"Always.choose\(\) must be {words}"):
        gpt2.roll(gamma_policy=Always(wanted))


def test_a_policy_chooses_at_most_gamma(gpt2):
    rollout = gpt2.roll(gamma=3, gamma_policy=Always(9))
    gpt2.check(rollout)
    assert max(rollout.stats.gamma_history) == 3


@pytest.mark.parametrize("rows", [[4], [6, 0, 3], [7, 6, 5, 4, 3, 2, 1, 0]])
@pytest.mark.grid(3)
def test_batch_and_order(scene, rows):
    scene.check(scene.roll(rows, gamma=4), rows)


@pytest.mark.parametrize("slots", [1, 3, 4])
@pytest.mark.grid(3)
def test_slots(scene, slots):
    scene.check(scene.roll(gamma=3, max_slots=slots))


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_other_families(family):
    other = Scene(family)
    other.check(other.roll(gamma=4, max_slots=3))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.grid(3)
def test_eager_attention(family):
    eager = Scene(family, attention="eager")
    eager.check(eager.roll(gamma=4, max_slots=5))


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_teacher_prompts_exactly_four_hundred_tokens_longer(family):
    teacher = toy(family)
    student = perturbed(teacher, 0.1)
    queries = prompts(3, 2, 9, seed=1)
    informed = [k + q for k, q in zip(prompts(3, 400, 400, seed=2), queries)]
    expected = reference_rollout(student, teacher, queries, informed, max_new_tokens=10, acceptance=RULE)
    rollout = skd_rollout(student, teacher, queries, informed, max_new_tokens=10, acceptance=RULE, gamma=5)
    assert (rollout.completion_ids, rollout.from_teacher) == tuple(expected[:2])


@pytest.mark.parametrize("temperatures", [(0.0, 0.0), (0.0, 1.3), (1.0, 0.0)])
def test_temperatures(temperatures):
    student_temperature, teacher_temperature = temperatures
    other = Scene(
        "qwen3",
        rule=TopK(8, 0.0),
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )
    other.check(other.roll(gamma=4))


def test_seed_changes_the_rollout(gpt2):
    assert gpt2.roll(seed=1).completion_ids != gpt2.tokens


def test_a_limit_that_is_no_multiple_of_gamma_is_kept(gpt2):
    rollout = gpt2.roll(gamma=8, max_new_tokens=11, eos_token_id=None)
    expected, _, _ = reference_rollout(gpt2.student, gpt2.teacher, *gpt2.prompts, max_new_tokens=11, acceptance=RULE)
    assert rollout.completion_ids == expected


def test_the_last_position_of_a_model_can_be_used():
    teacher = toy("gpt2", positions=24)
    student = perturbed(teacher, 0.1)
    queries = [[3, 4, 5, 6], [9]]
    knowledge = [list(range(10, 20)) + q for q in queries]
    expected, _, _ = reference_rollout(student, teacher, queries, knowledge, max_new_tokens=10)
    assert skd_rollout(student, teacher, queries, knowledge, max_new_tokens=10, gamma=7).completion_ids == expected


def test_teacher_hidden_is_what_a_fresh_forward_gives(scene):
    rollout = scene.roll(gamma=5, max_slots=3, return_teacher_hidden=True)
    scene.check(rollout)
    for ours, theirs in zip(rollout.teacher_hidden, scene.hidden):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_teacher_hidden_is_what_lm_head_read(scene):
    rollout = scene.roll([5], gamma=5, return_teacher_hidden=True)
    context = scene.prompts[1][5] + rollout.completion_ids[0]
    with torch.no_grad():
        logits = scene.teacher(torch.tensor([context])).logits[0, len(scene.prompts[1][5]) - 1 : -1]
        torch.testing.assert_close(
            scene.teacher.get_output_embeddings()(rollout.teacher_hidden[0]), logits, atol=1e-4, rtol=1e-4
        )


def test_hidden_states_are_not_kept_unless_wanted(gpt2):
    assert gpt2.roll(gamma=5).teacher_hidden is None


def test_equal_prompts_and_a_common_prefix_change_nothing(scene):
    persona = list(range(3, 30))
    queries = [scene.prompts[0][i] for i in (0, 0, 1, 0, 2, 2)]
    informed = [persona + q for q in queries]
    expected, _, _ = reference_rollout(scene.student, scene.teacher, queries, informed, max_new_tokens=6)
    for slots in (2, 6):
        rollout = skd_rollout(
            scene.student, scene.teacher, queries, informed, max_new_tokens=6, gamma=3, max_slots=slots
        )
        assert rollout.completion_ids == expected


def test_padded_vocabularies_of_different_sizes():
    """The columns that only one model has are never written, whoever would like to."""
    teacher, student = toy("qwen3", vocab=64), toy("llama", vocab=61)
    with torch.no_grad():
        teacher.lm_head.weight[61:] = 10 * teacher.lm_head.weight[:3]
    queries = prompts(3, 2, 5)
    rollout = skd_rollout(student, teacher, queries, queries, max_new_tokens=8, acceptance=TopK(1, 0.9))
    expected, _, _ = reference_rollout(student, teacher, queries, queries, max_new_tokens=8, acceptance=TopK(1, 0.9))
    assert rollout.completion_ids == expected
    narrow = skd_rollout(student, teacher, queries, queries, max_new_tokens=8, vocab_size=60)
    assert max(max(row) for row in narrow.completion_ids) < 60
