"""The keys of a command, read in the source of its configurations: importing those would import torch.

A configuration is a dataclass, of this package, of TRL or of transformers; its fields are read as they are written.
What cannot be read so (a type of their own, a computed default) is left open, and never called wrong.
"""

import ast
import importlib.util
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any


UNKNOWN: Any = object()
"""A default that is computed."""

SIMPLE = {"int", "float", "bool", "str", "list", "dict", "None", "Any", "object"}
# command -> the classes of its parser, as `make_parser` has them
CLASSES = {
    "skd": (
        ("lupi_trainer.scripts.common", "MixedDataArguments"),
        ("lupi_trainer.lupi_skd.config", "LUPISKDConfig"),
        ("trl", "ModelConfig"),
    ),
    "kd": (
        ("lupi_trainer.scripts.kd_lora", "QAArguments"),
        ("lupi_trainer.kd_lora.config", "KDLoRAConfig"),
        ("trl", "ModelConfig"),
    ),
    "wmtp": (
        ("lupi_trainer.scripts.wmtp", "WMTPArguments"),
        ("lupi_trainer.wmtp.config", "WMTPConfig"),
        ("trl", "ModelConfig"),
    ),
    "sft": (("lupi_trainer.scripts.sft", "SFTDataArguments"), ("trl", "SFTConfig"), ("trl", "ModelConfig")),
}
DEFAULTS = {"kd": {"use_peft": True, "lora_r": 8, "lora_alpha": 16}}  # which its parser sets


@dataclass(frozen=True)
class KeyType:
    """A key: what it may hold.

    Attributes:
        kinds: names of the types that its value may have; `Any` where that cannot be read.
        default: its default, or `UNKNOWN`.
        choices: the values that it may have; none where any will do.
        help: what it does; empty where that is computed.
    """

    kinds: frozenset[str] = frozenset({"Any"})
    default: Any = UNKNOWN
    choices: tuple[Any, ...] = field(default=())
    help: str = ""


@lru_cache
def _file(module: str) -> tuple[ast.Module, bool] | None:
    """The source of a module as a tree, and whether it is a package's; `None` where there is none to be read."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)  # of the first name alone: a longer one imports what is before it
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*rest)
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return ast.parse(file.read_text(encoding="utf-8")), file.name == "__init__.py"
    return None


@cache
def _find(module: str, name: str) -> tuple[str, ast.AST] | None:
    """Where a name is defined, as a class or a value: (module, its node), followed through imports."""
    found = _file(module)
    if found is None:
        return None
    tree, is_package = found
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node.value
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
            real = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            return _find(".".join([*base, *filter(None, [node.module])]), real)
    return None


def _value(module: str, node: ast.AST | None) -> Any:
    """The value of an expression that is a literal, a name of one, or the list of either's members."""
    if isinstance(node, ast.Name):
        found = _find(module, node.id)
        return UNKNOWN if found is None else _value(*found)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "list" and node.args:
        inner = _value(module, node.args[0])
        return UNKNOWN if inner is UNKNOWN else list(inner)
    if isinstance(node, ast.Subscript):
        table, key = _value(module, node.value), _value(module, node.slice)
        return table.get(key, UNKNOWN) if isinstance(table, dict) and isinstance(key, str) else UNKNOWN
    try:
        return UNKNOWN if node is None else ast.literal_eval(node)
    except ValueError:
        keys = node.keys if isinstance(node, ast.Dict) else []  # of a table whose values are classes
        names = [key.value for key in keys if isinstance(key, ast.Constant)]
        return names or UNKNOWN


def _members(module: str, name: str) -> tuple[Any, ...]:
    """The values of an enumeration; none where the name is something else."""
    where, node = _find(module, name) or (module, None)
    if not isinstance(node, ast.ClassDef):
        return ()
    if not any(isinstance(base, ast.Name) and "Enum" in base.id for base in node.bases):
        return ()
    values = [_value(where, item.value) for item in node.body if isinstance(item, ast.Assign)]
    return tuple(value for value in values if isinstance(value, str))


def _kinds(node: ast.AST) -> set[str]:
    """The names of the types in an annotation."""
    if isinstance(node, ast.BinOp):
        return _kinds(node.left) | _kinds(node.right)
    if isinstance(node, ast.Constant):
        return _kinds(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else {"None"}
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id in ("Union", "Optional"):
            return set().union(*map(_kinds, inner)) | ({"None"} if node.value.id == "Optional" else set())
        return {node.value.id}
    return {node.id} if isinstance(node, ast.Name) else {"Any"}


def _key_type(module: str, node: ast.AnnAssign) -> KeyType:
    kinds, choices, default, about = _kinds(node.annotation), (), UNKNOWN, ""
    call = node.value
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "field":
        words = {word.arg: word.value for word in call.keywords}
        default = _value(module, words.get("default"))
        factory = words.get("default_factory")
        if isinstance(factory, ast.Name) and factory.id in ("list", "dict"):
            default = [] if factory.id == "list" else {}
        metadata = words.get("metadata")
        for key, value in zip(metadata.keys, metadata.values) if isinstance(metadata, ast.Dict) else ():
            if isinstance(key, ast.Constant) and key.value == "choices":
                given = _value(module, value)
                choices = () if given is UNKNOWN else tuple(given)
            if isinstance(key, ast.Constant) and key.value == "help":
                about = _text(module, value)
    elif call is not None:
        default = _value(module, call)
    others = kinds - SIMPLE
    for name in others:
        choices = choices or _members(module, name)
    if others:
        kinds = {"str"} | (kinds & {"None"}) if choices else {"Any"}
    return KeyType(frozenset(kinds), default, choices, about)


def _text(module: str, node: ast.AST) -> str:
    """A text for argparse, whose `%%` is a percent sign; what is computed in it is left out, but for a joined list."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(module, node.left) + _text(module, node.right)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(module, part) for part in node.values)
    node = node.value if isinstance(node, ast.FormattedValue) else node
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "join" and node.args:
        parts = _value(module, node.args[0])
        return "" if parts is UNKNOWN else _text(module, node.func.value).join(map(str, parts))
    value = _value(module, node)
    return "" if value is UNKNOWN else str(value).replace("%%", "%")


@cache
def _fields(module: str, name: str) -> dict[str, KeyType]:
    where, node = _find(module, name) or (module, None)
    if not isinstance(node, ast.ClassDef):
        return {}
    keys: dict[str, KeyType] = {}
    for base in reversed(node.bases):
        keys |= _fields(where, base.id) if isinstance(base, ast.Name) else {}
    for item in node.body:
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and not item.target.id.startswith("_")
        ):
            if "ClassVar" not in _kinds(item.annotation):
                keys[item.target.id] = _key_type(where, item)
    return keys


@cache
def key_types(command: str) -> dict[str, KeyType]:
    """Every key of a training command."""
    keys: dict[str, KeyType] = {}
    for module, name in CLASSES[command]:
        keys |= _fields(module, name)
    for name, default in DEFAULTS.get(command, {}).items():
        keys[name] = replace(keys[name], default=default)
    return keys
