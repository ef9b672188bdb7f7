"""Where a run begins: the parameters of a trained model, fitted to the run's network.

What both networks have is kept. What only the run's has is new, as in a run that begins
from nothing; what only the model's has is left out. Both are said.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import load, run
from ddpm_jax.experiment.build import Experiment
from ddpm_jax.experiment.config import differences
from ddpm_jax.experiment.model import complete
from ddpm_jax.interop.layout import leaves
from ddpm_jax.places import bring

# Of the section `network`, what may be other than the model's: classes, the learned
# variance and attention can be had anew, the others change no parameter.
MAY_DIFFER = (
    "attention_resolutions",
    "dropout",
    "dtype",
    "label_dropout",
    "learned_variance",
    "num_classes",
    "remat",
)


class InitialParams(NamedTuple):
    """Where a run begins.

    Attributes:
      params: the parameters of its network.
      notes: what was assumed, what is new or left out, and what they were trained for
        that this run is not, in words.
    """

    params: Any
    notes: list[str]


class Classes(NamedTuple):
    """The rows of a class embedding.

    Attributes:
      num: of classes; none have no embedding.
      null: whether there is one more, for none of them.
      names: of the classes, () where they are only numbers.
    """

    num: int
    null: bool
    names: tuple[str, ...] = ()


def initial_params(experiment: Experiment, names: Sequence[str] = ()) -> InitialParams:
    """Loads the parameters from which a run begins (`config.init_from`).

    Args:
      experiment: the run that begins, with `init_from` the folder of a run, or as
        `load.from_pretrained` has it.
      names: of the classes in the data of the run.

    Raises:
      ConfigError: if they cannot be read, or are of another network, or would be read
        in another way than they were trained.
    """
    path, config = experiment.init_from, experiment.config
    try:
        trained = _open(path, config)
        _check(path, trained.config, config)
        params = trained.load_params(trained.model())
    except (ConfigError, OSError) as error:
        raise ConfigError(f"config.init_from: {error}") from error
    like = experiment.model.abstract_params()
    if config["network"]["name"] != "unet":  # whose parts we do not know
        _check_same(path, params, like)
        return InitialParams(params, _trained_for(trained.config, config))
    there = _classes(trained.config, trained.origin.get("classes", ()))
    here = _classes(config, names)
    changes = _changes(params, like, trained.config, config, there, here)
    if changes:
        fresh = jax.device_get(experiment.model.init(experiment.keys[0]))
        params = fit(params, fresh, there, here)
    trained_for = _trained_for(trained.config, config)
    return InitialParams(params, [*trained.notes, *trained_for, *changes])


def fit(params, fresh, there: Classes, here: Classes):
    """Puts a model's parameters into those of another network, as far as they go.

    Args:
      params: of the model.
      fresh: of the network, which are left where the model has none.
      there: the classes of the model.
      here: those of the network.

    Returns:
      The parameters of the network, host arrays.
    """
    given = leaves(params)

    def fitted(path, new):
        path = tuple(key.key for key in path)
        if path not in given:
            return new
        old, new = given[path], np.array(new)
        if path[0] == "class_embedding":
            rows = _same_rows(there, here)
            new[[row for _, row in rows]] = old[[row for row, _ in rows]]
        elif path[0] == "conv_out":  # the variance is the second half
            kept = min(old.shape[-1], new.shape[-1])
            new[..., :kept] = old[..., :kept]
        else:
            new[...] = old
        return new

    return jax.tree.map_with_path(fitted, fresh)


def _open(path, config):
    path = str(bring(path))
    if run.is_run(path):
        return load.from_run(path)
    return load.from_pretrained(path, image_shape=tuple(config["image_shape"]))


def _check(path, theirs, ours):
    """Refuses a network whose parameters would not fit, or be read in another way."""
    channels = theirs["image_shape"][2]
    if channels != ours["image_shape"][2]:
        height, width, here = ours["image_shape"]
        raise ConfigError(
            f"{path} is of images of {channels} channels, and config.image_shape says "
            f"{here}: give --config.image_shape={height},{width},{channels}, if the "
            "data have them, or begin from another model"
        )
    networks = [complete(each)["network"] for each in (theirs, ours)]
    there, here = (network["name"] for network in networks)
    if there != here:
        raise ConfigError(f"{path} is of the network {there}, and this run of {here}")
    networks = [
        {"network": {k: _plain(v) for k, v in each.items() if k not in MAY_DIFFER}}
        for each in networks
    ]
    different = differences(*networks)
    if different:
        said = [
            f"{key.removeprefix('network.')} {there} there and {here} here"
            for key, (there, here) in different.items()
        ]
        give = [f"--config.{k}={_option(there)}" for k, (there, _) in different.items()]
        raise ConfigError(
            f"{path} is of another network, {', '.join(said)}: give {' '.join(give)}"
        )


def _check_same(path, params, like):
    """Refuses parameters of other names or shapes."""
    there, here = (
        {jax.tree_util.keystr(key): leaf.shape for key, leaf in leaves_of}
        for leaves_of in map(jax.tree.leaves_with_path, (params, like))
    )
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            raise ConfigError(
                f"config.init_from: {path} is of another network: {name} is "
                f"{there.get(name)} there and {here.get(name)} here"
            )


def _changes(params, like, theirs, ours, there, here):
    """What is new and what is left out, in words; nothing where all is kept."""
    new, gone, notes = _classes_changed(there, here)
    widths = [tree["conv_out"]["bias"].shape[0] for tree in (params, like)]
    if widths[0] != widths[1]:
        (new if widths[0] < widths[1] else gone).append("the variance in conv_out")
    levels = [_attending(tree) for tree in (params, like)]
    sizes = [min(each["image_shape"][:2]) for each in (theirs, ours)]
    new += [f"attention at {sizes[1] >> i}" for i in sorted(levels[1] - levels[0])]
    gone += [f"attention at {sizes[0] >> i}" for i in sorted(levels[0] - levels[1])]
    notes += [f"new: {', '.join(new)}"] if new else []
    notes += [f"left out: {', '.join(gone)}"] if gone else []
    if levels[0] != levels[1]:
        option = _option([sizes[1] >> i for i in sorted(levels[0])])
        notes.append(
            "attention as it was trained is had with "
            f"--config.network.attention_resolutions={option}"
        )
    return notes


def _classes_changed(there, here):
    """What is new, what is left out, and what else is said of a class embedding."""
    what, new, gone, notes = "class_embedding", [], [], []
    by_name = there.names and here.names
    if by_name and there.names != here.names:
        notes.append("classes keep what they have under their names")
        for found, one, other in ((new, here, there), (gone, there, here)):
            if alone := [name for name in one.names if name not in other.names]:
                more = ", …" if len(alone) > 10 else ""
                found.append(f"{what} of {', '.join(alone[:10])}{more}")
    elif there.num != here.num:
        kept = "; the null class is kept" if there.null and here.null else ""
        if here.num:
            new.append(f"{what} ({here.num} classes; {there.num} there{kept})")
        else:
            gone.append(f"{what} ({there.num} classes there)")
    elif bool(there.names) != bool(here.names):
        notes.append("classes keep what they have under their numbers")
    if there.null != here.null and here.num and (by_name or there.num == here.num):
        (new if here.null else gone).append("the null class")
    return new, gone, notes


def _trained_for(theirs, ours):
    """What the parameters were trained for, and this run is not, in words."""
    sides = [
        {
            "image_shape": list(each["image_shape"]),
            "schedule": {"zero_terminal_snr": False} | complete(each)["schedule"],
            "loss": {"predicts": complete(each)["loss"].get("predicts", "eps")},
        }
        for each in (theirs, ours)
    ]
    return [
        f"{key} was {str(there)[:40]} there and is {str(here)[:40]} here"
        for key, (there, here) in differences(*sides).items()
    ]


def _classes(config, names):
    network = complete(config)["network"]
    num = network.get("num_classes", 0)
    told = len(names) == num and [*names] != [*map(str, range(num))]
    null = num > 0 and network.get("label_dropout", 0) > 0
    return Classes(num, null, tuple(names) if told else ())


def _same_rows(there, here):
    """Which rows of two class embeddings mean the same."""
    rows = [(i, i) for i in range(there.num)] if there.num == here.num else []
    if there.names and here.names:
        numbers = {name: i for i, name in enumerate(there.names)}
        rows = [
            (numbers[name], i) for i, name in enumerate(here.names) if name in numbers
        ]
    return [*rows, (there.num, here.num)] if there.null and here.null else rows


def _attending(params):
    """The levels of a U-Net with attention, beside the middle."""
    return {
        int(name.split("_")[1])
        for name in params
        if name.endswith("_attn") and name != "mid_attn"
    }


def _plain(value):
    return [*value] if isinstance(value, tuple) else value


def _option(value):
    """A value as the command line has it."""
    if not isinstance(value, list):
        return value
    return ",".join(map(str, value)) + ("," if len(value) == 1 else "") or "()"
