"""What a model weighs and keeps, counted on a twin of it that has shapes and no numbers: no weight is read."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.masking_utils import AttentionMaskInterface

from ..models.backbone import backbone_states
from ..models.private import attn_implementation, set_attn_implementation
from ..speculative.runners.cache import RaggedCache
from ..speculative.runners.support import cache_argument, cache_kinds, head_width, largest, text_config


_ATTENTION = "lupi_shapes"  # keeps what a fused attention keeps, and computes nothing
_SHORT, _LONG = 64, 128  # tokens of the two readings from whose difference the bytes of one token follow


@dataclass(frozen=True)
class Bits:
    """How linear layers are held: `bits` of 4 or 8 (bitsandbytes), 0 for the model's own type; `nested` constants."""

    bits: int = 0
    nested: bool = False

    def bytes(self, numbers: int, width: int) -> int:
        """Of so many numbers of linear layers, each of which has `width` bytes where nothing is quantized.

        4 bits have a float32 scale for 64 numbers; nested, a byte for 64 and a float32 for 256 of those
        (arXiv 2305.14314, section 3). 8 bits have a scale for each output, which is next to nothing.
        """
        if not self.bits:
            return numbers * width
        if self.bits == 8:
            return numbers
        return numbers // 2 + (numbers // 64 + numbers // (64 * 256) * 4 if self.nested else numbers // 64 * 4)


@dataclass(frozen=True)
class ModelSize:
    """Numbers and bytes of one model.

    Attributes:
        name: as it was given.
        config: the language model's, of transformers.
        dtype: of its weights, and of what it computes.
        bits: how its linear layers are held.
        weights: numbers in all weights, an adapter's apart.
        linear: numbers of the linear layers that quantization takes, the lm_head apart; `largest` of one of them.
        head: numbers of the lm_head.
        read: numbers that one token is multiplied with: of experts those that it is sent to.
        layers, hidden, inner, vocabulary: the configuration's.
        heads, groups, width: query heads, heads of keys, and the numbers in one.
        slot: bytes of keys and values of one row and slot, all layers together; `part`: of the largest of these.
        states: bytes of recurrent states of one row.
        trained, trained_width: numbers that get gradients, and bytes of each; 0: nothing is trained.
        kept, cast: bytes that a forward keeps for the backward: of each token, and besides (weights in another type);
            `estimated` from the model's widths, where it cannot be run without numbers.
    """

    name: str
    config: Any
    dtype: torch.dtype
    bits: Bits
    weights: int
    linear: int
    largest: int
    head: int
    read: int
    layers: int
    hidden: int
    inner: int
    vocabulary: int
    heads: int
    groups: int
    width: int
    slot: int
    part: int
    states: int
    trained: int = 0
    trained_width: int = 0
    trains_head: bool = False
    kept: float = 0.0
    cast: int = 0
    estimated: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of one number of its type."""
        return self.dtype.itemsize

    @property
    def held(self) -> int:
        """Bytes of its weights, an adapter apart."""
        whole = (self.weights - self.linear) * self.itemsize
        return whole + self.bits.bytes(self.linear, self.itemsize)

    @property
    def adapter(self) -> int:
        """Bytes of an adapter beside the weights; 0 where the weights themselves are trained, or nothing is."""
        return self.trained * self.trained_width if self.trained < self.weights else 0


class _Kept(torch.autograd.Function):
    """What a fused attention keeps for its backward: queries, keys, values, its result and a number a query."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out  # there is no backward: nothing is computed here


def _attention(module, query, key, value, *args, **kwargs):
    return _Kept.apply(query, key, value).transpose(1, 2), None


class _Autocast(TorchFunctionMode):
    """Mixed precision, which tensors without numbers do not get from torch: products are in `dtype`."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
            args = [a.to(self.dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
        return func(*args, **(kwargs or {}))


@contextmanager
def _fused_attention(model: Any) -> Generator[None]:
    """Inside, the model's attention is one that keeps no scores, as on a GPU."""
    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, lambda *args, **kwargs: None)
    before = attn_implementation(model.config)
    set_attn_implementation(model.config, _ATTENTION)
    try:
        yield
    finally:
        set_attn_implementation(model.config, before)


def _bytes_kept(model: Any, tokens: int, mixed: torch.dtype | None) -> int:
    """Bytes that a forward of so many tokens keeps for the backward, the weights apart."""
    weights = {id(storage): storage for storage in (p.untyped_storage() for p in model.parameters())}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, nullcontext() if mixed is None else _Autocast(mixed):
        backbone_states(model, {"input_ids": ids, "attention_mask": ids})
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights)


def _kept(model: Any, mixed: torch.dtype | None) -> tuple[float, int]:
    """(bytes of each token, bytes besides) that a forward keeps for the backward."""
    with _fused_attention(model):
        short, long = (_bytes_kept(model, tokens, mixed) for tokens in (_SHORT, _LONG))
    each = (long - short) / (_LONG - _SHORT)
    return each, max(0, round(short - each * _SHORT))


