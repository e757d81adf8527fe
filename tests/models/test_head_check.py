"""Models that are not what losses and rollouts take them for are refused by name, before anything is trained."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    CpmAntConfig,
    ElectraConfig,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma4UnifiedTextConfig,
    GPTNeoXConfig,
    GPTNeoXJapaneseConfig,
    GraniteConfig,
    ModernBertDecoderConfig,
    OpenAIGPTConfig,
    ProphetNetConfig,
    RecurrentGemmaConfig,
    RobertaConfig,
    RwkvConfig,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
)

from lupi_trainer.evaluation.perplexity import perplexity
from lupi_trainer.models.head_check import check_head
from lupi_trainer.speculative import PromptLookup, skd_rollout, speculative_generate
from lupi_trainer.speculative.runners import support
from tests.kd_lora.training import lab_tokenizer, make_kd_trainer
from tests.lupi_skd.training import make_trainer
from tests.speculative.toy_models import toy
from tests.wmtp.training import make_wmtp_trainer


SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
DECODER = {"is_decoder": True, "pad_token_id": 0}


def build(config_class, **changes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**{"vocab_size": 600, **SHAPE, **changes})).float().eval()
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.dim() > 1 else 1
    return model


def recurrent(**changes):
    return build(RecurrentGemmaConfig, num_key_value_heads=1, lru_width=32, head_dim=16, **changes)


def test_a_head_that_is_more_than_lm_head_is_refused():
    for model, said in {
        build(ModernBertDecoderConfig, **IDS): "ModernBertDecoderForCausalLM are not its lm_head",
        build(BertConfig, **DECODER): "BertLMHeadModel are not its lm_head",
        build(RobertaConfig, **DECODER): "RobertaForCausalLM are not its lm_head",
        build(ElectraConfig, **DECODER): "ElectraForCausalLM reads 128 numbers",
        build(BertConfig): "BertLMHeadModel (reads what comes after|are not its lm_head)",
        T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_ff=32, num_layers=1)): "encoder-decoder",
    }.items():
        with pytest.raises(ValueError, match=f"the teacher.*{said}|{said}"):
            check_head(model, "teacher")
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}]
    with pytest.raises(ValueError, match="ModernBertDecoderForCausalLM are not its lm_head"):
        perplexity(build(ModernBertDecoderConfig, **IDS), rows)


def test_a_model_that_looks_ahead_is_refused():
    model = toy("llama")
    check_head(model, "student")
    for layer in model.model.layers:
        forward = layer.forward
        layer.forward = lambda states, *args, forward=forward, **kwargs: forward(
            states + states.mean(1, keepdim=True), *args, **kwargs
        )
    with pytest.raises(ValueError, match="the student LlamaForCausalLM reads what comes after a token"):
        check_head(model, "student")


def test_heads_with_a_scale_or_a_cap_are_computed_right():
    for model in (
        recurrent(logits_soft_cap=0.5),
        build(Gemma2Config, head_dim=16, num_key_value_heads=1, final_logit_softcapping=0.5),
        build(GraniteConfig, num_key_value_heads=1, logits_scaling=3.0),
    ):
        was = [module.training for module in model.modules()]
        check_head(model, "student")
        check_head(model.bfloat16(), "student")
        assert [module.training for module in model.modules()] == was


def test_trainers_refuse_them_at_construction(tmp_path):
    tokenizer = lab_tokenizer()
    folders = {}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), d_model=32, d_ff=32, num_layers=1))
    for name, model in {"bert": build(ModernBertDecoderConfig, **IDS, vocab_size=len(tokenizer)), "t5": t5}.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        folders[name] = str(tmp_path / name)
    for make in (make_trainer, make_kd_trainer):
        for models in ({"model": folders["bert"]}, {"teacher_model": folders["bert"]}):
            role = "teacher" if "teacher_model" in models else "student"
            with pytest.raises(ValueError, match=f"the {role} ModernBertDecoderForCausalLM are not its lm_head"):
                make(tmp_path, **models, peft_config=None)
    with pytest.raises(ValueError, match="the student ModernBertDecoderForCausalLM are not its lm_head"):
        make_wmtp_trainer(tmp_path, model=folders["bert"])
    with pytest.raises(ValueError, match="the reference ModernBertDecoderForCausalLM are not its lm_head"):
        make_wmtp_trainer(tmp_path, "rho1-wmtp", reference_model=folders["bert"])
    for make in (make_trainer, make_kd_trainer):
        with pytest.raises(ValueError, match="the student is a t5 model, an encoder-decoder"):
            make(tmp_path, model=folders["t5"])


PROMPTS = [[5, 6, 7, 9], [8, 9]]


def test_a_rollout_writes_the_models_own_text_or_refuses_the_model(monkeypatch):
    gpt = AutoModelForCausalLM.from_config(OpenAIGPTConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=2)).eval()
    bart = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    prophet = ProphetNetConfig(
        vocab_size=64, hidden_size=32, num_decoder_layers=1, num_decoder_attention_heads=2, decoder_ffn_dim=32
    )
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_ff=32, num_layers=1)).eval()
    japanese = build(GPTNeoXJapaneseConfig, intermediate_multiple_size=2)
    refused = {
        gpt: "OpenAIGPTLMHeadModel keeps no keys and values in the cache",
        build(BertConfig): "BertLMHeadModel is built as an encoder",
        build(RobertaConfig, **DECODER): "RobertaForCausalLM counts its positions from",
        build(BartConfig, **bart): "BartForCausalLM counts positions by the length of its cache",
        t5: "is an encoder-decoder",
        build(CpmAntConfig, dim_head=16, dim_ff=32, prompt_length=2): "CpmAntForCausalLM puts a prompt of its own",
        AutoModelForCausalLM.from_config(prophet): "ProphetNetForCausalLM predicts several tokens ahead",
        build(XLNetConfig, d_inner=32, d_head=16): "XLNetLMHeadModel reads texts in any order",
        japanese: "GPTNeoXJapaneseForCausalLM computes its attention on",
    }
    for model, said in refused.items():
        with pytest.raises(ValueError, match=said):
            skd_rollout(model, model, PROMPTS, PROMPTS, max_new_tokens=4, gamma=2)
        with pytest.raises(ValueError, match=said):
            speculative_generate(model, PromptLookup(), PROMPTS, max_new_tokens=4)
    monkeypatch.setattr(support, "_OWN_WAYS", {})  # as a model whose code nobody has seen
    with pytest.raises(
        ValueError, match="target GPTNeoXJapaneseForCausalLM does not run on the cache of a rollout.*view"
    ):
        speculative_generate(japanese, PromptLookup(), PROMPTS, max_new_tokens=4)
    with pytest.raises(ValueError, match="target BartForCausalLM does not read its positions as it is told to"):
        speculative_generate(build(BartConfig, **bart), PromptLookup(), PROMPTS, max_new_tokens=4)


def test_models_whose_layers_differ_write_their_own_text():
    gemma = {"num_key_value_heads": 1, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
    wide = {"per_layer_config": {1: {"head_dim": 16}}}
    small = {"vocab_size_per_layer_input": 600, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
    for model in (
        build(BertConfig, **DECODER),
        build(GPTNeoXConfig),
        build(Gemma4UnifiedTextConfig, **gemma, **wide),
        build(Gemma3nTextConfig, **gemma, **small, intermediate_size=[48, 32], num_kv_shared_layers=0),
    ):
        texts = speculative_generate(model, PromptLookup(), PROMPTS, max_new_tokens=6, eos_token_id=[]).completion_ids
        for prompt, text in zip(PROMPTS, texts):
            ids = list(prompt)
            for _ in range(6):
                with torch.no_grad():
                    ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            assert ids[len(prompt) :] == text


def test_a_model_that_no_rollout_is_made_with_is_refused_before_it_is_loaded(tmp_path):
    tokenizer = lab_tokenizer()
    RecurrentGemmaConfig(vocab_size=len(tokenizer), hidden_size=32).save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    assert not list((tmp_path / "own").glob("*.safetensors"))
    for models in ({"model": str(tmp_path / "own")}, {"teacher_model": str(tmp_path / "own")}):
        role = "teacher" if "teacher_model" in models else "student"
        said = rf"the {role} RecurrentGemmaForCausalLM keeps a state of its own.*; rollout_policy 'student' and"
        with pytest.raises(ValueError, match=said):
            make_trainer(tmp_path, **models)


def test_a_model_that_divides_its_weights_is_neither_a_student_nor_touched(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(lab_tokenizer()), "hidden_size": 32, "num_hidden_layers": 4, "rescale_every": 2}
    model = AutoModelForCausalLM.from_config(RwkvConfig(**sizes))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = "is a rwkv model, which in eval mode divides the weights of its layers .*rescale_every=2"
    for given in ({"model": model, "peft_config": None}, {"teacher_model": model}):
        with pytest.raises(ValueError, match=said):
            make_kd_trainer(tmp_path, processing_class=lab_tokenizer(), **given)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
