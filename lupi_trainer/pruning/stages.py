"""Training in stages: the base alone, then one bundle after another on top of what is there already.

| stage | model | trained | merged into |
|---|---|---|---|
| 1 | A | the layers of A | the base `A_merged` |
| 2 | A_merged + B | the layers of B | the bundle `B_merged` |
| 3 | A_merged + B_merged + C | the layers of C | the bundle `C_merged` |

Bundles take their turn in the order of their names, which are their folders' under `bundles_dir`; what a stage has
made of bundle X is the folder `X_merged` beside it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..models.adapters import load_adapter, merge_adapter
from ..models.generation import make_savable
from ..models.loading import load_complete
from .layers import META, layers_prefix, positions, read_meta, restore_bundles, save_bundle, whole_numbers


MERGED = "_merged"


@dataclass
class Stage:
    """What one stage trains.

    Attributes:
        model: the base with the bundles of this stage and of all before it.
        bundle: folder of the bundle whose layers are trained, as it was dropped; `None` in stage 1.
        trained: positions of the trained layers in the model, counted from 0.
    """

    model: PreTrainedModel
    bundle: Path | None
    trained: list[int]


def bundle_folders(bundles_dir: Path) -> list[Path]:
    """The bundles under a folder in the order of their stages, those that a stage has made left out."""
    found = sorted(path.parent for path in bundles_dir.glob(f"*/{META}"))
    return [folder for folder in found if not folder.name.endswith(MERGED)]


def load_stage(base_dir: str, bundles_dir: str | None, stage: int, **model_kwargs: Any) -> Stage:
    """Put together the model of a stage.

    Args:
        base_dir: the base: A in stage 1, A_merged from stage 2.
        bundles_dir: folder of the bundles; not read in stage 1.
        stage: counted from 1.
        **model_kwargs: of `from_pretrained` (`dtype`, `revision`, ...).

    Raises:
        FileNotFoundError: a stage without its bundle, or before the stage that it builds on.
        ValueError: no such stage, a base that is an adapter, quantized or incomplete, or a bundle that does not
            belong to it.
    """
    (stage,) = whole_numbers([stage], "stage")
    if stage < 1:
        raise ValueError(f"stages are counted from 1, got stage={stage}")
    folders = []
    if stage > 1:
        if bundles_dir is None:
            raise ValueError(f"stage {stage} needs `bundles_dir`, the folder with the dropped layers")
        folders = bundle_folders(Path(bundles_dir))
        if len(folders) < stage - 1:
            raise FileNotFoundError(
                f"stage {stage} trains bundle number {stage - 1}, and {bundles_dir} has {len(folders)}: "
                f"{[folder.name for folder in folders]}"
            )
        folders = folders[: stage - 1]
    before = [folder.with_name(folder.name + MERGED) for folder in folders[:-1]]
    for number, folder in enumerate(before, 2):
        if not (folder / META).is_file():
            raise FileNotFoundError(
                f"stage {stage} builds on {folder.name}, which stage {number} makes: `lupi merge --stage {number}`"
            )
    model = load_complete(base_dir, "base", **model_kwargs)
    if not folders:
        return Stage(model, None, list(range(model.config.num_hidden_layers)))
    model = restore_bundles(model, [*before, folders[-1]])
    # an adapter names the model that it belongs to: this one is in no folder, and must not be taken for the base
    model.config.name_or_path = " + ".join([str(base_dir), *(folder.name for folder in [*before, folders[-1]])])
    return Stage(model, folders[-1], positions(model, folders[-1]))


def restrict_adapter(peft_config: Any, stage: Stage) -> Any:
    """Let a LoRA configuration touch the layers of a stage alone; returns it.

    PEFT picks layers by number for lists of names alone, so `all-linear` is spelled out.

    Raises:
        ValueError: it would train anything else.
    """
    for key in ("modules_to_save", "target_parameters"):
        if getattr(peft_config, key, None):
            raise ValueError(f"a stage trains its own layers alone: leave `lora_{key}` out")
    prefix, wanted = layers_prefix(stage.model), peft_config.target_modules
    if isinstance(wanted, str):
        if wanted.lower() == "all-linear":
            layer = stage.model.get_submodule(f"{prefix}{stage.trained[0]}")
            wanted = [name for name, module in layer.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
        elif wanted.isidentifier():
            wanted = [wanted]
        else:
            raise ValueError(
                f"a stage takes the names of modules (`q_proj v_proj`) or `all-linear`, no pattern: {wanted!r}"
            )
        peft_config.target_modules = set(wanted)
    unrestricted = sorted(set(wanted or ()) & {name for name, _ in stage.model.named_modules()})
    if unrestricted:
        raise ValueError(f"a stage trains its own layers alone: {unrestricted[0]!r} names a module wherever it is")
    peft_config.layers_to_transform = stage.trained
    peft_config.layers_pattern = prefix.rstrip(".").split(".")[-1]
    return peft_config


def check_trained(model: nn.Module, stage: Stage) -> None:
    """Raise ValueError if a parameter outside the layers of a stage would be trained (naming it)."""
    own = tuple(f".{layers_prefix(stage.model)}{position}." for position in stage.trained)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not any(layer in f".{name}" for layer in own):
            raise ValueError(f"this stage trains the layers {stage.trained} alone, and {name!r} is not in them")


def merge_stage(stage: Stage, adapter: str, output_dir: Path) -> Path:
    """Fold the adapter of a stage into its layers, and write these: stage 1 a base, a later one a bundle.

    Args:
        stage: the stage that the adapter was trained in.
        adapter: folder of the adapter.
        output_dir: where a base goes; a bundle goes beside its original, as `NAME_merged`.

    Returns:
        The folder that was written.

    Raises:
        FileNotFoundError: no adapter there.
        FileExistsError: something is there already; nothing is written.
        ValueError: the adapter was trained on other layers or another model, or cannot be merged.
    """
    from peft import PeftConfig

    target = output_dir if stage.bundle is None else stage.bundle.with_name(stage.bundle.name + MERGED)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} exists already; nothing was written")
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise FileNotFoundError(f"no adapter in {adapter}: there is no adapter_config.json")
    trained = getattr(PeftConfig.from_pretrained(adapter), "layers_to_transform", None)
    # an adapter that was not restricted belongs to the entire model
    if trained != stage.trained and not (trained is None and stage.bundle is None):
        raise ValueError(
            f"the adapter {adapter} was trained on the layers {trained}, this stage trains {stage.trained}: "
            "it belongs to another stage"
        )
    merged = merge_adapter(load_adapter(stage.model, adapter))
    if stage.bundle is None:
        make_savable(merged)
        merged.save_pretrained(target)
    else:
        meta = read_meta(stage.bundle)
        save_bundle(target, meta["name"] + MERGED, merged, meta["layers"])
    return target
