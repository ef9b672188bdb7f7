"""`docs/tutorial.ipynb`: it runs, in small, and its outputs are those of its code."""

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

spec = importlib.util.spec_from_file_location("tutorial", "docs/tutorial.py")
tutorial = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tutorial)

# Of a notebook: its cells in one namespace, and what a cell ends with is shown.
RUN = """
import ast, json, sys, warnings
import matplotlib
matplotlib.use("agg")
warnings.simplefilter("error")
names = {"__name__": "__main__"}
for number, source in enumerate(json.load(sys.stdin), 1):
    tree, file = ast.parse(source), f"cell {number}"
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, file, "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), file, "eval"), names)
        if hasattr(value, "_repr_html_"):
            print(value._repr_html_())
"""


@pytest.fixture(scope="module")
def notebook():
    return json.loads(tutorial.NOTEBOOK.read_text())


def test_it_runs_in_small(notebook, tmp_path):
    env = {
        **os.environ,
        "TUTORIAL": "small",
        "PYTHONPATH": os.getcwd(),
        "XLA_FLAGS": re.sub(
            r"--xla_force_host\S*", "", os.environ.get("XLA_FLAGS", "")
        ),
    }
    sources = ["".join(cell["source"]) for cell in tutorial.code_cells(notebook)]
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        env=env,
        input=json.dumps(sources),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs" / "tutorial_small" / "unet").is_dir()
    assert "squared error nan" not in done.stdout


def test_the_outputs_are_those_of_the_code(notebook):
    """After a change of the code: `python docs/tutorial.py`."""
    cells = tutorial.code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert tutorial.checksum(notebook) == notebook["metadata"]["executed"]["checksum"]


def test_the_outputs_are_pictures_and_text(notebook):
    """Nothing failed or warned, and each picture is one."""
    pictures = 0
    for cell in tutorial.code_cells(notebook):
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output["text"]
            if png := output.get("data", {}).get("image/png"):
                assert base64.b64decode(png).startswith(b"\x89PNG")
                pictures += 1
    assert pictures >= 9
    assert tutorial.NOTEBOOK.stat().st_size < 2**20  # as any file of an archive


def test_what_it_links_to_is_there(notebook):
    text = "".join("".join(cell["source"]) for cell in notebook["cells"])
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (tutorial.NOTEBOOK.parent / link).is_file(), link
