"""Rollouts that go on with the caches and recordings of the one before: equal texts, and nothing recorded again."""

import pytest
import torch

from lupi_trainer.speculative.runners.kept import KeptRunners
from tests.speculative.runners.test_graphs import TapeRecorder, replayed  # noqa: F401
from tests.speculative.scene import Scene
from tests.speculative.toy_models import FAMILIES


FEW = [3, 0, 5]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.grid(2)
def test_the_second_rollout_records_nothing_and_is_the_reference(family, replayed):  # noqa: F811
    scene, kept = Scene(family), KeptRunners()
    options = {"gamma": 4, "max_slots": 5, "compile": True, "kept": kept}
    scene.check(scene.roll(**options))
    first, taken = TapeRecorder.recordings, kept.bytes
    assert first == 2 and len(kept) == 2 and taken > 0
    for rows in (list(range(7, -1, -1)), [3, 0, 5, 1, 6, 2], list(range(8))):
        scene.check(scene.roll(rows, **options), rows)
    assert TapeRecorder.recordings == first and kept.bytes == taken


def test_fewer_rows_are_recorded_once_in_the_same_cache(replayed):  # noqa: F811
    scene, kept = Scene("llama"), KeptRunners()
    options = {"gamma": 4, "compile": True, "kept": kept}
    scene.check(scene.roll(**options))
    whole, taken = TapeRecorder.recordings, kept.bytes
    counts = []
    for _ in range(3):
        scene.check(scene.roll(FEW, **options), FEW)
        scene.check(scene.roll(**options))
        counts.append(TapeRecorder.recordings)
    assert whole < counts[0] == counts[1] == counts[2] and kept.bytes == taken


def test_a_larger_rollout_and_moved_weights_begin_anew(replayed):  # noqa: F811
    scene, kept = Scene("qwen3"), KeptRunners()
    options = {"gamma": 4, "compile": True, "kept": kept}
    scene.check(scene.roll(FEW, max_new_tokens=8, **options) and scene.roll(FEW, **options), FEW)
    small, taken = TapeRecorder.recordings, kept.bytes
    scene.check(scene.roll(**options))
    larger = TapeRecorder.recordings
    assert larger > small and kept.bytes > taken
    with torch.no_grad():
        for weight in scene.student.parameters():
            weight.data = weight.data.clone()
    scene.check(scene.roll(**options))
    assert TapeRecorder.recordings == larger + 1, "of the student alone"


def test_weights_that_are_trained_where_they_are_write_their_own_texts(replayed):  # noqa: F811
    scene, kept = Scene("llama"), KeptRunners()
    options = {"gamma": 4, "compile": True, "kept": kept}
    scene.check(scene.roll(**options))
    recorded = TapeRecorder.recordings
    with torch.no_grad():
        for weight in scene.student.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    changed = scene.roll(**options)
    assert changed.completion_ids != scene.tokens and TapeRecorder.recordings == recorded
    assert changed.completion_ids == scene.roll(gamma=4).completion_ids


def test_a_rollout_that_fails_leaves_nothing(replayed, monkeypatch):  # noqa: F811
    scene, kept = Scene("llama"), KeptRunners()
    options = {"gamma": 4, "compile": True, "kept": kept}
    scene.check(scene.roll(**options))

    def stop(stats):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scene.roll(on_round=stop, **options)
    assert len(kept) == 0
    scene.check(scene.roll(**options))


def test_a_broken_row_leaves_no_number_behind(replayed):  # noqa: F811
    """What is not finite in one rollout would reach the next one's attention as 0 * NaN."""
    scene, kept = Scene("llama"), KeptRunners()
    options = {"gamma": 4, "compile": True, "kept": kept}
    weight = scene.teacher.get_input_embeddings().weight
    token = scene.prompts[1][2][0]
    good = weight.data[token].clone()
    weight.data[token] = torch.nan
    broken = scene.roll(**options).broken
    weight.data[token] = good
    assert broken
    scene.check(scene.roll(**options))


def test_what_is_not_recorded_is_not_kept():
    scene, kept = Scene("llama", rows=3), KeptRunners()
    scene.check(scene.roll(gamma=4, kept=kept))
    assert len(kept) == 0
