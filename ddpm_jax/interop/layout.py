"""The bridge between our tree of parameters and the names and axes of PyTorch files.

A convolution is [out, in, height, width] there and [height, width, in, out] here; a
linear layer [out, in] and [in, out]. What is linear here may be a 1x1 convolution
there; queries, keys and values may be the rows of one tensor.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

Path = tuple[str, ...]  # of a leaf in our tree, such as ("mid_attn", "q", "kernel")
Tensors = Mapping[str, np.ndarray]


class Layout(NamedTuple):
    """How a kind of file names and shapes what our tree holds.

    Attributes:
      modules: our modules -> theirs, such as "mid_attn" or "down_0_downsample.conv".
      parts: our names of what is inside a module -> theirs, where they differ.
      pointwise: our linear layers that are 1x1 convolutions there -> how many axes of
        length 1 those have.
      fused_rows: (part, width) -> which rows of a tensor three times as wide are ours,
        for parts that share one; None for all others.
      names: our parameters that are no kernel, bias or scale -> their tensors.
      stacks: our modules that hold several of theirs along a first axis; "blocks" is
        "blocks_0", "blocks_1", … in what names modules.
      shapes: our parameters that have other axes there -> their shape; a linear layer
        of patches, which is a convolution there, and what has an axis of length 1.
    """

    modules: Mapping[str, str]
    parts: Mapping[str, str]
    pointwise: Mapping[str, int]
    fused_rows: Callable[[str, int], np.ndarray | None] = lambda part, width: None
    names: Mapping[str, str] = {}
    stacks: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = {}


class Entry(NamedTuple):
    """Where a file holds one of our arrays.

    Attributes:
      name: the tensor.
      shape: its shape there.
      rows: those of its rows that are ours, None for all.
    """

    name: str
    shape: tuple[int, ...]
    rows: np.ndarray | None = None


def leaves(tree, path: Path = ()) -> dict[Path, Any]:
    """Returns the leaves of nested dictionaries by their paths."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {
        key: leaf
        for name, branch in tree.items()
        for key, leaf in leaves(branch, (*path, name)).items()
    }


def unstacked(tree: Mapping, stacks: Iterable[str]) -> dict:
    """Returns a tree with what is stacked in a module as modules of their own."""
    apart = {name: branch for name, branch in tree.items() if name not in stacks}
    for name in stacks:
        for i in range(len(next(iter(leaves(tree[name]).values())))):
            apart[f"{name}_{i}"] = _map(lambda leaf, i=i: leaf[i], tree[name])
    return apart


def restacked(tree: Mapping, stacks: Iterable[str]) -> dict:
    """Returns a tree as it was before `unstacked`."""
    together = dict(tree)
    for name in stacks:
        number = sum(bool(re.fullmatch(rf"{name}_\d+", key)) for key in tree)
        each = [together.pop(f"{name}_{i}") for i in range(number)]
        together[name] = _map(lambda *leaf: np.stack(leaf), *each)
    return together


def _of_shape(leaf):
    """An array of a leaf's shape and type, which takes no memory."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _map(function, first, *others):
    """Calls a function on the leaves of trees of one structure."""
    if not isinstance(first, Mapping):
        return function(first, *others)
    return {k: _map(function, v, *(o[k] for o in others)) for k, v in first.items()}


def make_entries(layout: Layout, like) -> dict[Path, Entry]:
    """Returns where a file holds each array of a tree, of which only shapes count."""
    return {path: _entry(layout, path, x.shape) for path, x in leaves(like).items()}


def read_params(tensors: Tensors, layout: Layout, like) -> dict:
    """Makes a tree of parameters of a file's tensors, which must fit it exactly.

    Args:
      tensors: the file's tensors.
      layout: how it names and shapes our arrays.
      like: a tree of the shapes and types wanted, which may be abstract.

    Raises:
      OSError: one line that says what is missing, not expected, of another shape, or
        not finite.
    """
    apart = unstacked(_map(_of_shape, like), layout.stacks)
    entries = make_entries(layout, apart)
    faults = _faults(tensors, entries)
    if faults:
        raise OSError("; ".join(faults))
    params = {}
    for path, leaf in leaves(apart).items():
        *parents, last = path
        branch = params
        for name in parents:
            branch = branch.setdefault(name, {})
        array = _to_ours(tensors[entries[path].name], entries[path], last)
        branch[last] = np.array(array, leaf.dtype, order="C").reshape(leaf.shape)
    return restacked(params, layout.stacks)


def write_tensors(params, layout: Layout) -> dict[str, np.ndarray]:
    """Returns parameters as a file's float32 tensors."""
    tensors, apart = {}, unstacked(params, layout.stacks)
    entries = make_entries(layout, apart)
    for path, leaf in leaves(apart).items():
        entry = entries[path]
        array = _to_theirs(np.asarray(leaf, np.float32), entry, path[-1])
        if entry.rows is None:
            tensors[entry.name] = np.ascontiguousarray(array)
        else:
            whole = tensors.setdefault(entry.name, np.zeros(entry.shape, np.float32))
            whole[entry.rows] = array
    return tensors


