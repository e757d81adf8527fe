"""A frozen model that knows the good texts: its next-token cross-entropy, read once a batch or from disk."""

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ..lab import resolve_model
from ..losses.chunked_mtp import chunked_ce
from ..models.adapters import refuse_adapter
from ..models.backbone import backbone_states, inputs_on_device
from ..models.head_check import check_head
from ..models.hub_code import refuse_hub_code
from ..models.lm_head import Head
from ..models.loading import NO_CODE, SAFE_WEIGHTS, keep_4bit_exact, key_named
from ..models.vocabulary import check_vocabularies, tokenizer_beside
from ..teachers.loaded import frozen_twin, refuse_shared, require_unsharded, unsharded_weights
from ..training.settings import one_name, refuse_settings


class CrossEntropyCache:
    """Cross-entropies by text, in one SQLite file that several processes may share.

    Args:
        directory: of the file; made if it is not there.
    """

    def __init__(self, directory: str | Path):
        Path(directory).mkdir(parents=True, exist_ok=True)
        self.path = Path(directory) / "reference_ce.sqlite"
        with closing(self._connect()) as file, file:
            file.execute("CREATE TABLE IF NOT EXISTS ce (text BLOB PRIMARY KEY, nats BLOB NOT NULL)")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)

    def get(self, key: bytes) -> torch.Tensor | None:
        """[S] float32, or `None` where the text has not been read."""
        with closing(self._connect()) as file:
            row = file.execute("SELECT nats FROM ce WHERE text = ?", (key,)).fetchone()
        return None if row is None else torch.from_numpy(np.frombuffer(row[0], dtype=np.float32).copy())

    def put(self, entries: dict[bytes, torch.Tensor]) -> None:
        """Keep [S] float32 tensors."""
        rows = [(key, ce.float().cpu().numpy().tobytes()) for key, ce in entries.items()]
        with closing(self._connect()) as file, file:
            file.executemany("INSERT OR REPLACE INTO ce VALUES (?, ?)", rows)