def _cache_bytes(model: Any) -> tuple[int, int, int]:
    """(bytes of keys and values of a slot, of the largest of them, of states) of one row, as the engine's cache holds
    them."""
    cache = RaggedCache(cache_kinds(text_config(model)), 1, 2, None, cache_argument(model))
    rows = torch.zeros(1, dtype=torch.long, device="meta")
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    with torch.no_grad():
        cache.seek_prefill(rows, 0)
        model(input_ids=ids, **cache.arguments(ids), logits_to_keep=rows)
        cache.leave()
    parts = [
        part[0, 0].numel() * part.element_size() for layer in cache.attending for part in (layer.keys, layer.values)
    ]
    return sum(parts), max(parts, default=0), sum(layer.bytes_per_row for layer in cache.recurrent)


def _experts(model: Any, config: Any) -> tuple[int, int, int]:
    """(numbers of all experts, experts of a layer, experts that a token is sent to); zeros for a dense model."""
    names = "num_experts", "num_local_experts", "n_routed_experts"
    many = next((number for number in (largest(config, name) for name in names) if number), 0)
    each = largest(config, "num_experts_per_tok")
    if not many or not each:
        return 0, 0, 0
    named = ((name, p) for name, p in model.named_parameters() if ".experts." in name)
    return sum(parameter.numel() for _, parameter in named), many, each


def stored_bits(config: Any, name: str) -> Bits:
    """How a checkpoint has its linear layers already.

    Raises:
        ValueError: in a way whose bytes are not known here.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return Bits()
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    if settings.get("load_in_8bit"):
        return Bits(8)
    if settings.get("load_in_4bit"):
        return Bits(4, bool(settings.get("bnb_4bit_use_double_quant")))
    raise ValueError(
        f"{name} is stored by {settings.get('quant_method', 'a quantization without a name')}, of which this plan "
        "cannot count the bytes: bitsandbytes alone is known, or a checkpoint that is not quantized"
    )


def size_of(
    config: Any,
    name: str,
    dtype: torch.dtype,
    *,
    bits: Bits = Bits(),
    trains: bool = False,
    peft_config: Any = None,
    mixed: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> ModelSize:
    """The size of a model, from its configuration.

    Args:
        config: of transformers.
        name: what it is called.
        dtype: of its weights; of a quantized one, of what is computed.
        bits: how its linear layers are held, unless the checkpoint has them quantized already.
        trains: whether it is the student.
        peft_config: of the adapter that it gets, or `None`.
        mixed: what autocast computes in, or `None`.

    Raises:
        ValueError: transformers has no causal language model for it, or its checkpoint is stored in an unknown way.
    """
    bits = bits if bits.bits else stored_bits(config, name)
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except (ArithmeticError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name}: no model can be built by its configuration ({error})") from error
    text = text_config(model)
    head = model.get_output_embeddings().weight
    weights = sum(parameter.numel() for parameter in model.parameters())
    linear = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m.weight is not head]
    experts, many, each = _experts(model, text)
    reads = model
    if many:  # in float32 they cannot be read in groups without numbers; how they are read is nothing to the cache
        reads = copy.deepcopy(model)
        reads.set_experts_implementation("batched_mm")
    try:
        slot, part, states = _cache_bytes(reads)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name}: what {type(model).__name__} keeps of a token cannot be counted ({reason})"
        ) from error
    tables = model.get_input_embeddings().weight.numel()
    read = weights - (tables if model.get_input_embeddings().weight is not head else 0)
    figures: dict[str, Any] = {}
    if trains:
        model.train()
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, copy.deepcopy(peft_config))  # it writes on what it is given
        trained = [p for p in model.parameters() if p.requires_grad]
        figures["trained"] = sum(p.numel() for p in trained)
        # of a quantized model TRL keeps an adapter in bfloat16, PEFT that of another in float32
        wide = torch.float32 if peft_config is not None and not bits.bits else dtype
        figures["trained_width"] = torch.bfloat16.itemsize if bits.bits else wide.itemsize
        figures["trains_head"] = head.requires_grad
        try:
            figures["kept"], figures["cast"] = _kept(model.base_model.model if is_peft_model(model) else model, mixed)
        except RuntimeError:  # it looks at numbers, of which there are none
            inner = largest(text, "intermediate_size") or 4 * text.hidden_size
            figures["kept"] = 1.5 * text.num_hidden_layers * (4 * inner + 8 * text.hidden_size) * dtype.itemsize
            figures["estimated"] = True
    heads = largest(text, "num_attention_heads") or 1
    return ModelSize(
        name=name,
        config=text,
        dtype=dtype,
        bits=bits,
        weights=weights,
        linear=sum(linear),
        largest=max(linear, default=0),
        head=head.numel(),
        read=read - (experts - experts * each // many if many else 0),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        inner=largest(text, "intermediate_size") or 4 * text.hidden_size,
        vocabulary=head.shape[0],
        heads=heads,
        groups=largest(text, "num_key_value_heads") or heads,
        width=head_width(text),
        slot=slot,
        part=part,
        states=states,
        **figures,
    )
