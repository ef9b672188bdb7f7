"""Names and messages in the how-to pages are those of the code."""

import ast
import contextlib
import pkgutil
import re
from inspect import signature
from pathlib import Path

from ddpm_jax import convert, evaluate, sample
from ddpm_jax.cli import command
from ddpm_jax.diffusion import (
    conventions,
    densities,
    process,
    transforms,
    variances,
    weightings,
)
from ddpm_jax.experiment import config, dataset, options, registry
from ddpm_jax.networks.jits import JiT
from ddpm_jax.networks.unets import UNet
from ddpm_jax.training import optimizers

FIRST = (
    *("ddpm_jax", "ddpm_jax.diffusion", "ddpm_jax.training", "ddpm_jax.experiment"),
    "ddpm_jax.evaluation",
)


def keys_of(section):
    """The keys that a section may have, of whatever it names."""
    also = {
        "train": options.TrainOptions._fields,
        "evaluation": options.ScoreOptions._fields,
        "schedule": ("zero_terminal_snr", "reference_size"),
        "data": dataset.BATCHING,
        "network": ("size", "convention"),
        "optimizer": signature(optimizers.make_optimizer).parameters,
        "denoiser": signature(transforms.make_transform).parameters,
    }
    known = registry.FAMILIES[section].known if section in registry.FAMILIES else {}
    made = [*known.values(), *([UNet, JiT] if section == "network" else [])]
    return {key for make in made for key in signature(make).parameters} | {
        "name",
        *also.get(section, ()),
    }


# The values that are names: of parts, and of what a loss is made of.
VALUES = {
    **{(name, "name"): family.known for name, family in registry.FAMILIES.items()},
    ("loss", "predicts"): process.PARAMETERIZATIONS,
    ("loss", "density"): densities.DENSITIES,
    ("loss", "weighting"): weightings.WEIGHTINGS,
    ("network", "convention"): conventions.CONVENTIONS,
    ("sampler", "variance"): (*variances.FIXED, "learned_range"),
}


def is_ours(name):
    """Whether there is a config key, flag or object of that name."""
    if name.startswith("--"):
        mains = sample, evaluate, convert
        parsers = (main.add_arguments(command.parser("")) for main in mains)
        return any(name in parser._option_string_actions for parser in parsers)
    key, _, value = name.partition("=")
    section, _, rest = key.partition(".")
    if key in config.VALUES:
        return True
    if section in config.SECTIONS and rest in keys_of(section):
        return not value or value in VALUES.get((section, rest), [value])
    for first in FIRST:
        with contextlib.suppress(ImportError, AttributeError):
            pkgutil.resolve_name(f"{first}.{key}")
            return True
    return False


def ours(page):
    """The names in the last column of its tables whose columns are there and here."""
    for table in re.findall(r"^\| there \| here \|\n\|.*\n((?:\|.*\n)+)", page, re.M):
        for row in table.splitlines():
            yield from re.findall(r"`([^`]+)`", row.rsplit(" | ", 1)[1])


def test_names_on_our_side_exist():
    names = [*ours(Path("docs/howto/coming_from.md").read_text())]
    assert len(names) > 100
    assert [name for name in names if not is_ours(name)] == []
    wrong = "network.width", "samplers.dimm", "--stepz", "loss.predicts=epsilon", "x"
    assert not any(map(is_ours, wrong))


def messages():
    """What the code says: its texts, with … for what is put into them."""
    for path in Path("ddpm_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                yield "".join(p if isinstance(p, str) else "…" for p in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_that_are_quoted_are_said():
    page = Path("docs/howto/troubleshooting.md").read_text()
    quoted = re.findall(r"(?<!\*)\*([^*\n]+(?:\n[^*\n|]+)?)\*(?!\*)", page)
    said = [" ".join(text.split()) for text in messages()]
    assert len(quoted) > 20
    for text in quoted:
        for part in re.split(r"\s*…\s*", " ".join(text.split())):
            part = part.strip(" :(),")
            assert any(part in each for each in said), part
    assert not any("the images are too green" in each for each in said)
