"""Through `model.generate`: the same text as without the draft, at any batch size."""

import functools
import string
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    Lfm2Config,
    LogitsProcessorList,
    MambaConfig,
    MaxLengthCriteria,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    RwkvConfig,
    StoppingCriteria,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria
from transformers.integrations import deepspeed

from lupi_trainer.speculative import Fixed, PromptLookup, SpeculativeOutput, SpeculativeStats, draft_and_verify
from lupi_trainer.speculative.loops import custom_generate
from lupi_trainer.speculative.loops.generate_arguments import Ends, read_sampling
from lupi_trainer.speculative.loops.streaming import Followed
from tests.speculative.toy_models import VOCAB, perturbed, prompts, toy


@pytest.fixture(scope="module")
def target():
    return toy("llama")


@pytest.fixture(scope="module")
def draft(target):
    return perturbed(target, 0.1)


def batch():
    texts = prompts(4, 2, 9, seed=1)
    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_draft_tokens": 2},
        {"draft_model": PromptLookup()},
        {"gamma_policy": "goodput"},
        {"gamma_policy": Fixed(3), "eos_token_id": torch.tensor([7, 15])},
    ],
)
def test_greedy_text_is_that_of_generate(target, draft, options):
    plain = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": [7, 15], "pad_token_id": 0}
    expected = target.generate(**batch(), **plain)
    ours = target.generate(**batch(), **{**plain, "draft_model": draft, **options}, custom_generate=draft_and_verify)
    assert torch.equal(ours, expected)
    assert (expected[:, -1] == 0).any(), "some rows must end early"


def test_penalty_and_lengths_are_honored(target, draft):
    one = {"input_ids": batch()["input_ids"][:1, 2:]}
    plain = {"max_length": 30, "do_sample": False, "repetition_penalty": 1.3, "eos_token_id": None, "pad_token_id": 0}
    expected = target.generate(**one, **plain)
    ours = target.generate(**one, **plain, custom_generate=draft_and_verify, draft_model=draft)
    assert torch.equal(ours, expected) and ours.shape[1] == 30


def test_sampling_takes_its_settings_and_its_seed(target, draft):
    options = {"max_new_tokens": 16, "do_sample": True, "temperature": 0.9, "eos_token_id": None, "pad_token_id": 0}
    options |= {"custom_generate": draft_and_verify, "draft_model": draft}
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(target.generate(**batch(), **options, num_return_sequences=2, return_dict_in_generate=True))
    assert torch.equal(texts[0].sequences, texts[1].sequences)
    assert not torch.equal(texts[0].sequences, texts[2].sequences)
    assert not torch.equal(texts[0].sequences[0], texts[0].sequences[1])
    greedy = target.generate(**batch(), **{**options, "do_sample": False, "temperature": None})
    assert torch.equal(target.generate(**batch(), **options, top_k=1), greedy)


def test_what_is_given_is_passed_on(target, draft, monkeypatch):
    seen = {}

    def generate(*args, **options):
        seen.update(options)
        return SpeculativeOutput([[5]] * 4, SpeculativeStats())

    monkeypatch.setattr(custom_generate, "speculative_generate", generate)
    options = {"compile": True, "gamma_policy": "goodput", "num_draft_tokens": 3, "block_verification": False}
    target.generate(**batch(), max_new_tokens=4, custom_generate=draft_and_verify, draft_model=draft, **options)
    assert options.items() <= seen.items()


GREEDY = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": [7, 15], "pad_token_id": 0}


def both(target, draft, **options):
    """The text of `generate` and the drafted one, asked for in the same words."""
    plain = target.generate(**options)
    return plain, target.generate(**options, custom_generate=draft_and_verify, draft_model=draft)


