"""`lupi sft`, and what `lupi wmtp` has in common with it."""

import json

import pytest

from lupi_trainer.scripts import sft, wmtp
from lupi_trainer.scripts.recipe_parser import RecipeError
from tests.kd_lora.training import lab_tokenizer


def test_the_chat_template_has_the_keyword_arguments_of_the_recipe_or_the_command_line(thinker, tmp_path):
    records, recipe = tmp_path / "records.json", tmp_path / "recipe.yaml"
    records.write_text(json.dumps([{"query": "What is Zuvi's capital?", "answer": "It is Tamo."}] * 2))
    recipe.write_text("chat_template_kwargs: {think: false}")
    run = ["--model_name_or_path", thinker, "--dataset_name", str(records), "--eval_dataset_name", str(records)]
    run += ["--output_dir", str(tmp_path / "run"), "--bf16", "false", "--use_cpu", "true"]

    def build(*arguments):
        return sft.build_trainer(*sft.make_parser().parse_args_and_config([*run, *arguments]))

    messages = [
        {"role": "user", "content": "What is Zuvi's capital?"},
        {"role": "assistant", "content": "It is Tamo."},
    ]
    wanted = lab_tokenizer().apply_chat_template(messages, return_dict=True)["input_ids"]
    for given in (["--config", str(recipe)], ["--chat_template_kwargs", '{"think": false}']):
        trainer = build(*given)
        assert trainer.train_dataset[0]["input_ids"] == trainer.eval_dataset[0]["input_ids"] == wanted
    with pytest.raises(Exception, match="it thinks"):
        build()
    arguments = [*run, "--algo", "mtp-baseline", "--chat_template_kwargs", '{"think": false}']
    trainer = wmtp.build_trainer(*wmtp.make_parser().parse_args_and_config(arguments))
    assert list(trainer.train_dataset[0]["input_ids"]) == wanted
    for text, said in (("{", "not valid JSON"), ("[1]", "expected a JSON object")):
        with pytest.raises(RecipeError, match=f"chat_template_kwargs: {said}"):
            build("--chat_template_kwargs", text)
