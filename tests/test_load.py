"""Trained models of runs and of others: sampled, scored, converted, begun from."""

import shutil

import jax
import numpy as np
import pytest
from tiny import call, fit, plain, random_params, tiny

import ddpm_jax
from ddpm_jax import convert, evaluate, sample
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import report
from ddpm_jax.experiment import build, config, run
from ddpm_jax.files import read_arrays


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "run"
    run.write(folder, tiny(), random_params(build.build(tiny())))
    return folder


@pytest.fixture(scope="module")
def published(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "diffusers"
    call(convert, "--workdir", workdir, "--out", folder)
    return folder


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_there_and_back_again(workdir, published, tmp_path):
    """Run, diffusers, run: the parameters bit for bit, and the same images."""
    call(convert, "--pretrained", published, "--out", tmp_path / "again")
    before = ddpm_jax.load(workdir).params
    after = ddpm_jax.load(tmp_path / "again").params
    raw = ddpm_jax.load(tmp_path / "again", ema=False).params
    imported = ddpm_jax.load(str(published)).params
    for params in (after, raw, imported):
        assert_same(before, params)
    drawn = []
    for model in (
        ["--workdir", workdir],
        ["--pretrained", published],
        ["--workdir", tmp_path / "again"],
    ):
        out = tmp_path / f"{len(drawn)}.npz"
        call(sample, *model, "--num", 4, "--steps", 5, "--out", out)
        drawn.append(read_arrays(out)["images"])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])


def test_overrides_change_how_a_model_is_read(workdir, published):
    """A folder of diffusers has no null class: who trained with one can say so."""
    changes = ("network.num_classes=9", "network.label_dropout=0.1")
    built = ddpm_jax.load(str(published), changes)
    params = built.params
    assert built.num_classes == 9
    assert params["class_embedding"]["embedding"].shape[0] == 10
    with pytest.raises(OSError, match="class_embedding.weight is .* in the model"):
        ddpm_jax.load(str(published), ("network.num_classes=11",))


def test_a_run_that_has_not_begun_goes_on_from_its_parameters(workdir, tmp_path):
    """A checkpoint of step 0 is one: it is not drawn anew."""
    copy = shutil.copytree(workdir, tmp_path / "copy")
    changes = ["optimizer.learning_rate=1e-9", "train.num_steps=1"]
    settings = config.override(run.read_config(copy), changes)
    assert fit(settings, copy) == 0
    before = ddpm_jax.load(workdir).params
    after = ddpm_jax.load(copy).params
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_mistakes_of_models(workdir, published, tmp_path):
    with pytest.raises(ConfigError, match="does not say of what data"):
        call(evaluate, "--pretrained", published, "--metrics", "bpd")
    with pytest.raises(ConfigError, match="is there already"):
        call(convert, "--pretrained", published, "--out", workdir)
    with pytest.raises(ConfigError, match="did you mean 'num_heads'"):
        call(sample, "--pretrained", published, "--openai", "num_head=3")
    with pytest.raises(ConfigError, match="did you mean 'sampler.name'"):
        call(sample, "--pretrained", published, "--config.samplr.name=ddim")
    with pytest.raises(ConfigError, match="--step and --weights belong to --workdir"):
        call(sample, "--pretrained", published, "--step", 3)
    with pytest.raises(ConfigError, match="--openai belongs to --pretrained"):
        call(sample, "--workdir", workdir, "--openai", "image_size=8")
    with pytest.raises(OSError, match="are for files of OpenAI's code"):
        call(sample, "--pretrained", published, "--openai", "image_size=8")
    with pytest.raises(ConfigError, match="must say the image_size"):
        call(sample, "--pretrained", published, "--openai", "num_heads=8")
    with pytest.raises(ConfigError, match="is a run: give it as --workdir"):
        call(sample, "--pretrained", workdir)
    with pytest.raises(ConfigError, match="is of diffusers: give it as --pretrained"):
        call(sample, "--workdir", published / "unet")
    with pytest.raises(ConfigError, match="is given as --pretrained"):
        call(sample, "--workdir", published)
    with pytest.raises(ConfigError, match=f"lies in the .* of a run: give {workdir}$"):
        call(sample, "--workdir", workdir / "checkpoints" / "00000000")
    with pytest.raises(ConfigError, match="no checkpoint of step 7 .* of steps 0"):
        call(sample, "--workdir", workdir, "--step", 7)
    (tmp_path / "config.json").write_text('["a list"]')
    with pytest.raises(ConfigError, match="config.json is damaged .*: restore it"):
        call(sample, "--workdir", tmp_path)
    run.write_config(tmp_path, tiny())
    with pytest.raises(ConfigError, match="has no checkpoints yet"):
        call(sample, "--workdir", tmp_path)
    with pytest.raises(ConfigError, match="is a folder: give the name of a file"):
        call(evaluate, "--workdir", workdir, "--out", tmp_path)