def reshaped(
    params, names: Mapping[str, str], patch_size: int
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that tensors have where ours lack axes, by their names.

    Args:
      params: parameters of a transformer of patches.
      names: our parameters -> their tensors. A kernel, of patches, is a convolution
        there; others have a first axis of length 1.
      patch_size: pixels along a side of a patch.
    """
    shapes = {}
    for path, leaf in leaves(params).items():
        name = names.get(".".join(path))
        if name and path[-1] == "kernel":
            inside, outside = leaf.shape
            shapes[name] = (outside, inside // patch_size**2, *[patch_size] * 2)
        elif name:
            shapes[name] = (1, *leaf.shape)
    return shapes


def shape_of(tensors: Tensors, name: str) -> tuple[int, ...]:
    """Returns the shape of a tensor that there must be.

    Raises:
      OSError: if there is none of that name.
    """
    if name not in tensors:
        raise OSError(f"missing: {name}")
    return tensors[name].shape


def multiples(widths, channels: int) -> list[int]:
    """Returns channel_mults, the features of each level as multiples of `channels`.

    Raises:
      OSError: if one is no multiple.
    """
    if channels < 1 or any(width < channels or width % channels for width in widths):
        raise OSError(
            f"levels of {', '.join(map(str, widths))} features are not supported, only "
            f"multiples of the model's first, {channels}"
        )
    return [width // channels for width in widths]


def few(names: Iterable[str], most: int = 3) -> str:
    """Returns the first of some names and how many more there are, in words."""
    names = [*names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _entry(layout, path, shape):
    whole = ".".join(path)
    if whole in layout.names:
        return Entry(layout.names[whole], layout.shapes.get(whole, tuple(shape)))
    *module, kind = path
    rows = None
    if kind == "kernel":
        *window, inside, outside = shape
        ones = layout.pointwise.get(module[-1], 0)
        shape = (outside, inside, *window, *[1] * ones)
    if len(module) > 1:
        rows = layout.fused_rows(module[-1], shape[0])
    if rows is not None:
        shape = (3 * shape[0], *shape[1:])
    name = f"{_module_name(layout, module)}.{'bias' if kind == 'bias' else 'weight'}"
    return Entry(name, layout.shapes.get(whole, tuple(shape)), rows)


def _module_name(layout, module):
    whole = ".".join(module)
    if whole in layout.modules:
        return layout.modules[whole]
    # A module that such a file cannot hold keeps our name, and is reported as missing.
    first, *parts = module
    parts = (layout.parts.get(part, part) for part in parts)
    return ".".join((layout.modules.get(first, first), *parts))


def _to_ours(array, entry, kind):
    if entry.rows is not None:
        array = array[entry.rows]
    if kind != "kernel":
        return array
    if array.ndim == 4 and array.shape[2:] != (1, 1):
        return array.transpose(2, 3, 1, 0)
    return array.reshape(array.shape[:2]).T


def _to_theirs(array, entry, kind):
    if kind != "kernel":
        return array if entry.rows is not None else array.reshape(entry.shape)
    if array.ndim == 2 and len(entry.shape) == 4 and entry.shape[2:] != (1, 1):
        outside, inside, *window = entry.shape
        array = array.reshape(*window, inside, outside)
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T.reshape(-1, *entry.shape[1:])


def _faults(tensors, entries):
    wanted = {entry.name: entry.shape for entry in entries.values()}
    there = [name for name in wanted if name in tensors]
    misshapen = [
        f"{name} is {list(tensors[name].shape)} there and {list(wanted[name])} in the "
        "model"
        for name in there
        if tensors[name].shape != wanted[name]
    ]
    groups = {
        "missing: ": [name for name in wanted if name not in tensors],
        "not expected: ": [name for name in tensors if name not in wanted],
        "": misshapen,
        "not finite: ": [n for n in there if not np.isfinite(tensors[n]).all()],
    }
    return [said + few(names) for said, names in groups.items() if names]
