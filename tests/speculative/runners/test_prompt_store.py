"""A `PromptStore` changes what is read, and never what is written."""

import pytest
import torch

from lupi_trainer.speculative import AcceptNone, skd_rollout
from lupi_trainer.speculative.runners.cache import Entry
from lupi_trainer.speculative.runners.prefill import Prefill
from lupi_trainer.speculative.runners.prompt_store import PromptStore
from lupi_trainer.speculative.runners.support import head_width, largest
from tests.families.tiny import families, pair, small
from tests.speculative.reference import reference_rollout
from tests.speculative.runners.test_kernels import on_cpu  # noqa: F401
from tests.speculative.scene import RULE, Scene
from tests.speculative.toy_models import perturbed, prompts, toy


@pytest.fixture
def read(monkeypatch):
    """The parts of prompts that are read, of student and teacher, as they are read: (stored, first token, tokens)."""
    parts, before = [], Prefill._read

    def counting(self, slots, texts, start):
        parts.extend((self.store is not None, start, tuple(text)) for text in texts)
        return before(self, slots, texts, start)

    monkeypatch.setattr(Prefill, "_read", counting)
    return parts


def of_teacher(read) -> list[tuple[int, tuple[int, ...]]]:
    found = [(start, text) for stored, start, text in read if stored]
    read.clear()
    return found


def token_bytes(model) -> int:
    """Of keys and values of one token: layers, keys and values, heads, their width, bytes of float32."""
    config = model.config
    heads = largest(config, "num_key_value_heads") or config.num_attention_heads
    return config.num_hidden_layers * 2 * heads * head_width(config) * 4


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
@pytest.mark.grid(2)
def test_prompts_are_read_once_and_the_texts_are_the_same(family, read):
    scene, store = Scene(family), PromptStore(1 << 20)
    for options in ({}, {"max_slots": 3}, {"rows": [6, 2]}, {"acceptance": AcceptNone()}):
        expected = scene.roll(**options)
        got = scene.roll(**options, teacher_prompt_store=store, return_teacher_hidden=True)
        assert got.completion_ids == expected.completion_ids and got.from_teacher == expected.from_teacher
    assert sorted(of_teacher(read)) == sorted({(0, tuple(prompt[:-1])) for prompt in scene.prompts[1]})


@pytest.mark.slow
def test_a_compiled_loop_takes_them_too(tracing, read):
    scene, store = Scene("llama"), PromptStore(1 << 20)
    for _ in range(2):
        scene.check(scene.roll(compile=True, teacher_prompt_store=store))
    assert len(of_teacher(read)) == len(scene.tokens)


PERSONA = list(range(3, 35))  # 32 tokens that all share
EXAMPLES = [list(range(20, 45)), list(range(45, 20, -1))]  # 25 behind it that some share
OWN = prompts(8, 2, 9, seed=5)
INFORMED = [PERSONA + EXAMPLES[row % 2] + [46 + row] + own for row, own in enumerate(OWN)]
BATCHES = [[0, 2], [1, 3], [4, 5, 6], [7]]


def epoch(student, teacher, expected, store) -> None:
    for rows in BATCHES:
        chosen = [[column[row] for row in rows] for column in (OWN, INFORMED)]
        given = {"max_new_tokens": 6, "acceptance": RULE, "gamma": 3, "row_ids": rows, "teacher_prompt_store": store}
        assert skd_rollout(student, teacher, *chosen, **given).completion_ids == [expected[row] for row in rows]


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2", "lfm2", "falcon_h1"])
def models(request):
    if request.param in ("lfm2", "falcon_h1"):
        return (*pair(small(families()[request.param])), True)
    teacher = toy(request.param)
    return perturbed(teacher, 0.1), teacher, False


def test_what_prompts_share_is_read_and_kept_once_a_run(models, read):
    """Whatever batches they come in: the persona, examples of some, and each prompt's own rest."""
    student, teacher, recurrent = models
    expected = reference_rollout(student, teacher, OWN, INFORMED, max_new_tokens=6, acceptance=RULE)[0]
    store = PromptStore(1 << 24)
    epoch(student, teacher, expected, store)
    first = of_teacher(read)
    shared = {tuple(prompt[:n]) for prompt in INFORMED for n in range(1, len(prompt))}
    if not recurrent:
        assert sum(len(text) for _, text in first) == len(shared), "each token behind the same ones once"
        assert store.bytes == token_bytes(teacher) * len(shared)
    else:  # a state leads on from the end of what was read at once: of the first batches' prefixes alone
        assert sum(len(text) for _, text in first) < sum(map(len, INFORMED))
    kept = store.bytes
    for _ in range(2):
        epoch(student, teacher, expected, store)
        assert not of_teacher(read) and store.bytes == kept