def test_what_is_assumed_of_a_model_is_said(published, tmp_path, capsys):
    copy = shutil.copytree(published, tmp_path / "copy")
    shutil.rmtree(copy / "scheduler")
    call(convert, "--pretrained", copy, "--out", tmp_path / "run")
    note = f"no scheduler_config.json in {copy} or above it: assumed are linear"
    first, _ = capsys.readouterr().out.splitlines()
    assert first.startswith(note)
    with pytest.warns(UserWarning, match=note):
        ddpm_jax.load(str(copy))


def test_a_checkpoint_of_another_network_is_told(workdir):
    for change, words in (
        ("network.num_classes=0", "another network: it has class_embedding$"),
        (
            "network.attention_resolutions=8,",
            "it has down_1_0_attn, up_1_0_attn, up_1_1_attn, it has no down_0_0_attn, ",
        ),
        ("network.num_classes=9", r"class_embedding.embedding is \(10, 32\) there and"),
    ):
        with pytest.raises(ConfigError, match=words):
            ddpm_jax.load(workdir, tiny(change))


@pytest.mark.parametrize(
    "key",
    [
        "network.norm_eps=1e-3",
        "network.num_groups=2",
        "network.channels=16",
        "schedule.name=linear",
    ],
)
def test_what_was_trained_cannot_be_changed_afterwards(workdir, tmp_path, key):
    with pytest.raises(ConfigError, match="the model was trained with"):
        call(convert, "--workdir", workdir, "--out", tmp_path / "x", f"--config.{key}")


def test_a_conversion_that_fails_leaves_nothing(workdir, tmp_path, monkeypatch):
    def full(self, state):
        raise OSError("No space left on device")

    monkeypatch.setattr("ddpm_jax.experiment.run.Checkpoints.save", full)
    with pytest.raises(OSError, match="No space left"):
        call(convert, "--workdir", workdir, "--out", tmp_path / "x", "--format", "run")
    assert not [*tmp_path.iterdir()]


def test_hybrid_training_lowers_the_bound(tmp_path):
    settings = plain(
        "network.channels=16",
        "schedule.num_steps=20",
        "optimizer.learning_rate=3e-3",
        "data.batch_size=32",
        "train={'num_steps': 120, 'save_every': 120, 'sample_every': 0}",
        "train.ema_decay=0.5",
    )
    untrained = build.build(settings)
    params = jax.jit(untrained.init)(jax.random.key(0)).params
    run.write(tmp_path / "0", settings, params)
    assert fit(settings, tmp_path / "120") == 0
    scores = []
    for name, step in (("0", 0), ("120", 120)):
        out = tmp_path / "scores.json"
        given = ["--workdir", tmp_path / name, "--step", step, "--num", 32]
        call(evaluate, *given, "--metrics", "bpd", "--out", out)
        scores.append(report.load(out)[-1].value)
    assert scores[0] > scores[1] + 1, scores
