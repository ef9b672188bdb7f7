"""Densities, weightings and conventions, as configs name them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import fit, plain, tiny

import ddpm_jax
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import build, model

SIMPLE = ("loss={'name': 'simple', 'predicts': 'v'}", "network.learned_variance=False")
SIMPLE += ("sampler={'name': 'ddim'}",)


def built(*changes):
    return build.build(plain(*SIMPLE, *changes))


def loss_of(experiment):
    params = experiment.model.init(jax.random.key(0))
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8),
        "label": np.zeros(16, np.int32),
        "id": np.arange(16, dtype=np.uint32),
    }
    return float(experiment.loss_fn(params, batch, jax.random.key(1))[0])


def test_what_is_not_said_is_as_ever():
    """By name, the same as by default: uniform times, the plain error of v."""
    plain = loss_of(built())
    named = loss_of(built("loss.density=uniform", "loss.weighting=v"))
    np.testing.assert_allclose(plain, named, rtol=1e-5)  # sums of another order
    for change in (
        "loss.density=edm",
        "loss.weighting=min_snr",
        "loss.stratified=True",
    ):
        assert abs(loss_of(built(change)) - plain) > 1e-4, change


def test_settings_go_into_a_dictionary():
    weak = loss_of(built("loss.weighting={'name': 'min_snr', 'gamma': 0.001}"))
    strong = loss_of(built("loss.weighting={'name': 'min_snr', 'gamma': 5.0}"))
    assert weak < strong / 10
    normal = built("loss.density={'name': 'normal', 'mean': -2.0, 'std': 1.0}")
    assert np.isfinite(loss_of(normal))


MISTAKES = {
    "loss.density=edmm": "config.loss.density: unknown name 'edmm'; did you mean 'edm'",
    "loss.density=normal": "config.loss.density: .*mean",
    "loss.density={'name': 'normal', 'mean': 0.0, 'std': -1.0}": "std must be positive",
    "loss.density={'name': 'normal', 'men': 0.0}": "did you mean 'mean'",
    "loss.weighting=min_snrr": "did you mean 'min_snr'",
    "loss.weighting={'name': 'min_snr', 'gama': 5}": "did you mean 'gamma'",
    "loss.weighting={'name': 'min_snr', 'gamma': 'five'}": "gamma must be a number",
    "loss.weighting=nowhere.py:f": "nowhere.py",
    "network.convention=edn": "config.network.convention: unknown name 'edn'",
    "network.convention={'name': 'edm', 'sigma_data': 0.0}": "must be positive",
    "schedule.reference_size=big": "reference_size must be a size or None, got 'big'",
    "train.augmentation=0.1": "needs a network that is told of it, such as ddpmpp",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    with pytest.raises(ConfigError, match=MISTAKES[mistake]) as caught:
        built(mistake)
    assert "\n" not in str(caught.value)


def test_protocols_of_samples_do_not_change():
    """What is as it was before these could be chosen is not told."""
    assert model.complete(plain(*SIMPLE))["loss"] == {"name": "simple", "predicts": "v"}
    told = model.complete(plain(*SIMPLE, "loss.weighting=min_snr"))["loss"]
    assert told["weighting"] == "min_snr"


def test_a_schedule_of_small_images_is_shifted_for_large_ones():
    """By 2 log(64 / 8) for images of 8 x 8 pixels: more signal at each step."""
    plain, shifted = built(), built("schedule.reference_size=64")
    change = shifted.model.schedule.log_snr[1:] - plain.model.schedule.log_snr[1:]
    np.testing.assert_allclose(change, 2 * np.log(8))


EDM = (
    "network={'name': 'ddpmpp', 'channels': 8, 'channel_mults': [1], "
    "'num_res_blocks': 1, 'attention_resolutions': [], 'num_classes': 10, "
    "'label_dropout': 0.1, 'augmentation': 9}",
    "schedule={'name': 'log_snr_linear', 'num_steps': 100}",
    "loss={'name': 'simple', 'predicts': 'x_0', 'density': 'edm', 'weighting': 'edm'}",
    "sampler={'name': 'ddim'}",
    "timesteps={'name': 'karras', 'num_steps': 4}",
    "train.augmentation=0.12",
)


def test_the_recipe_of_edm_trains_and_draws(tmp_path):
    assert fit(tiny(*EDM), tmp_path / "run") == 0
    loaded = ddpm_jax.load(tmp_path / "run")
    pictures = ddpm_jax.draw(loaded, 16, labels=[3], batch_size=2)
    assert pictures.shape == (16, 8, 8, 1) and pictures.std() > 0
    # A first network says nothing, so its loss is that of the images: E F*², about 1.
    assert 0.3 < loss_of(build.build(tiny(*EDM))) < 3


WEIGHT = """
import jax.numpy as jnp

def mine(log_snr, factor: float = 1.0):
    return jnp.log(factor) + 0 * log_snr
"""


def test_a_weighting_of_ones_own_goes_into_the_run(tmp_path, monkeypatch):
    weighting = "loss.weighting={'name': 'mine.py:mine', 'factor': 2.0}"
    one, two = plain(*SIMPLE, "loss.weighting=mine.py:mine"), plain(*SIMPLE, weighting)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(WEIGHT)
    np.testing.assert_allclose(
        2 * loss_of(build.build(one)), loss_of(build.build(two)), rtol=1e-6
    )
    assert fit(two, tmp_path / "run") == 0
    (tmp_path / "mine.py").unlink()
    assert jnp.isfinite(jax.tree.leaves(ddpm_jax.load("run").params)[0]).all()
