"""Mutants, drawn by a seed: one change each of one operator, comparison, number, flag, branch or loop of a module.

The changes are cosmic-ray's. Left out are those that no test could see or that could only crash: in annotations, in
the words of errors and warnings, in `__all__`, in a dataclass's own settings, `==` for `is`, `<<` for `+`.
"""

import ast
import difflib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names


SAME_KIND = (
    {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod"},
    {"Pow", "Mul"},
    {"BitOr", "BitAnd", "BitXor"},
    {"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"},
    {"Is", "IsNot"},
)
OTHERS = {
    "AddNot",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ExceptionReplacer",
    "NumberReplacer",
    "RemoveDecorator",
    "ZeroIterationForLoop",
    "ReplaceUnaryOperator_Delete_Invert",
    "ReplaceUnaryOperator_Delete_Not",
}
SPEAKS = {"warn", "warning", "warning_once", "info", "debug"}  # calls whose arguments are words for a reader


@dataclass(frozen=True)
class Mutant:
    """One change: the `occurrence`-th place in `module` (a path from the root) where `operator` applies."""

    module: str
    operator: str
    occurrence: int
    line: int

    def apply(self, root: Path) -> tuple[str, str]:
        """The changed text of the module, and the difference."""
        before = (root / self.module).read_text(encoding="utf-8")
        after = mutate_code(before, get_operator(self.operator)(), self.occurrence)
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), self.module, self.module, "", "", 0, "")
        return after, "\n".join(lines)


def operators() -> list[str]:
    """cosmic-ray's names of the changes that are made here."""

    def used(name: str) -> bool:
        pair = re.fullmatch(r"core/Replace(?:Binary|Comparison)Operator_(\w+)_(\w+)", name)
        return name.removeprefix("core/") in OTHERS or bool(pair and any({*pair.groups()} <= k for k in SAME_KIND))

    return sorted(filter(used, operator_names()))


def unseen(tree: ast.Module) -> Iterator[ast.AST]:
    """The parts of a module in which a change could not be seen."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            yield node.returns
        elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            yield node.annotation
        elif isinstance(node, ast.Raise):
            yield node
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in SPEAKS:
            yield node
        elif isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from (decorator for decorator in node.decorator_list if "dataclass" in ast.unparse(decorator))


def sites(root: Path, module: str) -> list[list[Mutant]]:
    """Of each place in a module that can be changed, every change of one kind, in the order of the text."""
    source = (root / module).read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()

    def characters(line: int, offset: int) -> tuple[int, int]:  # ast counts bytes
        return line, len(lines[line - 1].encode()[:offset].decode())

    hidden = [
        (characters(node.lineno, node.col_offset), characters(node.end_lineno, node.end_col_offset))
        for node in unseen(tree)
    ]
    found: dict[tuple, list[Mutant]] = {}
    nodes = list(ast_nodes(get_ast(source)))
    for name in operators():
        operator = get_operator(name)()
        places = (place for node in nodes for place in operator.mutation_positions(node))
        for occurrence, (start, stop) in enumerate(places):
            if not any(first <= start < last for first, last in hidden):
                kind = name.split("_")[0]
                found.setdefault((start, stop, kind), []).append(Mutant(module, name, occurrence, start[0]))
    return [found[key] for key in sorted(found)]


def without_stars(tree: ast.Module) -> ast.Module:
    """The module with all arguments positional: `*` among parameters is no multiplication."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
            node.posonlyargs = node.kwonlyargs = []
    return tree


def changes(root: Path, mutant: Mutant) -> bool:
    """Whether the change is one, and is Python."""
    after, _ = mutant.apply(root)
    before = (root / mutant.module).read_text(encoding="utf-8")
    try:
        return ast.dump(without_stars(ast.parse(after))) != ast.dump(without_stars(ast.parse(before)))
    except SyntaxError:
        return False


def draw(root: Path, modules: list[str], count: int, seed: int) -> list[Mutant]:
    """`count` mutants at equal steps over the places of all modules, so that each module has its share."""
    chance = random.Random(seed)
    places = [place for module in modules for place in sites(root, module)]
    if count > len(places):
        raise ValueError(f"{count} mutants of {len(places)} places")
    step, offset, drawn = len(places) / count, chance.random(), []
    for n in range(count):
        at = int((n + offset) * step)
        while True:
            mutant = chance.choice(places[at])
            if changes(root, mutant):
                break
            places[at].remove(mutant)
            if not places[at]:
                at -= 1
        drawn.append(mutant)
    return drawn
