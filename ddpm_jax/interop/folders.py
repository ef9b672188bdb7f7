"""Folders of diffusers: which of the files that lie in and above one are meant.

A pipeline's folder holds `unet/` and `scheduler/`; older ones hold all files at once. A
checkpoint of its training examples holds `unet/` and `unet_ema/`, the averaged weights,
and its scheduler lies above it, in the folder of the run.
"""

from pathlib import Path

from ddpm_jax.interop.layout import few

CONFIG, SCHEDULER = "config.json", "scheduler_config.json"
ABOVE = 2  # folders that are searched for a scheduler
# What diffusers calls weights, and accelerate, before the kind and the variant.
STEMS = ("diffusion_pytorch_model", "pytorch_model", "model")
KINDS = ("safetensors", "bin")
RAW = "non_ema"  # the variant beside averaged weights


def model_folder(folder: Path) -> tuple[Path, list[str]]:
    """Returns where a folder's model is, and what to say of the choice.

    Raises:
      OSError: if there is none.
    """
    places = [folder / "unet_ema", folder / "unet", folder]
    found = [place for place in places if (place / CONFIG).is_file()]
    if not found:
        said = f"no unet/{CONFIG} and no {CONFIG} in {folder}"
        below = [*folder.glob(f"*/{CONFIG}"), *folder.glob(f"*/*/{CONFIG}")]
        if below:
            models = few(sorted(str(path.parent) for path in below))
            raise OSError(f"{said}; models are in {models}: give one of them")
        files = [path.name for path in sorted(folder.glob("*")) if is_weights(path)]
        if files:
            said += f": put that of the model of {few(files)} beside it"
        raise OSError(said)
    if found[:2] == places[:2]:
        return found[0], [
            f"the averaged weights in {found[0]} are taken; for the raw ones give "
            f"{found[1]}"
        ]
    return found[0], []


def scheduler_file(folder: Path) -> Path | None:
    """Returns the config of a folder's scheduler, or of the nearest above, or None."""
    above = folder.resolve().parents[:ABOVE]
    places = [folder / "scheduler", folder, *(place / "scheduler" for place in above)]
    return next((p / SCHEDULER for p in places if (p / SCHEDULER).is_file()), None)


def weights_file(folder: Path) -> tuple[Path, list[str]]:
    """Returns the file of a model's weights, or its index, and what to say of it.

    The plain name goes before variants, of which the raw weights are the last,
    safetensors before pickles, and one file before several.

    Raises:
      OSError: if there is none.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix != ".json")
    found = sorted((path for path in folder.iterdir() if is_weights(path)), key=_rank)
    if found:
        return found[0], _choice(*found)
    said = f"no weights in {folder}: {STEMS[0]}.safetensors or .bin is looked for"
    if any("-of-" in path.name for path in files):
        said += f", and to its parts {STEMS[0]}.safetensors.index.json"
    if files:
        said += f"; there is {few(path.name for path in files)}"
    raise OSError(said)


def is_weights(path: Path) -> bool:
    """Returns whether a file's name is one of weights, or of their index."""
    stem, *words = path.name.split(".")
    ends = KINDS if "index" not in words else ("json",)
    return stem in STEMS and bool(words) and words[-1] in ends


def _rank(path):
    words = path.name.split(".")[1:]
    variant = {*words} - {*KINDS, "index", "json"}
    return RAW in words, bool(variant), "bin" in words, "index" in words, path.name


def _choice(first, *others):
    if others:
        names = few(path.name for path in others)
        return [f"the weights {first.name} are taken, and not {names}"]
    return [f"the weights are {first.name}, raw ones"] if RAW in first.name else []
