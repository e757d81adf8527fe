"""The reference model: what it reads, and the selection of tokens by it."""

import pytest

from tests.wmtp.training import SELECTED, make_wmtp_trainer


@pytest.mark.slow
def test_the_reference_reads_a_text_once_if_it_may_keep_what_it_read(tmp_path):
    runs = []
    for _ in range(2):
        trainer, losses = make_wmtp_trainer(
            tmp_path, "rho1-wmtp", config_reference_cache_dir=str(tmp_path / "cache"), config_max_steps=6
        )
        trainer.train()
        runs.append((trainer.reference.forwards, losses.losses))
    assert runs[0][0] == 6 and runs[1][0] == 0
    assert runs[0][1] == pytest.approx(runs[1][1], abs=1e-6)
    plain, losses = make_wmtp_trainer(tmp_path, "rho1-wmtp", config_max_steps=6)
    plain.train()
    assert losses.losses == pytest.approx(runs[0][1], abs=1e-6)
    other, _ = make_wmtp_trainer(
        tmp_path, "rho1-wmtp", reference_model="lab:student", config_reference_cache_dir=str(tmp_path / "cache")
    )
    other.train()
    assert other.reference.forwards == 3, "another reference's figures are its own"


def test_token_selection_as_in_rho_1(tmp_path):
    trainer, losses = make_wmtp_trainer(tmp_path, "rho1-wmtp", config_rho1_share=0.5, **SELECTED)
    trainer.train()
    assert losses.logs[0]["head_weight/1"] == pytest.approx(1.0)
    assert losses.logs[-1]["loss/head_2"] < losses.logs[0]["loss/head_2"]
