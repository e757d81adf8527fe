"""The recipes and accelerate configurations that travel with the package."""

import importlib.util
import shutil
from pathlib import Path


TINY = "lab/wmtp/config_tiny.yaml"  # what `lupi wmtp --tiny` is short for
SHIPPED = (".yaml", ".ipynb")  # what `lupi recipes` lists, shows and copies


def recipes_dir() -> Path:
    """The folder of the shipped recipes: inside an installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: neither is there.
    """
    spec = importlib.util.find_spec("lupi_trainer.recipes")
    beside = Path(__file__).parent.parent.parent / "recipes"
    folder = Path(spec.origin).parent if spec and spec.origin else beside
    if not folder.is_dir():
        raise FileNotFoundError("the recipes are not installed with the package")
    return folder


def list_recipes(*endings: str) -> list[str]:
    """Names of all shipped recipes and accelerate configurations, relative to [`recipes_dir`].

    Args:
        endings: of the files, if others than `.yaml` are meant.
    """
    folder = recipes_dir()
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix in (endings or (".yaml",)) and ".ipynb_checkpoints" not in path.parts
    )


def find_recipe(name: str, *endings: str) -> Path:
    """The file of a recipe: a path of the user's own, or the name of a shipped one (`recipes/` in front may be kept).

    Args:
        endings: as for [`list_recipes`].

    Raises:
        FileNotFoundError: there is neither; the message names the nearest shipped recipes.
    """
    own = Path(name)
    if own.is_file():
        return own
    key, names = name.removeprefix("recipes/"), list_recipes(*endings)
    if key in names:
        return recipes_dir() / key
    import difflib

    near = difflib.get_close_matches(key, names, 2)
    raise FileNotFoundError(
        f"no recipe {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "; `lupi recipes ls` lists them")
    )


def expand_tiny(args: list[str]) -> list[str]:
    """The command line with `--tiny` spelled out.

    Raises:
        ValueError: together with `--config`.
    """
    if "--tiny" not in args:
        return args
    if "--config" in args:
        raise ValueError("--tiny is a recipe of its own: leave out --config, or --tiny")
    return ["--config", str(find_recipe(TINY)), *(arg for arg in args if arg != "--tiny")]


def find_recipes(name: str) -> list[Path]:
    """The recipes of a set: a folder of the user's own or a shipped one, in the order of their names.

    Raises:
        FileNotFoundError: no recipe there.
    """
    folder = Path(name)
    if not folder.is_dir():
        key = name.removeprefix("recipes/").strip("/") + "/"
        found = [recipes_dir() / recipe for recipe in list_recipes() if recipe.startswith(key)]
    else:
        found = sorted(folder.glob("*.yaml"))
    if not found:
        raise FileNotFoundError(f"no recipe in {name!r}; `lupi recipes ls` lists the shipped ones")
    return found


def find_accelerate_config(name: str) -> Path:
    """An accelerate configuration: a path, or the name of a shipped one such as `zero3`.

    Raises:
        FileNotFoundError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    folder = recipes_dir() / "accelerate_configs"
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    if name not in names:
        raise FileNotFoundError(f"no accelerate configuration {name!r}: a path, or one of {', '.join(names)}")
    return folder / f"{name}.yaml"


def copy_recipe(name: str, destination: Path) -> Path:
    """Copy a shipped recipe or notebook to a file or into a folder; an existing file is never overwritten.

    Raises:
        FileNotFoundError: no such recipe.
        FileExistsError: the destination exists.
    """
    source = find_recipe(name, *SHIPPED)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise FileExistsError(f"{target} exists already; nothing was copied")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target