@pytest.mark.parametrize(
    "options",
    [
        {"stopping_criteria": [MaxLengthCriteria(14)]},
        {"stopping_criteria": [MaxLengthCriteria(40)]},  # instead of that of max_new_tokens
        {"stopping_criteria": [MaxLengthCriteria(2)]},  # which the prompts reach
        {"stopping_criteria": [EosTokenCriteria([11, 5, 20])]},
        {"stopping_criteria": [EosTokenCriteria([11]), EosTokenCriteria([5, 20]), MaxLengthCriteria(20)]},
        {"logits_processor": [TemperatureLogitsWarper(0.3), TopKLogitsWarper(4), TopPLogitsWarper(0.5)]},
        {"position_ids": "counted", "use_cache": False},
        {"generation_config": GenerationConfig(**GREEDY, penalty_alpha=0.6, top_k=1), "eos_token_id": [11]},
    ],
)
def test_what_is_asked_for_is_followed(target, draft, options):
    if options.get("position_ids") == "counted":
        options = options | {"position_ids": batch()["attention_mask"].cumsum(1) - 1}
    options = {k: LogitsProcessorList(v) if k == "logits_processor" else v for k, v in options.items()}
    plain, ours = both(target, draft, **batch(), **(options if "generation_config" in options else GREEDY | options))
    assert torch.equal(plain, ours)


def test_a_penalty_counts_what_generate_counts(target, draft):
    """Newer transformers leave padding out, older ones count it, which is refused."""
    one = {"input_ids": batch()["input_ids"][:1, 2:]}
    asked = {**GREEDY, "logits_processor": [RepetitionPenaltyLogitsProcessor(1.5, prompt_ignore_length=2)]}
    with pytest.raises(ValueError, match="Penalty.* with prompt_ignore_length=2"):
        target.generate(**one, **asked, custom_generate=draft_and_verify, draft_model=draft)
    warper = LogitsProcessorList([TemperatureLogitsWarper(3.0)])
    assert torch.equal(*both(target, draft, **one, **GREEDY, repetition_penalty=1.5, logits_processor=warper))
    try:
        plain, ours = both(target, draft, **batch(), **GREEDY, repetition_penalty=1.5)
    except ValueError as error:
        assert "prompt_ignore_length" in str(error)
    else:
        assert torch.equal(plain, ours)


def padding_ignored(penalty):
    """As newer transformers make it for two rows, the second with two tokens of padding."""
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    processor.prompt_ignore_length = torch.tensor([0, 2])
    return processor


@pytest.mark.parametrize(
    ("processors", "words"),
    [
        ([TopPLogitsWarper(0.5), TopKLogitsWarper(4)], "TopK.* after top_p"),
        ([TopPLogitsWarper(0.5), TemperatureLogitsWarper(0.5)], "Temperature.* after top_p"),
        ([TopPLogitsWarper(0.5), TopPLogitsWarper(0.5)], "TopP.* after top_p"),
        ([TopPLogitsWarper(0.5, min_tokens_to_keep=2)], "TopP.* with min_tokens_to_keep=2"),
        ([TopPLogitsWarper(0.5, filter_value=-1e4)], "TopP.* with filter_value=-10000"),
        ([TopKLogitsWarper(5, filter_value=0.0)], "TopK.* with filter_value=0"),
        ([RepetitionPenaltyLogitsProcessor(1.2, prompt_ignore_length=1)], "Penalty.* with prompt_ignore_length=1"),
        ([RepetitionPenaltyLogitsProcessor(1.2)], "Penalty.* with prompt_ignore_length=0"),
        (
            [
                padding_ignored(1.2),
                TopKLogitsWarper(9),
                TemperatureLogitsWarper(0.5),
                padding_ignored(1.2),
            ],
            "Penalty.* after top_k",
        ),
        (
            [
                TemperatureLogitsWarper(0.5),
                padding_ignored(1.25),
                TopKLogitsWarper(9),
                TemperatureLogitsWarper(0.5),
                TopKLogitsWarper(4, min_tokens_to_keep=6),
                TopPLogitsWarper(0.5),
            ],
            {"temperature": 0.25, "repetition_penalty": 1.25, "top_k": 6, "top_p": 0.5},
        ),
    ],
)
def test_processors_in_an_order_and_with_options_that_drafting_has(processors, words):
    if isinstance(words, dict):
        assert read_sampling(LogitsProcessorList(processors), True, [0, 2]) == words
        return
    with pytest.raises(ValueError, match=words):
        read_sampling(LogitsProcessorList(processors), True, [0, 2])


