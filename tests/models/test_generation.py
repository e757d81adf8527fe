from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from lupi_trainer.models.generation import eos_token_ids, use_plain_ids
from tests.speculative.toy_models import toy


@pytest.mark.parametrize(
    "own, tokenizers, expected",
    [
        (None, None, []),
        (None, 5, [5]),
        (0, None, [0]),
        (7, 5, [5, 7]),
        ([7, 2], 7, [2, 7]),
        ((7, 2, 7), 9, [2, 7, 9]),
        (torch.tensor([7, 2]), None, [2, 7]),
        (torch.tensor(7), 5, [5, 7]),
        (np.int64(7), np.int64(5), [5, 7]),
        (np.array([7, 2]), None, [2, 7]),
        ([torch.tensor(7), np.int32(2)], None, [2, 7]),
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


def test_ids_that_cannot_be_saved_become_numbers(tmp_path):
    model = toy("llama")
    config = model.generation_config
    config.eos_token_id, config.pad_token_id, config.bos_token_id = torch.tensor([3, 4]), np.int64(5), (np.int32(6),)
    use_plain_ids(model)
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == ([3, 4], 5, [6])
    config.eos_token_id, config.pad_token_id = torch.tensor(3), None
    use_plain_ids(model)
    assert (config.eos_token_id, config.pad_token_id) == (3, None)
    model.save_pretrained(tmp_path)
