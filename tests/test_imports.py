"""The data flow is the layout: a room imports only from rooms above it."""

import ast
from pathlib import Path

import lupi_trainer


ROOT = Path(lupi_trainer.__file__).parent
# room -> what it may import of this package
ALLOWED = {
    "lab": {"lab", "data", "prompts", "evaluation", "recipe_files", "speculative", "scripts"},
    "data": {"lab"},
    "prompts": {"data"},
    "speculative": {"speculative"},
    "evaluation": {"evaluation", "heads", "prompts", "speculative"},
    "data_check": {"data", "evaluation"},
    "mixing": set(),
    "comparison": {"comparison"},
    "qa_data": {"data", "lab"},
    "callbacks": set(),
    "inspection": {"inspection"},
    "pieces": set(),
    "plugins": set(),
    "progress": set(),
    "trl_private": set(),
    "losses": set(),
    "papers": set(),
    "token_weights": set(),
    "heads": set(),
    "pruning": set(),
    "block_influence": {"pruning"},
    "stages": {"lab", "loading", "pruning"},
    "teacher": {"lab", "loading"},
    "teacher_server": {"speculative", "teacher_server"},
    "checkpoints": {"wrapping"},
    "wrapping": set(),
    "sound_steps": {"loading"},
    "lupi_skd": {
        "publishing",
        "callbacks",
        "checkpoints",
        "lupi_skd",
        "data",
        "evaluation",
        "heads",
        "lab",
        "losses",
        "papers",
        "pieces",
        "plugins",
        "progress",
        "prompts",
        "sound_steps",
        "speculative",
        "teacher",
        "teacher_server",
        "trl_private",
    },
    "kd_lora": {
        "publishing",
        "checkpoints",
        "kd_lora",
        "heads",
        "lab",
        "loading",
        "losses",
        "papers",
        "qa_data",
        "sound_steps",
        "teacher",
        "trl_private",
    },
    "modeling": set(),
    "wmtp": {
        "wmtp",
        "checkpoints",
        "loading",
        "publishing",
        "heads",
        "lab",
        "losses",
        "modeling",
        "papers",
        "sound_steps",
        "speculative",
        "teacher",
        "token_weights",
        "trl_private",
    },
    "recipe_files": set(),
    "credentials": set(),
    "recipe_parser": {"credentials"},
    "scripts": {
        "modeling",
        "wmtp",
        "loading",
        "hub",
        "publishing",
        "block_influence",
        "kd_lora",
        "pruning",
        "data_check",
        "comparison",
        "mixing",
        "qa_data",
        "scripts",
        "checkpoints",
        "stages",
        "teacher",
        "data",
        "evaluation",
        "lab",
        "lupi_skd",
        "prompts",
        "recipe_parser",
        "recipe_files",
        "speculative",
        "progress",
        "sound_steps",
        "teacher_server",
    },
    "student_files": {"credentials"},
    "loading": set(),
    "model_card": {"lab", "papers"},
    "hub": {"credentials", "model_card", "student_files"},
    "publishing": {"credentials", "hub", "model_card", "papers", "student_files"},
    "cli": {"inspection", "hub", "lab", "recipe_files", "scripts"},
    "__init__": {"data", "kd_lora", "lupi_skd", "modeling", "speculative", "teacher_server", "wmtp"},
}
# files of the lab that stand at its end: they train and show, so they may look down
LAB_ENDS = {"pretrain.py", "demo.py"}
USES_TRL = {"kd_lora", "lupi_skd", "trl_private", "recipe_parser", "scripts", "wmtp"}


def imports(path: Path) -> set[str]:
    """Absolute names of everything that a file imports, wherever in it."""
    package = ["lupi_trainer", *path.relative_to(ROOT).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


FILES = sorted(ROOT.rglob("*.py"))


def test_rooms_import_only_upwards():
    wrong = []
    for path in FILES:
        allowed = ALLOWED[room(path)]
        if room(path) == "lab" and path.name not in LAB_ENDS:
            allowed = {"lab"}
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "lupi_trainer" and len(parts) > 1 and parts[1] not in allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_the_engine_knows_torch_and_transformers_alone_and_only_trainers_know_trl():
    for path in FILES:
        outside = {name.split(".")[0] for name in imports(path)}
        if room(path) == "speculative":
            assert not outside & {"trl", "datasets", "peft", "accelerate", "tokenizers", "rich"}, path
        assert "trl" not in outside or room(path) in USES_TRL, path


def test_each_algorithm_of_wmtp_stands_alone_and_is_short():
    algorithms = {"mtp_baseline_trainer", "critic_trainer", "rho1_trainer"}
    for name in algorithms:
        path = ROOT / "wmtp" / f"{name}.py"
        assert not algorithms & {part for imported in imports(path) for part in imported.split(".")}, name
    for path in (ROOT / "wmtp").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno - node.lineno < 155, node.name


def test_files_stay_small():
    sizes = sorted(path.stat().st_size for path in FILES)
    assert sizes[len(sizes) // 2] < 8_000
    assert sizes[-1] < 25_000
