"""The blocks of README and docs: found, checked, compared with what came."""

import contextlib
import functools
import importlib
import io
import itertools
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from ddpm_jax import evaluate, sample
from ddpm_jax.cli import arguments, command
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import sweep
from ddpm_jax.experiment import build, config, dataset, load, registry, sections

# What stands in blocks and is no main of ours, by its first word, and why not run.
NOT_RUN = {
    "cd": "goes somewhere",
    "docker": "needs a registry",
    "export": "sets a variable of the scripts below it",
    "gcloud": "needs an account",
    "git": "needs the repository's address",
    "hf": "needs an account",
    "jupyter": "opens a page",
    "kubectl": "needs a cluster",
    "pip": "installs",
    "python3": "makes a virtual environment",
    "sphinx-build": "builds these pages",
    "source": "enters a virtual environment",
    "ssh": "needs another machine",
    "tensorboard": "serves a page",
    ".": "enters a virtual environment",
}
# Which recipe a run of that name in the docs is of; others are of digits.py.
RECIPES = {
    "cifar": "configs/cifar.py",
    "cifar_cond": "configs/cifar_cond.py",
    "cifar_edm": "configs/cifar_edm.py:unconditional",
    "imagenet256_jit": "configs/imagenet256_jit.py:B16",
    "jit_b16": "configs/imagenet256_jit.py:B16",
}
LANGUAGES = {"", "python", "sh", "text", "json", "dockerfile", "toml", "yaml", "bibtex"}


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
      page: its path.
      line: of the fence.
      language: as the fence says.
      text: what is in it.
      shown: the text of the ```text block beneath it, with nothing between, or None.
    """

    page: str
    line: int
    language: str
    text: str
    shown: str | None = None

    @property
    def is_quoted(self) -> bool:
        """Whether it is of a file, which its first line names; test_story has those."""
        return self.text.startswith("# ddpm_jax/")


_FENCE = re.compile(r"^( *)(```+)([^\n`]*)\n(.*?)^\1\2 *$", re.M | re.S)


def pages():
    """README and all pages of docs, but for what is made of them."""
    found = [p for p in Path("docs").rglob("*.md") if "_build" not in p.parts]
    return [str(path) for path in (Path("README.md"), *sorted(found))]


def blocks(page):
    """The blocks of a page in order."""
    text = Path(page).read_text()
    matches = [*_FENCE.finditer(text)]
    found = []
    for match, after in itertools.zip_longest(matches, matches[1:]):
        shown = None
        if after and after[3].strip() == "text":
            between = text[match.end() : after.start()]
            shown = None if between.strip() else after[4]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match[3].strip(), match[4], shown))
    return found


def commands(text):
    """The commands of a ```sh block, each as words."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def in_lines(page):
    """The commands of mains within the text of a page, between backticks.

    Where only the name of a main is said, or the recipe is a word for any, none is.
    """
    text = _FENCE.sub("", Path(page).read_text())
    for code in re.findall(r"`(python -m ddpm_jax\.[^`…]+)`", text):
        words = shlex.split(code)
        if len(words) > 3 and not re.search(r"--config \S*[A-Z]{4}", code):
            yield words


def called(words):
    """(name, arguments) of the main that a command calls, or None."""
    for i, word in enumerate(words):
        if found := re.fullmatch(r"ddpm_jax\.(\w+)", word):
            return found[1], words[i + 1 :]
    return None


def parsed(name, argv):
    """The module of a main, and its arguments as its own parser reads them."""
    main = importlib.import_module(f"ddpm_jax.{name}")
    parse = command.parse_config if name == "train" else command.parse
    said = io.StringIO()
    with mock.patch.object(sys, "argv", [name, *argv]):
        try:
            with contextlib.redirect_stderr(said):
                parser = main.add_arguments(command.parser(main.__doc__))
                return main, parse(parser)
        except SystemExit as error:
            raise ConfigError(said.getvalue().strip().splitlines()[-1]) from error


def check(words):
    """Refuses what a command's parser or config reader would; trains nothing.

    Raises:
      ConfigError: as the main itself says it, or for a command that is not known here.
    """
    scripts = [w for w in words if w.startswith(("launch/", "benchmarks/"))]
    for script in scripts:
        if not Path(script).is_file():
            raise ConfigError(f"there is no {script}")
    if (found := called(words)) is None:
        if not scripts and words[0] not in NOT_RUN and words[:3] != PYTEST:
            raise ConfigError(f"{words[0]} is neither a main of ours nor in NOT_RUN")
        return
    main, args = parsed(*found)
    if found[0] == "train":
        _train(args)
    elif getattr(args, "workdir", None) or getattr(args, "pretrained", None):
        _draw(main, args)
    elif getattr(args, "config", None):
        config.read_config(args.config, args.overrides)


PYTEST = ["python", "-m", "pytest"]


def _train(args):
    settings = config.read_config(args.config, args.overrides)
    _data(settings)
    _built(repr(sorted(config.flat(settings).items())), lambda: settings)


def _data(settings):
    """The keys of the section, which else are checked where the images are opened."""
    section = settings.get("data", {})
    if "name" in section:
        opens = registry.choose(settings, "data")
        keys = {
            k: v for k, v in section.items() if k not in ("name", *dataset.BATCHING)
        }
        sections.check(keys, "data", opens, also=dataset.BATCHING)


def _draw(main, args):
    recipe = "configs/digits.py"
    if args.workdir:
        recipe = RECIPES.get(Path(args.workdir).name, recipe)
    origin = {"workdir": args.workdir, "weights": str(getattr(args, "weights", ""))}
    trained = load.Trained(config.read_config(recipe), None, origin, [])
    changed = config.override(trained.config, args.overrides)
    _data(changed)
    trained = load.read_otherwise(trained, changed)
    options = arguments.sampling(args) if hasattr(args, "sampler") else None
    if main is evaluate:
        names = args.metrics.split(",")
        if unknown := {*names} - {*sweep.NAMES}:
            raise ConfigError(f"there is no metric {unknown}")
        of_model = [name for name in names if name in sweep.LIKELIHOODS]
        evaluate._check(args, [n for n in names if n not in of_model], of_model)
        for _ in sweep.rows(trained, args.sweep or (), options):
            pass
        return
    if main is sample:
        sample._check(args)
    key = recipe, *args.overrides, options and options._replace(overridden=())
    _built(repr(key), lambda: trained.model(options))


@functools.cache
def _kept():
    return {}


def _built(key, make):
    """Builds what was not built before."""
    if key not in _kept():
        made = make()
        _kept()[key] = build.build(made) if isinstance(made, dict) else made


_NUMBER = re.compile(r"\d+([.,]\d+)*(e[+-]?\d+)?")


def differs(shown, came):
    """The first line that is shown and did not come so, or None.

    The rule: numbers may be others, and how many operations they count; words, signs
    and the order of lines may not. Spaces count as one. A line of … stands for any
    lines, and … at the end of one for whatever follows in it.
    """
    came, lines = _plain(came), _plain(shown).splitlines()
    patterns = [
        r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r"\n"
        for line in lines
    ]
    if re.fullmatch("".join(patterns), came):
        return None
    for i, line in enumerate(lines):
        if not re.match("".join(patterns[: i + 1]), came):
            return line
    return "(nothing more)"


def _plain(text):
    """Lines with a zero for each number, one space for several, and none empty."""
    text = re.sub(r"\b[kMGTPE]?FLOP\b", "FLOP", _NUMBER.sub("0", text))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line)
