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
    "buckets": 0,
    "places": 1,
    "files": 2,
    "diffusion": 3,
    "networks": 3,
    "distributed": 3,
    "data": 3,
    "training": 4,
    "interop": 4,
    "metrics": 5,
    "experiment": 6,
    "compiled": 7,
    "sampling": 8,
    "evaluation": 9,
    "cli": 10,
    "train": 11,
    "sample": 11,
    "convert": 11,
    "ema": 11,
    "reference": 11,
    "evaluate": 11,
    "export": 11,
    "demo": 11,
    "__init__": 12,
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
    if room(path) != "networks" and "features" not in path.parts:
        assert not uses("flax"), "flax is for networks/ and metrics/features/"
    if room(path) == "diffusion":
        allowed = (
            "jax",
            "diffrax",
            "jaxtyping",
            "math",
            "numpy",
            "ddpm_jax",
            "collections",
            "functools",
            "typing",
            "warnings",
        )
        assert {name.split(".")[0] for name in names} <= set(allowed)
    if room(path) == "data":
        assert not uses("jax"), "data/ is NumPy on the host"
    assert not uses("tensorflow")
    if path != PACKAGE / "interop" / "tensors.py":
        assert not uses("torch"), "torch is there to read pickles"


def test_one_place_for_each():
    """The one pmap, the one scan over times, the one t - 1."""

    def holding(*words):
        return [
            str(path.relative_to(PACKAGE))
            for path in FILES
            if all(word in path.read_text() for word in words)
        ]

    assert holding("jax.pmap(") == ["distributed/devices.py"]
    assert holding("jax.shard_map(") == ["distributed/devices.py"]
    assert holding("jax.lax.scan(", "timesteps") == ["diffusion/samplers/loop.py"]
    assert holding("(t) - 1") == ["diffusion/denoisers.py"]


def test_rooms_are_not_crowded():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 320, path
        assert path.stem not in ("utils", "helpers", "common", "misc")


def functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_config_is_read_at_one_door(path):
    """Beyond it there are models, data sets and options; interop/ makes configs."""
    if room(path) in ("experiment", "interop"):
        return
    for function in functions(path):
        given = function.args
        names = {a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
        assert not names & {"config", "settings"}, f"{path}: {function.name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_mistakes_of_a_config_are_said_by_those_who_read_it(path):
    raised = "raise ConfigError" in path.read_text()
    assert not raised or RANKS[room(path)] >= RANKS["experiment"]


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=str)
def test_no_function_hides_a_file_of_its_package(folder):
    """What a package gives away is not called as a file in it."""
    names = {path.stem for path in folder.iterdir() if path.suffix in ("", ".py")}
    tree = ast.parse((folder / "__init__.py").read_text())
    public = {function.name for function in functions(folder / "__init__.py")}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            public |= {alias.asname or alias.name for alias in node.names}
    hidden = public & (names - {"__init__", "__pycache__"})
    modules = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    inside = str(folder).replace("/", ".")
    assert not {name for name in hidden if f"{inside}.{name}" not in modules}