LETTERS = (string.digits + string.ascii_letters)[:VOCAB]  # 61 of them, a token each


@pytest.fixture(scope="module")
def tokenizer():
    letters = Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters, pad_token=LETTERS[0])


@pytest.mark.parametrize("wrapped", [False, True])
def test_strings_end_texts_and_blocks_are_streamed(target, draft, tokenizer, wrapped):
    way = functools.partial(draft_and_verify, draft_model=draft) if wrapped else draft_and_verify
    options = {"custom_generate": way} | ({} if wrapped else {"draft_model": draft})
    plain = target.generate(**batch(), **GREEDY)
    ends = [tokenizer.decode(row[12:14]) for row in plain if 0 not in row[12:14]]
    asked = {**batch(), **GREEDY, "stop_strings": ends, "tokenizer": tokenizer}
    expected = target.generate(**asked)
    assert 11 < expected.shape[1] < plain.shape[1] and (expected[:, -1] == 0).any(), "rows must end at strings"
    assert torch.equal(target.generate(**asked, **options), expected)
    with pytest.raises(ValueError, match="could not locate a tokenizer"):
        target.generate(**{**asked, "tokenizer": None}, **options)
    with pytest.raises(ValueError, match="stop_strings in several rows only with an eos_token_id"):
        target.generate(**{**asked, "eos_token_id": None}, **options)

    class Recorder:
        def __init__(self):
            self.parts, self.ended = [], 0

        def put(self, value):
            self.parts.append(value.clone())

        def end(self):
            self.ended += 1

    theirs, ours = Recorder(), Recorder()
    target.generate(**asked, streamer=theirs)
    target.generate(**asked, **options, streamer=ours)
    assert ours.ended == 1 and len(ours.parts) == len(theirs.parts)
    assert all(map(torch.equal, ours.parts, theirs.parts))


def test_a_streamer_of_text_gets_the_text_while_it_is_written(target, draft, tokenizer):
    one, streamer = {"input_ids": torch.tensor([[5, 9, 31]])}, TextIteratorStreamer(tokenizer, skip_prompt=True)
    plain, ours = both(target, draft, **one, **{**GREEDY, "eos_token_id": None}, streamer=streamer)
    pieces = list(streamer)
    assert "".join(pieces) == tokenizer.decode(ours[0, 3:]) and len(pieces) > 2
    assert torch.equal(plain, ours)


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


def filled(target):
    cache = DynamicCache(config=target.config)
    target(**batch(), past_key_values=cache)
    return cache


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draft_model": None}, "draft_model is missing"),
        ({"min_new_tokens": 3}, "cannot follow MinLength|cannot follow MinNew"),
        ({"no_repeat_ngram_size": 2}, "cannot follow NoRepeatNGram"),
        ({"num_beams": 2}, "num_beams=2"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha=0.6"),
        ({"dola_layers": "low"}, "dola_layers=low"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
        ({"assistant_early_exit": 1}, "search with assistant_early_exit=1:"),
        ({"assistant_model": "draft"}, "assistant_model"),
        ({"synced_gpus": True}, "synced_gpus=True"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"max_time": 10.0}, "cannot follow MaxTime"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores=True"),
        ({"stopping_criteria": [Never()]}, "cannot follow Never"),
        ({"position_ids": lambda m: batch()["attention_mask"].cumsum(1)}, "position_ids"),
        ({"past_key_values": filled}, "neither reads nor fills a cache"),
        ({"past_key_values": lambda m: DynamicCache(config=m.config)}, "neither reads nor fills a cache"),
        ({"attention_mask": lambda m: batch()["attention_mask"].flip(1).bool()}, "padded on the left"),
        ({"attention_mask": lambda m: torch.ones(4, 7).index_fill(1, torch.tensor(4), 0)}, "padded on the left"),
        ({"verification": "token"}, "verification is called block_verification"),
        ({"draft_length": "fixed"}, "draft_length is called gamma_policy now"),
    ],
)
def test_what_cannot_be_honored_is_refused(target, draft, options, words):
    options = {name: value(target) if callable(value) else value for name, value in options.items()}
    if "assistant_model" in options:
        options["assistant_model"] = draft
    options = {"draft_model": draft, "max_new_tokens": 4, "do_sample": False, "eos_token_id": 2, **options}
    with pytest.raises(ValueError, match=words):
        target.generate(**{**batch(), **options}, custom_generate=draft_and_verify, pad_token_id=0)


