import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from lupi_trainer.lab import resolve_model
from tests.kd_lora.training import make_kd_trainer
from tests.training.test_given_data import make_sft_trainer
from tests.wmtp.training import make_wmtp_trainer


@pytest.fixture
def padded(tmp_path, student, tokenizer):
    """(student, teacher, template): folders with embeddings padded far beyond the tokenizer; another template."""
    for name, path in (("student", "lab:student"), ("teacher", "lab:teacher")):
        model = AutoModelForCausalLM.from_pretrained(resolve_model(path))
        model.resize_token_embeddings(1024, mean_resizing=False)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    tokenizer.chat_template = "{# another #}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "template")
    return tuple(str(tmp_path / name) for name in ("student", "teacher", "template"))


def test_another_models_template_leaves_padded_embeddings_as_they_are(tmp_path, padded):
    student, teacher, template = padded
    trainer, _ = make_kd_trainer(tmp_path, model=student, teacher_model=teacher, config_chat_template_path=template)
    assert trainer.model.config.vocab_size == trainer.shared_vocab_size == 1024
    assert trainer.processing_class.chat_template.startswith("{# another #}")
    assert len(trainer.processing_class) < 1024
    trainer.train()
    of_sft = {"model_args": ModelConfig(student), "config_chat_template_path": template}
    for trainer, _ in (
        make_wmtp_trainer(tmp_path, model=student, config_chat_template_path=template),
        make_sft_trainer(tmp_path, **of_sft),
    ):
        assert trainer.model.config.vocab_size == 1024
        assert trainer.processing_class.chat_template.startswith("{# another #}")


def test_a_template_whose_tokens_would_cut_the_embeddings_is_refused(tmp_path, padded):
    student, teacher, template = padded
    source = AutoTokenizer.from_pretrained(template)
    source.add_special_tokens({"additional_special_tokens": ["<|think|>"]})
    source.save_pretrained(template)
    with pytest.raises(ValueError, match=r"has 1 tokens that .* lacks \('<.think.>', ...\).* cut the student's 1024"):
        make_kd_trainer(tmp_path, model=student, teacher_model=teacher, config_chat_template_path=template)
    for missing in (f"{tmp_path}/none.jinja", f"{tmp_path}/nowhere", "lab:nobody", str(tmp_path)):
        for make in (make_kd_trainer, make_wmtp_trainer, make_sft_trainer):
            with pytest.raises((OSError, ValueError), match=f"chat_template_path: {missing} is neither the file of a"):
                make(tmp_path, config_chat_template_path=missing)
    file = tmp_path / "broken.jinja"
    for content in (b"{% for m in messages %}", b"\xff\xfe{{ messages }}", b" \n"):
        file.write_bytes(content)
        for make in (make_kd_trainer, make_wmtp_trainer, make_sft_trainer):
            with pytest.raises(ValueError, match=f"chat_template_path: {file} is no template: "):
                make(tmp_path, config_chat_template_path=str(file))
    source.chat_template = None
    source.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="chat_template_path: .*bare has no chat template"):
        make_kd_trainer(
            tmp_path, model=student, teacher_model=teacher, config_chat_template_path=str(tmp_path / "bare")
        )
