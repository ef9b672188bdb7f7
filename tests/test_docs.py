"""README and docs, run: blocks of Python, commands, what is shown beneath them."""

import contextlib
import io
import re
import shutil
import sys
import types
from pathlib import Path

import blocks
import jax
import jaxtyping
import pytest
from PIL import Image
from plain import NAME

from ddpm_jax.data.arrays import digits
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import build, config, run

ROOT = Path.cwd()
PAGES = {page: blocks.blocks(page) for page in blocks.pages()}
HOWTO = sorted(page for page in PAGES if page.startswith("docs/howto/"))

# What makes a training of a page a small one, and what of its sections stays.
SMALL = (
    "network={'name': '%s', 'num_classes': %d, 'label_dropout': %g}",
    "data.batch_size=8",
    "timesteps.num_steps=3",
    "train.num_steps=6",
    "train.log_every=3",
    "train.save_every=3",
    "train.sample_every=3",
    "train.num_samples=4",
    "optimizer.warmup_steps=0",
)
UNET = {
    "channels": 8,
    "channel_mults": [1],
    "num_res_blocks": 1,
    "num_groups": 4,
    "attention_resolutions": [],
    "label_dropout": 0.1,
}


def of_language(page, language):
    return [block for block in PAGES[page] if block.language == language]


def at(block):
    return f"{block.page}:{block.line}"


