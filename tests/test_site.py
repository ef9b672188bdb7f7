"""The site is built without a warning: links, anchors, formulas and docstrings hold."""

import json
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("sphinx", reason="the site needs pip install -e '.[docs]'")

# Without the pages of source code, which hold nothing that could break.
LIGHT = "extensions=myst_parser,sphinx.ext.autodoc,sphinx.ext.napoleon"


def built(docs, out, *more):
    """Returns what Sphinx says of a strict build that ends as it should."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", *more]
    command += ["-D", LIGHT, docs, out]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_site(tmp_path):
    done = built("docs", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    text = (tmp_path / "site" / "api" / "samplers.html").read_text()
    assert "ddpm_jax.diffusion.samplers.ddim" in text


def test_what_is_dead_or_wrong_is_named(tmp_path):
    """Pages beside the site's conf.py; what is between them is all there is."""
    (tmp_path / "docs").mkdir()
    shutil.copy("docs/conf.py", tmp_path / "docs")
    (tmp_path / "elsewhere.md").write_text("# Elsewhere")
    (tmp_path / "docs" / "other.md").write_text("---\norphan: true\n---\n# A heading\n")
    good = [
        "[a page](other.md), [a heading](other.md#a-heading)",
        "[a file](conf.py), [one beside docs](../elsewhere.md)",
        "$x_t = \\alpha_t x_0 + \\sigma_t \\epsilon$",
    ]
    bad = [
        "[a page](gone.md)",
        "[a heading](other.md#gone)",
        "[a file](../gone.py)",
        "[another](../gone.md)",
        "![a picture](gone.png)",
        "$\\gone{x}$",
    ]
    outputs = [{"output_type": "stream", "text": ["printed ", "in parts\n"]}]
    outputs += [{"output_type": "display_data", "data": {"text/plain": ["shown"]}}]
    cells = [{"cell_type": "markdown", "source": ["# A notebook\n", "$x_0$"]}]
    cells += [{"cell_type": "code", "source": ["1 + 1"], "outputs": outputs}]
    (tmp_path / "docs" / "cells.ipynb").write_text(json.dumps({"cells": cells}))
    good.append("[a notebook](cells.ipynb)\n```{toctree}\ncells\n```")
    index = tmp_path / "docs" / "index.md"
    index.write_text("\n\n".join(["# Index", *good, *bad]))
    done = built(tmp_path / "docs", tmp_path / "site")
    assert done.returncode != 0
    said = done.stderr.strip().splitlines()
    lines = sorted(int(line.split("index.md:")[1].split(":")[0]) for line in said)
    first = index.read_text().splitlines().index(bad[0]) + 1
    assert lines == [*range(first, first + 12, 2)], done.stderr
    page = (tmp_path / "site" / "cells.html").read_text()
    assert "printed in parts" in page and "shown" in page
    assert "<math" in page and "cdn" not in page
