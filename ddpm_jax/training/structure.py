"""Whether a checkpoint is of the network that is to be read from it."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp


def other_modules(folder: Path, wanted) -> str:
    """Returns which modules stored parameters and a network do not share, in words."""
    there = {*ocp.StandardCheckpointHandler().metadata(folder).tree}
    sides = {"it has": there - {*wanted}, "it has no": {*wanted} - there}
    return ", ".join(f"{k} {', '.join(sorted(v)[:3])}" for k, v in sides.items() if v)


def check_shapes(wanted, found, where: str) -> None:
    """Compares the shapes of a checkpoint with those of a network.

    Raises:
      OSError: naming the first that differs.
    """
    for (path, a), b in zip(
        jax.tree.leaves_with_path(wanted), jax.tree.leaves(found), strict=True
    ):
        if a.shape != b.shape:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise OSError(
                f"the checkpoint of {where} is of another network: {name} is {b.shape} "
                f"there and {a.shape} in the config"
            )