def fingerprint(model: Any) -> bytes:
    """A few bytes that change with any of the model's weights (with all but certainty) or with its configuration."""
    digest = hashlib.blake2b(model.config.to_json_string(use_diff=False).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        part = tensor.detach().flatten()
        if part.is_floating_point():
            places = torch.linspace(1, 2, part.numel(), dtype=torch.float32, device=part.device)
            part = torch.stack(
                [part.double().sum(), part.float().abs().double().sum(), (part.float() * places).double().sum()]
            )
        digest.update(name.encode() + part.cpu().numpy().tobytes())
    return digest.digest()


class Reference:
    """A reference model and, if asked for, what it said before.

    Args:
        model: a causal language model; it is frozen.
        cache_dir: folder of the [`CrossEntropyCache`]; `None` reads every text anew.
        known_tokens: token ids that it shares with the model that is trained; all of its own unless given.
    """

    def __init__(self, model: Any, cache_dir: str | None = None, known_tokens: int | None = None):
        self.known_tokens = known_tokens or model.config.get_text_config().vocab_size
        self.model = model.requires_grad_(False).eval()
        self.cache = CrossEntropyCache(cache_dir) if cache_dir else None
        self.fingerprint = fingerprint(model) if cache_dir else b""
        self.forwards = 0

    def next_token_ce(self, inputs: dict[str, Any], targets: torch.Tensor) -> torch.Tensor:
        """The reference's cross-entropy of each next token, in one forward, and in none if all rows are cached.

        Args:
            inputs: what the trained model reads: `input_ids` [B, S], ...
            targets: [B, S], at t the token t + 1, -100 where it does not matter.

        Returns:
            [B, S] float32 in nats, 0 where there is no target.
        """
        if self.cache is None:
            return self._read(inputs, targets)
        keys = self._keys(inputs, targets)
        known = [self.cache.get(key) for key in keys]
        cached = [ce for ce in known if ce is not None]
        if len(cached) < len(known):
            fresh = self._read(inputs, targets)
            self.cache.put({key: ce for key, ce, old in zip(keys, fresh, known) if old is None})
            return fresh
        width, device = targets.size(1), targets.device
        # the padding of another batch may have been longer or shorter
        rows = [torch.nn.functional.pad(ce[:width], (0, max(0, width - len(ce)))) for ce in cached]
        return torch.stack(rows).to(device)

    @torch.no_grad()
    def _read(self, inputs: dict[str, Any], targets: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        device = next(self.model.parameters()).device
        # in its own dtype: the trained model's mixed precision is not the reference's
        with torch.autocast(device.type, enabled=False):
            chosen = (targets != -100).to(device)
            states = backbone_states(self.model, inputs_on_device(self.model, inputs), "reference model")[chosen]
            head = Head(self.model, self.model.config.get_text_config().vocab_size)
            ce = chunked_ce(states, head, targets.to(device)[chosen])[1].float()
        return ce.new_zeros(chosen.shape).masked_scatter_(chosen, ce).to(targets.device)

    def _keys(self, inputs: dict[str, Any], targets: torch.Tensor) -> list[bytes]:
        columns = [inputs["input_ids"], targets]
        if inputs.get("position_ids") is not None:
            columns.append(inputs["position_ids"].expand_as(targets))
        mask = inputs.get("attention_mask")
        rows = torch.stack([column.long() for column in columns], dim=-1).cpu()
        lengths = [rows.size(1)] * len(rows) if mask is None else mask.sum(dim=1).tolist()
        return [
            hashlib.blake2b(self.fingerprint + row[:n].contiguous().numpy().tobytes(), digest_size=16).digest()
            for row, n in zip(rows, lengths)
        ]


def require_reference(model: str | nn.Module | None, args: Any, student: str | nn.Module) -> None:
    """Refuse a run without a reference of its own, before anything is made for it.

    Raises:
        ValueError: neither a model nor a name in `args` (a [`WMTPConfig`], or `None`), the folder of an adapter, or a
            model that shares weights with the student.
    """
    model = model if model is not None else getattr(args, "reference_model_name_or_path", None)
    if model is None:
        raise ValueError("no reference: pass `reference_model`, or set `reference_model_name_or_path`")
    if isinstance(model, str):
        options = getattr(args, "reference_model_init_kwargs", None) or {}
        with key_named(f"the reference {model!r} (reference_model_name_or_path)"):
            path = resolve_model(model)
            refuse_adapter(path, "reference", options.get("revision"))
            refuse_hub_code(path, options.get("revision"))
            AutoConfig.from_pretrained(path, revision=options.get("revision"), **NO_CODE)
    refuse_shared(student, model, "reference")


def load_reference(model: str | nn.Module | None, args: Any, student: nn.Module, tokenizer: Any) -> Reference:
    """The reference of a run, on the run's device.

    Args:
        model: a model, or a name or path; `args.reference_model_name_or_path` if omitted.
        args: the run's [`WMTPConfig`].
        student: the model that is trained; the vocabularies must match.
        tokenizer: the run's.

    Raises:
        ValueError: no reference, or one of another vocabulary or that is not supported.
    """
    require_reference(model, args, student)
    model = one_name("reference_model_name_or_path", model, args.reference_model_name_or_path)
    if isinstance(model, str):
        path = resolve_model(model)
        options = SAFE_WEIGHTS | (args.reference_model_init_kwargs or {})
        revision = options.get("revision")
        config = AutoConfig.from_pretrained(path, revision=revision, **NO_CODE)
        theirs = tokenizer_beside(path, revision)
        known = check_vocabularies(student.config, config, tokenizer, theirs, role="reference")
        with unsharded_weights():
            model = AutoModelForCausalLM.from_pretrained(path, **options)
    else:
        refuse_settings(args, {"reference_model_init_kwargs": "the reference is loaded already; pass its name"})
        require_unsharded(model, "reference")
        model = frozen_twin(model)
        known = check_vocabularies(student.config, model.config, tokenizer, None, role="reference")
    keep_4bit_exact(model)
    if not getattr(model, "is_quantized", False) and not getattr(model, "hf_device_map", None):
        model = model.to(args.device)
    check_head(model, "reference")
    return Reference(model, args.reference_cache_dir, known)
