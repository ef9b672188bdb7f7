"""A whole sampler as one file, StableHLO, that needs JAX alone.

  import jax.export, numpy as np
  sampler = jax.export.deserialize(bytearray(open("sampler.stablehlo", "rb").read()))
  images = sampler.call(np.uint32(0), np.arange(16), np.arange(16) % 10)

It is given a seed, the numbers of the images, and labels where there are classes, and
gives what `sample_fn` does: image i of a seed is the same whatever is asked beside it.
A program for one platform and a known number of images is that of `sample_fn`, bit for
bit. For any number, or several platforms, it is written otherwise, so that compilers
simplify it otherwise: a division by a root that is the same for all images may become
a product with its inverse. That rounds otherwise, by 1e-6 and less.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from ddpm_jax.errors import ConfigError, reason
from ddpm_jax.experiment.model import Model
from ddpm_jax.files import atomic_write
from ddpm_jax.interop import own
from ddpm_jax.metrics.features.base import fingerprint
from ddpm_jax.version import VERSION

PLATFORMS = ("cpu", "cuda", "tpu")
# What a file of JAX's format may hold, less some room for the program itself.
_MOST = 2**31 - 2**26
# How images lie on a TPU: XLA knows it everywhere, JAX promises nothing for it.
_HINTS = (export.DisabledSafetyCheck.custom_call("LayoutConstraint"),)
# What JAX says of such files: docs.jax.dev/en/latest/export, compatibility guarantees.
_WINDOW = (
    "read by a JAX released up to 6 months after this one, or up to 3 weeks before it; "
    "export the model again for others"
)


def trace_sampler(
    model: Model,
    is_apart: bool = False,
    platforms: Sequence[str] = PLATFORMS,
    batch_size: int | None = None,
) -> export.Exported:
    """Traces the sampler of a model.

    Args:
      model: the model, with its parameters.
      is_apart: whether the program is given the parameters, by their names in the files
        of `own`, as its first argument; else it holds them.
      platforms: that it is to run on.
      batch_size: how many images it draws, b; None for any number.

    Returns:
      The program: (params, if they are apart; seed uint32 []; numbers int32 [b]; labels
      int32 [b], where there are classes) -> images float32 [b, height, width, channels]
      in [-1, 1], not-a-number where a label is no class.

    Raises:
      ConfigError: if it cannot hold its parameters, or the network cannot do without
        the number of images.
    """
    num_labels = model.num_classes + (model.null is not None)

    def draw(tensors, seed, numbers, labels=None):
        params = own.unnamed(tensors, model.params)
        words = jnp.stack([jnp.uint32(0), seed])
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        images = model.sample_fn(params, keys, labels)
        if labels is None:
            return images
        is_class = (labels >= 0) & (labels < num_labels)
        return jnp.where(is_class[:, None, None, None], images, jnp.nan)

    tensors = own.named(model.params)

    def draw_as_trained(*given):
        # Without the barrier the compiler computes with known parameters ahead, and
        # rounds otherwise than a sampler that is given them.
        return draw(jax.lax.optimization_barrier(tensors), *given)

    size = sum(leaf.nbytes for leaf in tensors.values())
    if size > _MOST and not is_apart:
        raise ConfigError(
            f"the parameters take {size / 1e9:.1f} GB, more than such a file holds: "
            "give --apart, for a file of their own"
        )
    batch = export.symbolic_shape("b") if batch_size is None else (batch_size,)
    of_each = jax.ShapeDtypeStruct(batch, np.int32)
    given = [jax.ShapeDtypeStruct((), np.uint32), of_each]
    given += [of_each] if model.num_classes else []
    traced = jax.jit(draw if is_apart else draw_as_trained)
    try:
        return export.export(traced, platforms=platforms, disabled_checks=_HINTS)(
            *([jax.eval_shape(lambda: tensors)] if is_apart else []), *given
        )
    except TypeError as error:  # as of len(x) of a batch
        raise ConfigError(
            "the network is not written for any number of images: give --batch_size, "
            f"or use x.shape[0] in place of len(x) in it ({reason(error)})"
        ) from error


def write(
    path: Path,
    model: Model,
    is_apart: bool = False,
    platforms: Sequence[str] = PLATFORMS,
    batch_size: int | None = None,
    origin: dict[str, Any] | None = None,
) -> None:
    """Writes the sampler of a model, and beside it, as JSON, what it is.

    Args:
      path: of the file; its card has the same name, ending in `.json`, and parameters
        that are apart one ending in `.safetensors`.
      model: the model, with its parameters.
      is_apart: whether these have a file of their own.
      platforms: that it is to run on.
      batch_size: how many images it draws, None for any number.
      origin: what else its card is to say.

    Raises:
      ConfigError: see `trace_sampler`.
      OSError: if a file cannot be written.
    """
    program = trace_sampler(model, is_apart, platforms, batch_size)
    content = bytes(program.serialize())
    apart = path.with_suffix(".safetensors")
    card = describe(model, program, content, path.name, apart.name if is_apart else "")
    card |= origin or {}
    if is_apart:
        own.export(model.sections, model.params, apart)
    with atomic_write(path) as partial:
        partial.write_bytes(content)
    with atomic_write(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(card, indent=2) + "\n")


def describe(
    model: Model, program: export.Exported, content: bytes, name: str, apart: str
) -> dict[str, Any]:
    """Returns what a program is, as JSON has it.

    Args:
      model: whose sampler it is.
      program: the sampler.
      content: of its file.
      name: of its file.
      apart: the name of the file of its parameters, "" where it holds them.
    """
    batch, *shape = program.out_avals[0].shape
    num = batch if isinstance(batch, int) else 16
    takes = {f"params, of {apart}": "named tensors"} if apart else {}
    takes |= {"seed": "uint32 []", "numbers of the images": f"int32 [{batch}]"}
    call, imports, load = f"np.uint32(0), np.arange({num})", "", []
    if model.num_classes:
        none = f"; {model.null} for none" if model.null is not None else ""
        takes["labels"] = f"int32 [{batch}], 0 ... {model.num_classes - 1}{none}"
        call += f", np.arange({num}) % {model.num_classes}"
    if apart:
        imports, call = ", safetensors.numpy", f"params, {call}"
        load = [f'params = safetensors.numpy.load_file("{apart}")']
    return {
        "sampler": f"of ddpm_jax {VERSION}",
        "python": [
            f"import jax.export, numpy as np{imports}",
            f'content = bytearray(open("{name}", "rb").read())',
            "sampler = jax.export.deserialize(content)",
            *load,
            f"images = sampler.call({call})",
        ],
        "takes": takes,
        "gives": f"float32 [{batch}, {', '.join(map(str, shape))}] in [-1, 1]",
        "platforms": program.platforms,
        "protocol": model.protocol(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "params_sha256": fingerprint(model.params),
        "sha256": hashlib.sha256(content).hexdigest(),
        "jax": jax.__version__,
        "calling_convention_version": program.calling_convention_version,
        "compatibility": _WINDOW,
        "times": np.asarray(model.timesteps).tolist(),
    }
