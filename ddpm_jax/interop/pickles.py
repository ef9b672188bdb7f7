"""Pickles of whole PyTorch modules, such as NVIDIA's of EDM, read as data.

A pickle is a program: it names classes and functions of any package, and calls them.
Here each name is an inert record of what it would be called with, but for the three
that make tensors, which are written anew in NumPy; nothing is imported, nothing runs.
Of the records, those with parameters, buffers and modules are PyTorch's modules.
"""

import io
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

TYPES = {
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
}
HOLDS = ("_parameters", "_buffers", "_modules")  # what a module does


def read_modules(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of all modules in a file, as their state_dict names them.

    Before these stands what holds a module, as in "ema.model.conv.weight".

    Raises:
      ValueError, EOFError, LookupError, TypeError, AttributeError, pickle.PickleError,
        struct.error: if it is no pickle, or damaged.
    """
    with path.open("rb") as file:
        return dict(_tensors(_Records(file).load()))


class Record(dict):
    """What a name in a pickle would have been called with, and be told; inert.

    It is a dictionary, as some are there. What else it is told of its attributes, or
    else what it was made of, is its `state`.
    """

    state = None
    __hash__ = object.__hash__

    def __init__(self, *args, **kwargs):
        self.state = args[0] if args else None

    def __setstate__(self, state):
        self.state = state

    def append(self, item):
        """Forgets an item: no list holds a module."""


class _Records(pickle.Unpickler):
    """Reads a pickle in which only tensors are made."""

    def find_class(self, module, name):
        made = {
            ("torch._utils", "_rebuild_tensor_v2"): rebuilt,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch.storage", "_load_from_bytes"): _storage,
        }
        return made.get((module, name)) or type(name, (Record,), {})

    def persistent_load(self, pid):
        """Of a storage within bytes: its type, name and number of elements."""
        _, kind, key, _, size, *_ = pid
        return TYPES[kind.__name__], key, size


def _storage(data: bytes) -> np.ndarray:
    """The elements of a storage, which PyTorch saved in its format before zip files.

    These are pickles of a number, a version, a machine, the storage's description and
    the list of its names, and then the number of elements, and they themselves.
    """
    file = io.BytesIO(data)
    *_, (dtype, _, size), _ = (_Records(file).load() for _ in range(5))
    (count,) = struct.unpack("<q", file.read(8))
    if count != size:
        raise ValueError(f"a storage of {size} elements says that it has {count}")
    return np.frombuffer(file.read(), np.dtype(dtype).newbyteorder("<"), count)


def rebuilt(storage, offset, shape, strides, *_) -> np.ndarray:
    """Returns a tensor, whose offset and strides count elements of its storage.

    Raises:
      ValueError: if some of it lies outside.
    """
    size = storage.itemsize
    strides = [size * step for step in strides]
    view = np.ndarray(shape, storage.dtype, storage, size * offset, strides)
    return np.ascontiguousarray(view)


def _tensors(value, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of what a pickle holds, by name."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, dict):
        module = _module(value)
        for key, each in value.items() if module is None else module:
            yield from _tensors(each, f"{name}.{key}" if name else str(key))


def _module(value) -> list[tuple[str, Any]] | None:
    """What a module holds, by name; None of anything else."""
    state = getattr(value, "state", None)
    # Of a class that brings its own code, it lies in what the class is made of.
    if isinstance(state, dict) and isinstance(state.get("state"), dict):
        state = state["state"]
    if not isinstance(state, dict) or "_modules" not in state:
        return None
    return [pair for kind in HOLDS for pair in state.get(kind, {}).items()]