def test_kernels_that_take_lengths_read_on_behind_what_is_kept(read, on_cpu):  # noqa: F811
    teacher = toy("llama")
    student = perturbed(teacher, 0.1)
    expected = reference_rollout(student, teacher, OWN, INFORMED, max_new_tokens=6, acceptance=RULE)[0]
    store = PromptStore(1 << 24)
    epoch(student, teacher, expected, store)
    assert {start for start, _ in of_teacher(read)} > {0, len(PERSONA)}
    epoch(student, teacher, expected, store)
    assert not of_teacher(read)


def test_a_prefix_that_batches_share_is_read_once_a_run_with_states(read):
    student, teacher = pair(small(families()["qwen3_5_text"]))
    texts = [PERSONA + [40 + row] + own for row, own in enumerate(OWN)]
    expected = reference_rollout(student, teacher, OWN, texts, max_new_tokens=4, acceptance=RULE)[0]
    store = PromptStore(1 << 24)
    for turn in range(2):
        for rows in ([0, 1], [2, 3, 4], [5, 6, 7]):
            chosen = [[column[row] for row in rows] for column in (OWN, texts)]
            given = {"max_new_tokens": 4, "acceptance": RULE, "row_ids": rows, "teacher_prompt_store": store}
            assert skd_rollout(student, teacher, *chosen, **given).completion_ids == [expected[r] for r in rows]
        found = of_teacher(read)
        assert sorted(text for start, text in found if start == 0) == [tuple(PERSONA)] * (turn == 0)
        assert sorted(len(text) for start, text in found if start) == sorted(map(len, OWN)) * (turn == 0)


def test_what_was_used_last_is_kept_within_the_limit(read):
    scene = Scene("llama")
    bytes_of = [token_bytes(scene.teacher) * (len(p) - 1) for p in scene.prompts[1]]
    texts = [p[:-1] for p in scene.prompts[1]]

    def kept(row: int) -> bool:
        return sum(length for _, length in store._path(texts[row])) == len(texts[row])

    store = PromptStore(bytes_of[0] + bytes_of[1])
    for row in (0, 1, 0):
        scene.roll([row], teacher_prompt_store=store)
    assert kept(0) and kept(1) and store.bytes == sum(bytes_of[:2])
    scene.roll([2], teacher_prompt_store=store)
    assert store.bytes <= store.most_bytes and kept(2) and not kept(1)
    small_one = PromptStore(1)
    scene.check(scene.roll(teacher_prompt_store=small_one))
    assert not small_one.used and not small_one.bytes


def test_a_tree_keeps_the_numbers_of_the_texts_last_used():
    """Random texts of few tokens, which share much, beside a list of them by their use."""
    generator = torch.Generator().manual_seed(0)
    store, numbers = PromptStore(40 * 2 * 4), {}

    def copied(text):
        def copy(start, end):
            own = [numbers.setdefault(text[: n + 1], len(numbers)) for n in range(start, end)]
            return Entry([(torch.tensor(own), torch.tensor(own))], [])

        return copy

    for _ in range(400):
        length = int(torch.randint(1, 12, (1,), generator=generator))
        text = tuple(torch.randint(0, 3, (length,), generator=generator).tolist())
        parts = store.find(text)
        for part in parts:
            here = [numbers[text[: n + 1]] for n in range(part.start, part.end)]
            assert part.entry.pairs[0][0][: part.end - part.start].tolist() == here
        store.put(text, copied(text))
        assert [store.find(text)[-1].end, store.find(text)[0].start] == [length, 0]
        assert store.bytes == sum(node.entry.bytes() for node in store.used) <= store.most_bytes
        below = [len(node.below) for node in store.used]
        assert sum(below) + len(store.roots) == len(store.used) and below[0] == 0


def test_a_store_is_of_one_model_and_kept_states_are_copies():
    scene, store = Scene("llama"), PromptStore(1 << 20)
    scene.roll(teacher_prompt_store=store)
    before = {node: [keys.clone() for keys, _ in node.entry.pairs] for node in store.used}
    scene.roll(teacher_prompt_store=store)
    for node in store.used:
        assert all(torch.equal(keys, old) for (keys, _), old in zip(node.entry.pairs, before[node]))
    with pytest.raises(ValueError, match="holds the prompts of another model"):
        skd_rollout(scene.student, toy("llama"), [[3]], [[4, 5]], max_new_tokens=2, teacher_prompt_store=store)
    with pytest.raises(ValueError, match="at least one byte, got 0"):
        PromptStore(0)
