"""The tables of docs/results.md hold every recipe, and what its plan says."""

import importlib.util
import re
from pathlib import Path

import pytest

from ddpm_jax.experiment import config

spec = importlib.util.spec_from_file_location("plans", "benchmarks/plans.py")
plans = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plans)

TEXT = plans.RESULTS.read_text()
RECIPES = plans.recipes()
# Those that are planned in a second: a U-Net, both transformers, guidance, averages.
QUICK = ("digits.py", "cifar_uvit.py", "imagenet256_jit.py:L16", "lsun.py:church")


def rows(text):
    """The cells of a table's rows, by the recipe that each names."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines()]
    return {row[0]: row for row in cells if row[0].startswith("`")}


PLANNED = rows(plans.BLOCK.search(TEXT)[0])
PROMISED = rows(TEXT.partition("## Promised")[2].partition("\n## ")[0])


def test_each_recipe_has_a_row_in_both_tables():
    names = [plans.name(recipe) for recipe in RECIPES]
    assert len(names) > len([*Path("configs").glob("*.py")])  # variants are named
    assert [*PLANNED] == [*PROMISED] == names


@pytest.mark.parametrize("name", QUICK)
def test_a_row_is_what_the_plan_says(name):
    assert plans.row(f"configs/{name}") in TEXT.splitlines()


def in_flop(words):
    number, unit = words.split()
    return float(number.replace(",", "")) * 1000 ** " kMGTPE".index(unit[0])


@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_agree_with_their_configs(recipe):
    """Without tracing: how is drawn, and the product of what a training takes."""
    row = dict(zip(plans.COLUMNS, PLANNED[plans.name(recipe)], strict=True))
    settings = config.read_config(recipe)
    drawn = plans.drawn(settings)
    assert drawn == [row[key] for key in ("average", "guidance", "sampler")]
    steps, size = plans.length(settings)
    assert row["steps × images"] == f"{steps:,} × {size:,}"
    of_all = in_flop(row["an image and step"]) * steps * size
    # Numbers of the table have one digit behind the point.
    assert of_all == pytest.approx(in_flop(row["training"]), rel=0.05)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_promises_the_fid_of_its_row(recipe):
    """Each FID of a row's promise is one that the recipe's docstring names."""
    promised = PROMISED[plans.name(recipe)][1]
    told = Path(recipe.partition(":")[0]).read_text().partition('"""\n\n')[0]
    for fid in re.findall(r"FID (\d+\.\d+)", promised):
        assert fid in told