@pytest.fixture(scope="module", autouse=True)
def plainly():
    """As for users: without the strict shapes and types of the other tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    with jax.numpy_rank_promotion("allow"):
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as the root of a clone, with what pages name in small."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "launch", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    with contextlib.chdir(folder):
        for kept, path in (("train", "my_images"), ("test", "held_out")):
            source = digits(kept)
            for i in range(40):
                image, label = source[i]
                path_ = Path(path, f"{label}", f"{i}.png")
                path_.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[..., 0]).save(path_)
        for label in range(2):
            Path("few").mkdir(exist_ok=True)
            Path("few", f"{label}").symlink_to(Path("my_images", f"{label}").resolve())
        _train(["--config", "configs/digits.py"])
    return folder


def _train(argv):
    """What a command trains, in small, with the names and the places that it gives."""
    _, args = blocks.parsed("train", argv)
    given = config.read_config(args.config, args.overrides)
    network = given["network"]
    classes = network.get("num_classes", 0), network.get("label_dropout", 0.0)
    changes = [SMALL[0] % (NAME, *classes), *SMALL[1:]]
    if begin := given.get("init_from"):  # which fits a network that it knows
        changes[0] = f"network={ {**network, **UNET} }"
        changes += ["train.num_steps=1", "train.sample_every=0"]
        shutil.rmtree(begin, ignore_errors=True)
        one = f"network={ {'name': 'unet', **UNET, 'num_classes': 10} }"
        model = build.build(config.read_config("configs/digits.py", [one])).model
        run.write(Path(begin), model.config, jax.jit(model.init)(jax.random.key(0)))
    name = args.config.replace(".py:", "_").removesuffix(".py")
    workdir = args.workdir or f"runs/{Path(name).name}"
    shutil.rmtree(workdir, ignore_errors=True)
    more = [] if args.plan is None else ["--plan", str(args.plan or 1)]
    overrides = [f"--config.{text}" for text in [*args.overrides, *changes]]
    given = ["--config", args.config, "--workdir", workdir, *more, *overrides]
    main, args = blocks.parsed("train", given)
    assert main.main(args) == 0


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_accepted(page, tmp_path, monkeypatch):
    """By their parsers and the config reader; nothing is trained."""
    for name in ("configs", "launch", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = "\n".join(block.text for block in of_language(page, "python"))
    found = [
        (at(block), words)
        for block in of_language(page, "sh")
        for words in blocks.commands(block.text)
    ]
    found += [(page, words) for words in blocks.in_lines(page)]
    monkeypatch.chdir(tmp_path)
    for file in set(re.findall(r"\b(\w+\.py):\w+", str(found))):
        if not Path("configs", file).exists():
            Path(file).write_text(python)
    for where, words in found:
        try:
            blocks.check(words)
        except ConfigError as error:
            pytest.fail(f"{where}: {' '.join(words)}\n{error}")


def test_wrong_commands_are_not():
    for command, said in {
        "python -m ddpm_jax.train --config configs/digitz.py": "digitz.py",
        "python -m ddpm_jax.train --config configs/lsun.py": "choose one",
        "python -m ddpm_jax.train --config configs/digits.py --workdri a": "workdri",
        "launch/local.sh ddpm_jax.train --config configs/digits.py "
        "--config.data.batchsize=4": "batch_size",
        "launch/locals.sh ddpm_jax.train --config configs/digits.py": "locals.sh",
        "python -m ddpm_jax.sample --workdir runs/digits --sampler dddim": "ddim",
        "python -m ddpm_jax.sample --workdir runs/digits --strength 0.5": "--init",
        "python -m ddpm_jax.sample --workdir a --config.denoiser.klip=True": "clip",
        "python -m ddpm_jax.evaluate --workdir a --metrics fidd": "fidd",
        "python -m ddpm_jax.evaluate --workdir a --sweep ddmi:10": "ddmi",
        "make all": "make",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(said)):
            blocks.check(command.split())


@pytest.mark.parametrize("page", [p for p in PAGES if of_language(p, "python")])
def test_python_runs(page, place, monkeypatch):
    """Blocks in order, in one namespace, and what they print is what is shown."""
    monkeypatch.chdir(place)
    module = types.ModuleType(f"page_{Path(page).stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    python = "".join(block.text for block in of_language(page, "python"))
    for block in PAGES[page]:
        if block.language == "sh":  # what writes a file that is read here
            for words in blocks.commands(block.text):
                if "--out" in words and words[words.index("--out") + 1] in python:
                    _run(words)
        if block.language == "python" and not block.is_quoted:
            code = compile("\n" * block.line + block.text, ROOT / page, "exec")
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(code, module.__dict__)
            assert _same(block, said.getvalue()) is None, at(block)


@pytest.mark.parametrize("page", HOWTO)
def test_how_to_pages_run(page, place, monkeypatch):
    """Each of their commands, one after another, but for what is not here."""
    monkeypatch.chdir(place)
    for block in of_language(page, "sh"):
        said = io.StringIO()
        ran = [_run(words, said) for words in blocks.commands(block.text)]
        if all(ran):
            assert _same(block, said.getvalue()) is None, at(block)


# What of the how-to pages is not run: other machines, downloads.
ELSEWHERE = ("--pretrained", "h100:", "v5e:", "google/", "gs://", "launch/", "fid")


def _run(words, said=None):
    """Runs a command of a main in small, if it can; whether it did."""
    found = blocks.called(words)
    if found is None or any(mark in " ".join(words) for mark in ELSEWHERE):
        return False
    name, argv = found
    with contextlib.redirect_stdout(said or io.StringIO()):
        if name == "train":
            _train(argv)
            return True
        if "--num" in argv:
            argv[argv.index("--num") + 1] = "8"
        if "--out" in argv and Path(out := argv[argv.index("--out") + 1]).is_dir():
            shutil.rmtree(out)
        main, args = blocks.parsed(name, argv)
        assert not main.main(args)
    return True


def _same(block, came):
    return None if block.shown is None else blocks.differs(block.shown, came)


def test_what_is_shown_is_compared():
    came = "step 12 loss 0.5\nwrote a.png\ndone\n"
    for shown in (came, "step 3  loss 2e-4\n…\ndone\n", "step 1 …\nwrote a.png\n…"):
        assert blocks.differs(shown, came) is None
    for shown, first in {
        "step 1 los 2\nwrote a.png\ndone": "step 0 los 0",
        "step 1 loss 2\ndone": "done",
        "step 1 loss 2\nwrote a.png": "(nothing more)",
        "wrote a.png\ndone": "wrote a.png",
    }.items():
        assert blocks.differs(shown, came) == first


def test_languages_are_known():
    """A block of another, or a misspelt one, would be passed over without a word."""
    for found in PAGES.values():
        for block in found:
            known = block.language in blocks.LANGUAGES
            assert known or block.language.startswith("{"), f"{at(block)}"


def anchors(path):
    """Of the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", Path(page).read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        file = Path(page).parent / path if path else Path(page)
        assert file.exists(), link
        assert not anchor or file.suffix != ".md" or anchor in anchors(file), link
