"""A saved model as a GGUF file: by llama.cpp's own converter where it is named, else with the package `gguf`.

The package writes files and knows the names of weights. What a model's configuration and tokenizer mean, llama.cpp's
converter knows of hundreds of models; here it is known of a few, and all others are refused.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import safe_open

from ..models.generation import id_list
from .gguf_vocabulary import UnknownTokenizer, vocabulary
from .targets import CONVERTER_TYPES


# model_type of transformers -> architecture of llama.cpp
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
CONVERTER = "give --converter the path of llama.cpp's convert_hf_to_gguf.py, which knows more models"
_INTERLEAVED = re.compile(r"\.self_attn\.([qk])_proj\.(weight|bias)$")  # rotated in pairs by the architecture llama


def gguf_package() -> ModuleType:
    """The package.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ValueError(
            f'to write a GGUF file, the package `gguf` is needed: pip install "lupi-trainer[gguf]"; or {CONVERTER}'
        ) from error
    return gguf


def check_gguf(config: Any, tokenizer: Any, kind: str, converter: Path | None) -> None:
    """Refuse what cannot be written, before any weight is loaded.

    Args:
        config: of the model.
        tokenizer: of the model.
        kind: type of the weights, one of `GGUF_TYPES`.
        converter: llama.cpp's own, if it is to be used.

    Raises:
        ValueError: the package is missing, or the model, its rotary embeddings, its windows or its tokenizer are
            none of those that are known here; it is named.
        FileNotFoundError: there is no such converter.
    """
    if converter is not None:
        if not converter.is_file():
            raise FileNotFoundError(f"--converter: no such file: {converter}")
        if kind not in CONVERTER_TYPES:
            raise ValueError(f"--type {kind}: llama.cpp's converter writes {', '.join(CONVERTER_TYPES)}")
        return
    gguf_package()
    if config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"a GGUF file of {config.model_type} is not written here, only of {', '.join(ARCHITECTURES)}: {CONVERTER}"
        )
    for key, right in (("hidden_act", ("silu",)), ("use_sliding_window", (None, False))):
        if (value := getattr(config, key, None)) not in right:
            raise ValueError(f"a GGUF file of a model with {key}={value!r} is not written here: {CONVERTER}")
    rope = getattr(config, "rope_parameters", None) or {}
    if (name := rope.get("rope_type", "default")) != "default":
        raise ValueError(
            f"a GGUF file of a model with rotary embeddings of the type {name!r} is not written here: {CONVERTER}"
        )
    try:
        vocabulary(tokenizer, config.vocab_size)
    except UnknownTokenizer as error:
        raise ValueError(
            f"whether llama.cpp splits texts as this tokenizer does is not known ({error}): {CONVERTER}"
        ) from error


def write_gguf(folder: Path, file: Path, kind: str, tokenizer: Any, generation: Any, converter: Path | None) -> None:
    """Write a saved model as a GGUF file, with its tokenizer, its end of turn and its chat template.

    Args:
        folder: of the model, as `save_pretrained` leaves it.
        file: that is written.
        kind: type of the matrices; what has one dimension stays float32, and rows that blocks do not divide, float16.
        tokenizer, generation: of the model.
        converter: llama.cpp's own, if it is to be used.

    Raises:
        ValueError: as for [`check_gguf`], a weight that the architecture does not have, or a converter that failed.
    """
    if converter is not None:
        return _convert(folder, file, kind, converter)
    gguf = gguf_package()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    arch = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(file, arch)
    _write_settings(
        writer, config, file.stem, gguf.LlamaFileType[f"MOSTLY_{kind.upper()}" if kind != "f32" else "ALL_F32"]
    )
    _write_tokenizer(writer, tokenizer, generation, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config["num_hidden_layers"])
    for name, tensor in _tensors(folder):
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ValueError(f"{name} is no weight that the architecture {arch} of llama.cpp has: {CONVERTER}")
        if arch == "llama" and (found := _INTERLEAVED.search(name)) is not None:
            heads = config["num_attention_heads"]
            tensor = _interleave(tensor, heads if found[1] == "q" else config.get("num_key_value_heads") or heads)
        values = tensor.float().numpy()
        wanted = gguf.GGMLQuantizationType[kind.upper() if values.ndim > 1 else "F32"]
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
            wanted = gguf.GGMLQuantizationType.F16
        writer.add_tensor(target, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """The weights of a saved model, one after the other."""
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():
                yield name, weights.get_tensor(name)


def _interleave(weight: Any, heads: int) -> Any:
    """Rows of each head from halves that are rotated together to pairs: [0, d/2, 1, d/2 + 1, ...] of a head's d."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _write_settings(writer: Any, config: dict[str, Any], name: str, file_type: int) -> None:
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0))


def _write_tokenizer(writer: Any, tokenizer: Any, generation: Any, size: int) -> None:
    """The vocabulary; nothing is put around a prompt, since the chat template writes all of it."""
    words = vocabulary(tokenizer, size)
    writer.add_tokenizer_model(words.model)
    if words.pre is not None:
        writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.kinds)
    if words.scores:
        writer.add_token_scores(words.scores)
    if words.merges:
        writer.add_token_merges(words.merges)
    ends = id_list(generation.eos_token_id)  # a file has room for three
    for put, token in zip((writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), ends):
        put(token)
    for put, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            put(token)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_remove_extra_whitespaces(False)
    writer.add_chat_template(without_marks(tokenizer.get_chat_template()))


def without_marks(template: str) -> str:
    """A chat template without transformers' marks of what the assistant says, of which other engines know nothing."""
    return re.sub(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}", r"{#\1 \2#}", template)


def _convert(folder: Path, file: Path, kind: str, converter: Path) -> None:
    command = [sys.executable, str(converter), str(folder), "--outfile", str(file), "--outtype", kind]
    run = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    if run.returncode:
        raise ValueError(f"{converter} failed: {lines[-1] if lines else f'exit status {run.returncode}'}")
    if not file.is_file():
        raise ValueError(f"{converter} wrote no file, and said: {lines[-1] if lines else 'nothing'}")
