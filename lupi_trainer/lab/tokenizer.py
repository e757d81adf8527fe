"""The lab's tokenizer: complete words, syllables of invented names, bytes for everything else; and a chat template."""

import re

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .world import LONG, PERSONA, RELATIONS, SHORT, SYLLABLES, Island


PAD, END = "<|pad|>", "<|end|>"
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{ raise_exception('unknown role ' + message['role']) }}"
    "{%- endif -%}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{%- else -%}"
    "{{ message['content'] + '<|end|>' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def words() -> list[str]:
    """Every word that the world's sentences are built from, in a fixed order."""
    island = Island("", dict.fromkeys(RELATIONS, ""))
    text = " ".join((*SHORT, *LONG, PERSONA, "Background Knowledge It", *RELATIONS, island.description()))
    text += " ".join(island.statement(r) for r in RELATIONS)
    return sorted(set(re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}|'s", " ", text))))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; it depends on nothing but the world, so it is the same every time."""
    specials = [PAD, END, *ROLES.values()]
    texts = [*words(), *(s.capitalize() for s in SYLLABLES)]
    # a token exists with and without the space before it: text that begins a turn or a line has none
    vocab = dict.fromkeys(["<unk>", *specials, *(t for text in texts for t in (text, "▁" + text))], -1.0)
    vocab.update(dict.fromkeys(SYLLABLES, -1.0))
    vocab.update(dict.fromkeys(["\n", "▁", "'s", *".,:;?!'\"()[]"], -1.0))
    vocab.update({f"<0x{b:02X}>": -10.0 for b in range(256)})
    tokenizer = Tokenizer(models.Unigram(list(vocab.items()), unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token="<unk>",
        extra_special_tokens=list(ROLES.values()),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
