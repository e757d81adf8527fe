"""A student as a GGUF file: its weights, its tokenizer and its ends, or a refusal."""

import gguf
import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lupi_trainer.cli import main
from lupi_trainer.lab import load_lab_records
from lupi_trainer.publishing.gguf_file import without_marks
from lupi_trainer.publishing.gguf_vocabulary import UnknownTokenizer, vocabulary
from tests.publishing.test_export import IDS, make_student, save


@pytest.mark.parametrize("kind, tolerance", [("f32", 1e-5), ("f16", 0.02), ("bf16", 0.2), ("q8_0", 0.2)])
def test_a_gguf_file_is_the_student_in_its_type(tmp_path, kind, tolerance):
    trained = make_student(tmp_path / "run", "lora")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--to", "gguf", "--type", kind, "--output", str(out)]) == 0
    read = AutoModelForCausalLM.from_pretrained(out, gguf_file=f"out-{kind}.gguf", dtype=torch.float32)
    with torch.no_grad():
        difference = (read(IDS).logits - trained(IDS).logits).abs().max().item()
    assert difference < tolerance, difference
    fields = gguf.GGUFReader(out / f"out-{kind}.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[fields["tokenizer.ggml.eos_token_id"].contents()] == "<|end|>" and len(tokens) == 568
    template = fields["tokenizer.chat_template"].contents()
    assert "generation %}" not in template and "<|assistant|>" in template
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert "for which the tokenizer has no token as unknown ones" in (out / "README.md").read_text()


FAMILIES = {
    "LlamaConfig": {"head_dim": 32, "attention_bias": True},
    "Qwen2Config": {"use_sliding_window": False},
    "Qwen3Config": {"head_dim": 128},  # transformers reads no other out of a GGUF file
}


def tiny(name: str, tokenizer, **more):
    """A model with random weights and fewer heads of keys than of queries, whose embeddings are not tied."""
    settings = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False}
    ends = {"vocab_size": len(tokenizer), "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": None}
    torch.manual_seed(0)
    config = getattr(transformers, name)(**settings, **ends, initializer_range=0.2, **FAMILIES[name], **more)
    model = AutoModelForCausalLM.from_config(config)
    for one, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if one in {0, 1, 3, 4, 5} or token.startswith("<0x") or "\ufffd" in tokenizer.decode([one]):
            model.lm_head.weight.data[one] = 0  # never written: special tokens, and parts of letters
    return model


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "qwen2": [pre_tokenizers.Split(Regex(WORDS + MARKS), "isolated")],
    "llama-bpe": [pre_tokenizers.Split(Regex(WORDS + "{1,3}" + MARKS), "isolated")],
}


def byte_level(tokenizer, pre: str):
    """A small tokenizer on bytes that splits texts in one of the known ways, with the lab's control tokens."""
    made = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    use_regex = pre in ("gpt-2", "smollm")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    made.pre_tokenizer = pre_tokenizers.Sequence([*SPLITS[pre], last]) if SPLITS[pre] else last
    made.decoder = decoders.ByteLevel()
    special = tokenizer.convert_ids_to_tokens(range(6))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [record["question"] for record in load_lab_records("lab:probes")] + ["I'll say 1234567 and don't!"] * 9
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    ends = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **ends)
    fast.chat_template = tokenizer.chat_template
    return fast


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gguf_file_of_each_family(tmp_path, name, tokenizer):
    tokenizer = tokenizer if name == "LlamaConfig" else byte_level(tokenizer, "qwen2")
    model = tiny(name, tokenizer).eval()
    run = save(tmp_path / "run", model, tokenizer)
    assert main(["export", run, "--to", "gguf", "--type", "f32", "--output", str(tmp_path / "out")]) == 0
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="out-f32.gguf", dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(read(IDS).logits, model(IDS).logits, atol=1e-4)


def test_marks_of_transformers_leave_the_template_with_the_same_prompts(tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    template = "{% for m in messages %}\n {%- generation -%} {{ m.content }} {% endgeneration %}\n{% endfor %}"
    for one in (tokenizer.chat_template, template):
        own, bare = (
            tokenizer.apply_chat_template(messages, chat_template=t, tokenize=False) for t in (one, without_marks(one))
        )
        assert own == bare and "generation" not in without_marks(one).replace("add_generation_prompt", "")


def test_llama_cpps_converter_is_run_and_its_error_is_shown(tmp_path, capsys):
    converter = tmp_path / "convert.py"
    converter.write_text(
        "import pathlib, sys\n"
        "if sys.argv[5] == 'bf16': sys.exit('no such type')\n"
        "files = sorted(path.name for path in pathlib.Path(sys.argv[1]).iterdir())\n"
        "pathlib.Path(sys.argv[3]).write_text(' '.join([*sys.argv[4:], *files]))\n"
    )
    run = ["export", "lab:student", "--to", "gguf", "--converter", str(converter)]
    assert main([*run, "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "out-f16.gguf").read_text().startswith("--outtype f16 chat_template.jinja config.json")
    assert main([*run, "--type", "bf16", "--output", str(tmp_path / "two")]) == 2
    assert f"error: {converter} failed: no such type" in capsys.readouterr().err and not (tmp_path / "two").exists()


@pytest.mark.parametrize("pre", [*SPLITS, None])
def test_a_tokenizer_is_known_or_refused(tokenizer, pre):
    if pre is not None:
        made = byte_level(tokenizer, pre)
        found = vocabulary(made, len(made) + 1)
        assert (found.model, found.pre, found.tokens[2], found.tokens[-1]) == ("gpt2", pre, "<|end|>", "[PAD400]")
        assert found.kinds[:3] == [3, 3, 3] and found.kinds[-2:] == [1, 5]
        return
    assert vocabulary(tokenizer, len(tokenizer)).model == "t5"
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    for change, why in (
        ({"pre_tokenizer": pre_tokenizers.Whitespace()}, "the pre-tokenizer .*Whitespace"),
        ({"pre_tokenizer": digits}, "the pre-tokenizer .*Digits"),
        ({"normalizer": normalizers.Lowercase()}, "the normalizer Lowercase"),
        ({"model": models.WordLevel({"a": 0}, "a")}, "of the kind WordLevel"),
        ({"model": models.BPE()}, "without merges"),
        ({"decoder": decoders.Metaspace()}, "not on bytes"),
    ):
        made = byte_level(tokenizer, "gpt-2")
        for name, value in change.items():
            setattr(made.backend_tokenizer, name, value)
        with pytest.raises(UnknownTokenizer, match=why):
            vocabulary(made, len(made))
    with pytest.raises(UnknownTokenizer, match="with the id 399, of which the model has none"):
        vocabulary(byte_level(tokenizer, "gpt-2"), 399)
