"""The house: imports run one way, and each job has its one place."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path("ddpm_jax")
FILES = sorted(PACKAGE.rglob("*.py"))
# A folder or file may import those of lower rank, and itself; equals know nothing of
# each other.
RANKS = {
    "errors": 0,
    "version": 0,
    "files": 0,
    "cache": 0,
    "diffusion": 1,
    "networks": 1,
    "data": 1,
    "config": 1,
    "training": 1,
    "construct": 2,
    "transforms": 2,
    "interop": 2,
    "evaluation": 3,
    "experiment": 3,
    "datasets": 3,
    "remarks": 4,
    "runs": 4,
    "plan": 4,
    "scoring": 4,
    "compiled": 5,
    "models": 5,
    "edits": 5,
    "cli": 6,
    "arguments": 7,
    "beginnings": 6,
    "beside": 6,
    "drawings": 6,
    "train": 8,
    "sample": 8,
    "convert": 8,
    "reference": 8,
    "evaluate": 8,
    "__init__": 9,
}


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_run_one_way(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "ddpm_jax" and len(parts) > 1 and parts[1] != here:
            assert RANKS[parts[1]] < RANKS[here], f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_what_is_imported_where(path):
    names = set(imports(path))
    uses = lambda package: any(f"{name}.".startswith(f"{package}.") for name in names)
    if room(path) != "networks":
        assert not uses("flax"), "flax is for networks/"
    if room(path) == "diffusion":
        allowed = (
            "jax",
            "diffrax",
            "jaxtyping",
            "numpy",
            "ddpm_jax",
            "collections",
            "typing",
        )
        assert {name.split(".")[0] for name in names} <= set(allowed)
    if room(path) == "data":
        assert not uses("jax"), "data/ is NumPy on the host"
    assert not uses("tensorflow")
    if path != PACKAGE / "interop" / "tensors.py":
        assert not uses("torch"), "torch is there to read pickles"
    if room(path) == "interop":
        assert not uses("ddpm_jax.construct"), "interop gives plain dictionaries"
    if RANKS[room(path)] < RANKS["construct"] or room(path) == "interop":
        assert not uses("ddpm_jax.config"), "configs stop at the door"


def test_one_place_for_each():
    """The one pmap, the one scan over times, the one t - 1."""

    def holding(*words):
        return [
            str(path.relative_to(PACKAGE))
            for path in FILES
            if all(word in path.read_text() for word in words)
        ]

    assert holding("jax.pmap(") == ["training/parallel.py"]
    assert holding("jax.shard_map(") == ["training/parallel.py"]
    assert holding("jax.lax.scan(", "timesteps") == ["diffusion/sampling.py"]
    assert holding("(t) - 1") == ["diffusion/denoisers.py"]


def test_rooms_are_not_crowded():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 320, path
        assert path.stem not in ("utils", "helpers", "common", "misc")
