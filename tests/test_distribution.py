"""What is handed out: the wheel, the source archive, and the files for people."""

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling import build

from ddpm_jax.version import VERSION

RECIPES = {path.name for path in Path("configs").glob("*.py")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return folder / build.build_wheel(str(folder))


def test_the_wheel_holds_the_package_its_data_and_the_recipes(wheel):
    names = {
        name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name
    }
    package = {
        str(path)
        for path in Path("ddpm_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"ddpm_jax/{name}" for name in ("py.typed", "data/digits.npz")} <= package
    assert "ddpm_jax/sampling/page.html" in package
    assert names == package | {f"ddpm_jax/configs/{name}" for name in RECIPES}


def test_a_recipe_is_found_without_a_clone(wheel, tmp_path):
    """From the wheel, in an empty folder; one that lies there comes first."""
    (tmp_path / "site").mkdir()
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "cifar.py").write_text(
        "def get_config():\n    return dict(seed=7, image_shape=(8, 8, 1))\n"
    )
    code = """
from ddpm_jax.experiment import config
for spec in ("digits.py", "configs/digits.py", "lsun.py:cat", "cifar.py"):
    print([config.recipe(spec), config.read_config(spec).get("seed")])
for spec in ("digit.py", "digits", "other/digits.py", "configs/other/digits.py"):
    assert config.recipe(spec) is None
    try:
        config.read_config(spec)
    except config.ConfigError as error:
        print([str(error)])
"""
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=empty,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [ast.literal_eval(line) for line in said.stdout.splitlines()]
    folder = tmp_path / "site" / "ddpm_jax" / "configs"
    assert lines[:4] == [
        [str(folder / "digits.py"), 0],
        [str(folder / "digits.py"), 0],
        [str(folder / "lsun.py"), 0],
        [None, 7],
    ]
    nearest = "unknown recipe of ddpm_jax {!r}; did you mean 'digits.py'?"
    for [line], name in zip(lines[4:6], ("digit.py", "digits"), strict=True):
        assert line == f"no file {name!r} here; {nearest.format(name)}"
    assert lines[6:] == [
        ["no file 'other/digits.py'"],
        ["no file 'configs/other/digits.py'"],
    ]


def test_the_source_archive_holds_what_tests_need_and_no_more(tmp_path):
    (tmp_path / "sdist").mkdir()
    with tarfile.open(
        tmp_path / "sdist" / build.build_sdist(str(tmp_path / "sdist"))
    ) as archive:
        files = {
            member.name.partition("/")[2]: member.size
            for member in archive
            if member.isfile()
        }
    assert {
        "PKG-INFO",
        "pyproject.toml",
        "LICENSE",
        "tests/conftest.py",
    } <= files.keys()
    assert {f"configs/{name}" for name in RECIPES} <= files.keys()
    assert max(files.values()) < 2**20 and sum(files.values()) < 10 * 2**20
    junk = re.compile(
        r"__pycache__|\.py[co]$|^(\.git|\.cache|\.venv|runs|dist)/|\.egg-info"
    )
    assert not [name for name in files if junk.search(name)]


def test_the_version_is_said_in_one_place():
    files = [
        *Path().glob("*.*"),
        *Path("docs").rglob("*.*"),
        *Path("ddpm_jax").rglob("*.py"),
    ]
    told = [
        str(path)
        for path in files
        if path.suffix in (".py", ".md", ".toml", ".cff")
        and re.search(rf"\b(?<![\d.]){re.escape(VERSION)}\b(?!\.\d)", path.read_text())
    ]
    assert set(told) - {"CHANGELOG.md"} == {"ddpm_jax/version.py"}
    assert re.search(r"^## Unreleased", Path("CHANGELOG.md").read_text(), re.M)


def test_the_citation_has_what_its_format_asks_for():
    """https://github.com/citation-file-format, version 1.2.0."""
    told = yaml.safe_load(Path("CITATION.cff").read_text())
    assert told["cff-version"] == "1.2.0" and told["type"] == "software"
    assert told["authors"] == [{"name": "The ddpm_jax authors"}]
    assert told["license"] == "Apache-2.0" and told["title"] and told["message"]
    assert "version" not in told


def test_forms_ask_for_what_helps():
    for path in Path(".github/ISSUE_TEMPLATE").glob("[!c]*.yml"):
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys()
        ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(set(ids)) == len(ids)
    wrong = Path(".github/ISSUE_TEMPLATE/wrong.yml").read_text()
    assert all(
        word in wrong
        for word in ("command", "config.json", "jax.print_environment_info")
    )


def test_ci_runs_what_a_clean_clone_must_pass():
    jobs = yaml.safe_load(Path(".github/workflows/ci.yml").read_text())["jobs"]
    versions = jobs["tests"]["strategy"]["matrix"]["python"]
    assert len(versions) == 2 and "3.11" in versions  # the first of requires-python
    assert [step["run"] for step in jobs["tests"]["steps"] if "run" in step] == [
        ".ci/run"
    ]
    hooks = yaml.safe_load(Path(".pre-commit-config.yaml").read_text())["repos"]
    assert all(re.fullmatch(r"v[\d.]+", repo["rev"]) for repo in hooks)
    named = {hook["id"] for repo in hooks for hook in repo["hooks"]}
    assert {"ruff-check", "ruff-format", "shellcheck"} <= named
