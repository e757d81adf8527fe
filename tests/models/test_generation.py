import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from lupi_trainer.models.generation import eos_token_ids, make_savable
from tests.kd_lora.training import make_kd_trainer
from tests.lupi_skd.training import make_trainer
from tests.speculative.toy_models import toy
from tests.wmtp.training import make_wmtp_trainer


@pytest.mark.parametrize(
    "own, tokenizers, expected",
    [
        (None, None, []),
        (None, 5, [5]),
        (0, None, [0]),
        (7, 5, [5, 7]),
        (-1, 5, [5]),
        ([-1, 7], None, [7]),
        ([7, 2], 7, [2, 7]),
        ((7, 2, 7), 9, [2, 7, 9]),
        (torch.tensor([7, 2]), None, [2, 7]),
        (torch.tensor(7), 5, [5, 7]),
        (np.int64(7), np.int64(5), [5, 7]),
        (np.array([7, 2]), None, [2, 7]),
        ([torch.tensor(7), np.int32(2)], 7, [2, 7]),
    ],
)
def test_ids_of_the_model_and_the_tokenizer_are_gathered_once(own, tokenizers, expected):
    model, tokenizer = toy("llama"), SimpleNamespace(eos_token_id=tokenizers)
    model.generation_config.eos_token_id = own
    assert eos_token_ids(model, tokenizer) == expected
    config = GenerationConfig()
    config.eos_token_id = own
    assert eos_token_ids(config, tokenizer) == expected


def test_without_a_tokenizer_the_models_ids_count_alone():
    assert eos_token_ids(GenerationConfig(eos_token_id=[4, 3])) == [3, 4]


@pytest.mark.parametrize(
    "settings, saved, words",
    [
        (
            {"temperature": 0.9, "top_p": 0.6, "top_k": 7, "min_p": 0.1},
            {},
            r"temperature=0.9 had no effect.*top_p=0.6",
        ),
        ({"typical_p": 0.9, "do_sample": False}, {"do_sample": False}, "typical_p=0.9 had no effect"),
        ({"length_penalty": 2.0, "early_stopping": True}, {}, "length_penalty=2.0 had no effect"),
        (
            {"use_cache": False, "cache_implementation": "static"},
            {"use_cache": False},
            "cache_implementation='static'",
        ),
        ({"output_scores": True, "pad_token_id": -1}, {}, "output_scores=True had no effect"),
        ({"repetition_penalty": np.float32(1.5)}, {"repetition_penalty": 1.5}, "repetition_penalty=.* of another lib"),
        ({"eos_token_id": torch.tensor([2, 5])}, {"eos_token_id": [2, 5]}, "eos_token_id=.* of another library"),
        ({"bad_words_ids": [[np.int64(5)]]}, {"bad_words_ids": [[5]]}, "bad_words_ids=.* of another library"),
        ({"eos_token_id": [2, np.int64(5)]}, {"eos_token_id": [2, 5]}, "eos_token_id=.* of another library"),
    ],
)
def test_an_invalid_generation_config_is_put_right_with_a_warning(tmp_path, settings, saved, words):
    model = toy("llama")
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    with pytest.raises((ValueError, TypeError)):
        model.save_pretrained(tmp_path / "before")
    with pytest.warns(UserWarning, match=f"generation config of LlamaForCausalLM could not be saved.*{words}"):
        make_savable(model)
    model.save_pretrained(tmp_path / "after")
    loaded = GenerationConfig.from_pretrained(tmp_path / "after")
    assert {name: getattr(loaded, name) for name in settings} == dict.fromkeys(settings) | saved
    with warnings.catch_warnings(action="error"):
        make_savable(model)


def test_what_belongs_into_a_generation_config_moves_there(tmp_path):
    model = toy("llama")
    model.config.no_repeat_ngram_size, model.config.temperature = 3, 0.7
    with pytest.raises(ValueError, match="generation parameters are set in the model config"):
        model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no_repeat_ngram_size=3 belongs into it.*temperature=0.7 had no effect"):
        make_savable(model)
    model.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).no_repeat_ngram_size == 3


def test_a_generation_config_that_nobody_can_put_right_is_refused():
    model = toy("llama")
    model.generation_config.num_return_sequences, model.generation_config.top_p = 3, 0.5
    with pytest.raises(ValueError, match="LlamaForCausalLM is invalid, and the model could not be saved.*num_return"):
        make_savable(model)


@pytest.mark.filterwarnings("ignore:the generation config of")
@pytest.mark.parametrize("make", [make_trainer, make_kd_trainer, make_wmtp_trainer])
@pytest.mark.parametrize("own", [np.int64(2), torch.tensor(2), np.array([2, 5]), [np.int32(2), torch.tensor(5)]])
@pytest.mark.grid(4)
def test_trainers_take_ends_that_are_numbers_of_another_library(tmp_path, student, teacher, make, own):
    for model in (student, teacher):
        vars(model.config)["eos_token_id"] = model.generation_config.eos_token_id = own  # past a strict one's checks
    beside = {} if make is make_wmtp_trainer else {"teacher_model": teacher}
    trainer, losses = make(tmp_path, model=student, config_max_steps=1, **beside)
    trainer.train()
    trainer.save_model()
    assert losses.losses[0] > 0
    assert set(eos_token_ids(GenerationConfig.from_pretrained(tmp_path / "run"))) >= {2}
    assert teacher.config.eos_token_id is own


@pytest.mark.parametrize("make", [make_trainer, make_kd_trainer, make_wmtp_trainer])
def test_a_generation_config_that_was_taken_away_is_made_anew(tmp_path, student, teacher, make):
    student.generation_config = teacher.generation_config = None
    beside = {} if make is make_wmtp_trainer else {"teacher_model": teacher}
    trainer, _ = make(tmp_path, model=student, config_max_steps=1, **beside)
    trainer.train()
    trainer.save_model()
    assert GenerationConfig.from_pretrained(tmp_path / "run").eos_token_id is not None
    assert teacher.generation_config is None and eos_token_ids(teacher) == []