@pytest.fixture
def of_two_processes():
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    torch.distributed.destroy_process_group()


def test_weights_that_are_sharded_over_processes_are_refused(target, draft, of_two_processes, monkeypatch):
    """As `synced_gpus` is, which `generate` asks for by itself then, unless it is told not to."""
    asked = {**batch(), **GREEDY, "custom_generate": draft_and_verify, "draft_model": draft}
    plain = target.generate(**asked)
    with monkeypatch.context() as zero3:
        stage3 = SimpleNamespace(is_zero3=lambda: True)
        zero3.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", lambda: stage3)
        with pytest.raises(ValueError, match="does not keep processes in step.*that ZeRO-3 or FSDP shards"):
            target.generate(**asked)
        assert torch.equal(target.generate(**asked, synced_gpus=False), plain)
    assert torch.equal(target.generate(**asked), plain)
    monkeypatch.setattr(target, "_is_fsdp_managed_module", True, raising=False)  # as transformers marks it
    with pytest.raises(ValueError, match="does not keep processes in step"):
        target.generate(**asked)


@pytest.mark.parametrize("config", [MambaConfig, RwkvConfig, Lfm2Config], ids=lambda config: config.__name__)
def test_a_model_with_states_drafts_and_verifies_or_is_refused_by_name(target, config):
    """Whatever the cache is called that `generate` makes for it."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    lfm2 = {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2}
    layers = lfm2 if config is Lfm2Config else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**sizes, **layers, initializer_range=0.3)).eval()
    for role, pair in {"target": (model, target), "draft": (target, model)}.items():
        asked = {**batch(), **GREEDY}
        drafted = {**asked, "custom_generate": draft_and_verify, "draft_model": pair[1]}
        if config is RwkvConfig:
            with pytest.raises(ValueError, match=rf"the {role} RwkvForCausalLM keeps a state of its own"):
                pair[0].generate(**drafted)
        else:
            assert torch.equal(pair[0].generate(**drafted), pair[0].generate(**asked))


def test_strings_end_a_block_where_they_end_its_text_token_by_token(tokenizer):
    """Blocks of all lengths, behind texts shorter and longer than what a criterion looks at."""
    text = tokenizer("Fova. The song of Fova is Demi. Its ruler is Gora, and its dish Fimu.")["input_ids"]
    seen = set()
    for strings in (["Demi"], ["i. I", "zzz"], ["Fova. T"], ["ra,", "ong"], ["nowhere"]):
        criterion = StopStringCriteria(tokenizer, strings)
        first = next((n for n in range(2, len(text) + 1) if criterion(torch.tensor([text[:n]]), None).item()), None)
        for size in (1, 2, 5, len(text)):
            followed = Followed(torch.tensor([text[:1]]), Ends(1000, [], [criterion]), pad=0)
            blocks = [text[start : start + size] for start in range(1, len(text), size)]
            ended = [followed(0, block) for block in blocks]
            assert followed.lengths.get(0) == (None if first is None else first - 1)
            assert any(ended) == (first is not None)
        seen.add(first)
    assert len(seen) >= 3 and None in seen
