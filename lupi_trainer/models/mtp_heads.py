"""Heads on a causal language model's last hidden state: several tokens ahead, and a value.

They are modules of their own, saved beside the model or adapter as one safetensors and one json file. The model stays
what it was: with or without heads, `generate` writes the same.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import cached_file

from .private import leave_out_of_saves


def text_config(model: Any) -> Any:
    """The configuration of the language model inside a model, an adapter or a multimodal model."""
    return model.config.get_text_config()


class _SavedHead(nn.Module):
    """A module that is made again from a few numbers, saved as `NAME.json`, and its weights, `NAME.safetensors`."""

    file_name: str

    def settings(self) -> dict[str, Any]:
        """The keyword arguments of the constructor."""
        raise NotImplementedError

    def save_pretrained(self, directory: str | Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write both files into a folder; `state_dict` takes the place of the module's own where that is sharded."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        weights = self.state_dict() if state_dict is None else state_dict
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(weights, directory / f"{self.file_name}.safetensors", metadata={"format": "pt"})
        (directory / f"{self.file_name}.json").write_text(json.dumps(self.settings(), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **hub_kwargs):
        """Load from a folder, or from a repository of the Hub.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file cannot be read, or its weights are not those that its settings describe.
        """
        paths = [_find(name_or_path, f"{cls.file_name}{ending}", **hub_kwargs) for ending in (".json", ".safetensors")]
        try:
            head = cls(**json.loads(paths[0].read_text()))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{paths[0]} does not describe {cls.__name__}: {error}") from error
        try:
            weights = load_file(paths[1])
        except SafetensorError as error:
            raise ValueError(f"{paths[1]} cannot be read: {error}") from error
        head.load(weights, str(paths[1]))
        return head

    def load(self, weights: dict[str, torch.Tensor], source: str) -> None:
        """Take these weights, all of them, in their dtype.

        Raises:
            ValueError: a tensor is missing, misshapen or unknown; the message names it and `source`.
        """
        own = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        for name in sorted(own.keys() | given.keys()):
            if own.get(name) != given.get(name):
                raise ValueError(
                    f"{source} does not fit: {name!r} is {given.get(name, 'missing')} there, and "
                    f"{own.get(name, 'unknown')} in {type(self).__name__} with {self.settings()}"
                )
        if weights:
            self.to(next(iter(weights.values())).dtype)
        self.load_state_dict(weights)


def _find(name_or_path: str | Path, file_name: str, **hub_kwargs) -> Path:
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / file_name
        if not path.is_file():
            raise FileNotFoundError(f"no {file_name} in {name_or_path}: it holds no such heads")
        return path
    try:
        path = cached_file(str(name_or_path), file_name, **hub_kwargs)
    except OSError as error:
        raise FileNotFoundError(f"no {file_name} to be found at {name_or_path!r}: {error}") from error
    assert path is not None  # or `cached_file` had raised
    return Path(path)


class LinearHead(nn.Module):
    """A linear map of the state, [..., D] -> [..., D]; the identity at first."""

    def __init__(self, hidden_size: int, **_):
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.eye_(self.linear.weight)

    def forward(self, states: torch.Tensor, visible: torch.Tensor | None, last: int = 0) -> torch.Tensor:
        return self.linear(states[:, -last:])


class ResidualHead(nn.Module):
    """x + SiLU(W x), W zero at first. Source: Medusa, arXiv 2401.10774, section 2.1.1."""

    def __init__(self, hidden_size: int, **_):
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: torch.Tensor, visible: torch.Tensor | None, last: int = 0) -> torch.Tensor:
        states = states[:, -last:]
        return states + F.silu(self.linear(states))


class TransformerHead(nn.Module):
    """One pre-norm transformer block over the last states, whose two output maps are zero at first.

    Source: arXiv 2404.19737, section 2 (a transformer layer a head), here behind the model's own last norm, without
    positions of its own (the states have them), and with a window, so that drafting needs no cache.
    """

    def __init__(self, hidden_size: int, num_attention_heads: int, **_):
        super().__init__()
        self.num_attention_heads = num_attention_heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(hidden_size), nn.RMSNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.attention_out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.up = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.down = nn.Linear(4 * hidden_size, hidden_size, bias=False)
        nn.init.zeros_(self.attention_out.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, states: torch.Tensor, visible: torch.Tensor, last: int = 0) -> torch.Tensor:
        """states [B, S, D], visible [B or 1, Q, S] bool -> [B, Q, D], of the `last` Q places (0: of all, Q = S)."""
        asking = states[:, -last:]
        q = F.linear(self.attention_norm(asking), self.qkv.weight[: states.shape[2]])
        k, v = F.linear(self.attention_norm(states), self.qkv.weight[states.shape[2] :]).chunk(2, dim=-1)
        q, k, v = (x.unflatten(2, (self.num_attention_heads, -1)).transpose(1, 2) for x in (q, k, v))
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None])
        asking = asking + self.attention_out(seen.transpose(1, 2).flatten(2))
        return asking + self.down(F.silu(self.up(self.mlp_norm(asking))))


HEAD_TYPES = {"linear": LinearHead, "residual": ResidualHead, "transformer": TransformerHead}


class MTPHeads(_SavedHead):
    """Multi-token prediction on any causal language model: head k predicts the token k ahead.

    Head 1 is the model's own next-token head and has no weights here. Every other head turns the model's last hidden
    state into another, from which the model's own `lm_head` predicts; at first they all predict what head 1 does.

    Args:
        horizon: H >= 1, the number of heads, the model's own among them.
        head_type: `"linear"`, `"residual"` or `"transformer"`.
        hidden_size: D of the model.
        num_attention_heads: of a transformer head.
        window: states that a transformer head sees, its own place included.

    Raises:
        ValueError: a horizon or window below 1, an unknown type, or a size that the attention heads do not divide.

    Example:

    ```python
    >>> from lupi_trainer import MTPHeads

    >>> heads = MTPHeads(horizon=4, head_type="linear", hidden_size=64)
    >>> heads.save_pretrained("heads")
    >>> MTPHeads.from_pretrained("heads").horizon
    4
    ```
    """

    file_name = "mtp_heads"

    def __init__(
        self,
        horizon: int = 4,
        head_type: str = "residual",
        *,
        hidden_size: int,
        num_attention_heads: int = 4,
        window: int = 32,
    ):
        super().__init__()
        if horizon < 1 or window < 1:
            raise ValueError(f"horizon and window must be at least 1, got {horizon} and {window}")
        if head_type not in HEAD_TYPES:
            raise ValueError(f"head_type must be one of {list(HEAD_TYPES)}, got {head_type!r}")
        if head_type == "transformer" and hidden_size % num_attention_heads:
            raise ValueError(f"{num_attention_heads} attention heads do not divide a hidden size of {hidden_size}")
        self.horizon, self.head_type, self.hidden_size = horizon, head_type, hidden_size
        self.num_attention_heads, self.attention_window = num_attention_heads, window
        make = HEAD_TYPES[head_type]
        self.heads = nn.ModuleList(
            make(hidden_size, num_attention_heads=num_attention_heads) for _ in range(horizon - 1)
        )

    @classmethod
    def for_model(cls, model: Any, horizon: int = 4, head_type: str = "residual", **kwargs) -> "MTPHeads":
        """New heads in the model's size, on its device and in its dtype (that of its `lm_head`)."""
        weight = model.get_output_embeddings().weight
        config = text_config(model)
        kwargs.setdefault("num_attention_heads", getattr(config, "num_attention_heads", None) or 1)
        heads = cls(horizon, head_type, hidden_size=config.hidden_size, **kwargs)
        return heads.to(weight.device, weight.dtype if weight.is_floating_point() else None)

    def settings(self) -> dict[str, Any]:
        return {
            "horizon": self.horizon,
            "head_type": self.head_type,
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_attention_heads,
            "window": self.attention_window,
        }

    @property
    def window(self) -> int:
        """How many of the last states a head reads."""
        return self.attention_window if self.head_type == "transformer" else 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; a horizon of 1 has none."""
        return next((parameter.dtype for parameter in self.parameters()), torch.get_default_dtype())

    def check(self, model: nn.Module) -> None:
        """Raise ValueError if these heads are not for a model of this size."""
        size = text_config(model).hidden_size
        if size != self.hidden_size:
            raise ValueError(f"these heads are for a hidden size of {self.hidden_size}; the model's is {size}")

    def forward(self, hidden: torch.Tensor, segment_ids: torch.Tensor | None = None) -> list[torch.Tensor]:
        """hidden [B, S, D], what `lm_head` reads -> the states [B, S, D] that it is to read for each of the H heads.

        `segment_ids` [B, S]: of several packed texts, so that no head sees another text. Heads compute in their own
        dtype, whatever the model's is.
        """
        visible = None
        if self.head_type == "transformer" and self.horizon > 1:
            places = torch.arange(hidden.shape[1], device=hidden.device)
            back = places[:, None] - places
            visible = ((back >= 0) & (back < self.attention_window))[None]
            if segment_ids is not None:
                visible = visible & (segment_ids[:, :, None] == segment_ids[:, None])
        states = hidden.to(self.dtype)
        return [hidden, *(head(states, visible).to(hidden.dtype) for head in self.heads)]

    def ahead(self, states: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """The states for heads 2 to H at the last of a few places.

        states [A, W, D], of which the last `count` [A] are known -> [A, H - 1, D].
        """
        places = torch.arange(states.shape[1], device=states.device)
        visible = places >= states.shape[1] - count.clamp(min=1)[:, None]  # none attends to nothing
        own = states.to(self.dtype)
        return torch.cat([head(own, visible[:, None], last=1) for head in self.heads], dim=1).to(states.dtype)


def attach_mtp_heads(model: Any, heads: MTPHeads) -> None:
    """Make heads a part of a model, as `model.mtp_heads`, so that they are trained, moved and sharded with it.

    The model's own `save_pretrained` leaves them out: they have files of their own.

    Raises:
        ValueError: the heads are for another size.
    """
    heads.check(model)
    model.mtp_heads = heads
    leave_out_of_saves(model, (f"mtp_heads.{name}" for name in heads.state_dict()))


class ValueHead(_SavedHead):
    """A critic on the last hidden state: [B, S, D] -> [B, S], the value of the text up to each token.

    Args:
        hidden_size: D of the model.
        scale: what its output is multiplied with, so that rewards of any size are learned alike.
    """

    file_name = "value_head"

    def __init__(self, hidden_size: int, scale: float = 1.0):
        super().__init__()
        self.hidden_size, self.scale = hidden_size, scale
        self.up = nn.Linear(hidden_size, 2 * hidden_size)
        self.down = nn.Linear(2 * hidden_size, 1)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def settings(self) -> dict[str, Any]:
        return {"hidden_size": self.hidden_size, "scale": self.scale}

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # values are compared with each other
            hidden = hidden.to(self.up.weight.dtype)
            return self.down(F.silu(self.up(hidden))).squeeze(-1) * self.scale
