"""A run in half precision says how much of its texts hung on rounding, and repeats itself where it is to."""

import pytest
import torch

from tests.lupi_skd.training import make_config, make_trainer


def train(folder, **options):
    trainer, losses = make_trainer(folder, config_max_steps=2, config_max_completion_length=8, **options)
    trainer.model.to(torch.bfloat16)
    trainer.teacher_model.to(torch.bfloat16)
    trainer.train()
    return trainer, losses.logs


def test_close_calls_are_logged(tmp_path):
    _, logs = train(tmp_path)
    shares = [log["rollout/close_calls"] for log in logs[:2]]
    assert 0 < sum(shares) and max(shares) < 0.5


def test_in_float32_there_are_none_to_log(tmp_path):
    trainer, losses = make_trainer(tmp_path, config_max_steps=1, config_max_completion_length=4)
    trainer.train()
    assert "rollout/close_calls" not in losses.logs[0]


def test_a_deterministic_run_repeats_itself(tmp_path):
    options = {"config_deterministic": True, "config_gamma_policy": "adaptive", "config_max_slots": 3}
    (one, logs), (other, again) = (train(tmp_path / name, **options) for name in "ab")
    assert [log.get("loss") for log in logs] == [log.get("loss") for log in again]
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma_policy": "goodput"}, "does not go with gamma_policy='goodput', which follows measured seconds"),
        ({"teacher_prompt_cache_mb": 8}, "does not go with teacher_prompt_cache_mb=8: a resumed run"),
        ({"teacher_model_server_url": "http://127.0.0.1:9"}, "does not go with a teacher on a server"),
    ],
    ids=["goodput", "cache", "server"],
)
def test_what_depends_on_more_than_the_settings_is_refused(tmp_path, options, words):
    make_config(tmp_path, **options)
    with pytest.raises(ValueError, match=f"deterministic: true {words}"):
        make_config(tmp_path, deterministic=True, **options)
