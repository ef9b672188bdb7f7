"""Every recipe builds; every mistake in one is named in a line."""

import re
import runpy
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import fit, random_params

import ddpm_jax
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import build, config, dataset, remarks, run
from ddpm_jax.experiment.options import train_options
from ddpm_jax.sampling import draw

RECIPES = sorted(str(path) for path in Path("configs").glob("*.py"))
FAMILIES = {
    "configs/lsun.py": ("bedroom", "church", "cat"),
    "configs/imagenet64.py": ("unconditional", "conditional"),
    "configs/cifar_edm.py": ("unconditional", "conditional"),
    "configs/imagenet256_jit.py": ("B16", "L16"),
    "configs/imagenet64_jit.py": ("S4", "B4"),
    "configs/cifar_jit.py": ("S2", "M2"),
}
RECIPES = [path for path in RECIPES if path not in FAMILIES]
RECIPES += [f"{path}:{name}" for path, names in FAMILIES.items() for name in names]
PARAMETERS = {
    "configs/cifar.py": 35_746_307,
    "configs/celebahq256.py": 113_673_219,
    "configs/imagenet64.py:unconditional": 121_063_942,
    "configs/imagenet64.py:conditional": 273_049_350,
    "configs/cifar_edm.py:unconditional": 55_733_891,
    "configs/cifar_edm.py:conditional": 55_735_299,
    "configs/ffhq64_edm.py": 61_805_571,
    "configs/cifar_minsnr.py": 35_746_307,
    "configs/imagenet256_jit.py:B16": 131_123_712,
    "configs/imagenet256_jit.py:L16": 458_877_664,
    "configs/imagenet64_jit.py:B4": 130_477_872,
    "configs/cifar_uvit.py": 44_255_328,
}


SMALL = ("network.channels=8", "network.num_groups=4", "network.channel_mults=1,")


def digits(*overrides):
    return config.read_config("configs/digits.py", overrides)


@pytest.mark.parametrize("path", RECIPES)
def test_every_recipe_builds(path):
    made = config.read_config(path)
    built = build.build(made)
    params = jax.tree.leaves(built.abstract_state().params)
    count = sum(leaf.size for leaf in params)
    assert count == PARAMETERS.get(path, count)
    assert built.model.image_shape == tuple(made["image_shape"])
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    label = jax.ShapeDtypeStruct((2,), np.int32) if built.model.num_classes else None
    images = jax.eval_shape(
        built.model.sample_fn, built.abstract_state().params, keys, label
    )
    assert images.shape == (2, *built.model.image_shape)


@pytest.mark.parametrize("path", RECIPES)
def test_every_recipe_says_what_it_is(path):
    source = path.partition(":")[0]
    doc = runpy.run_path(source)["__doc__"]
    assert f"python -m ddpm_jax.train --config {source}" in doc


def test_cifar_is_the_recipe_of_ho_et_al():
    """Their scripts/run_cifar.py and Appendix B, number by number."""
    made = config.read_config("configs/cifar.py")
    built = build.build(made)
    beta = -np.expm1(np.diff(-np.logaddexp(0, -built.model.schedule.log_snr[1:])))
    np.testing.assert_allclose(beta, np.linspace(1e-4, 0.02, 1000)[1:], rtol=1e-9)
    assert made["data"]["batch_size"] == 128 and made["data"]["flip"]
    assert made["sampler"] == {"name": "ddpm", "variance": "fixed_large"}
    assert made["network"]["dropout"] == 0.1
    options = built.training
    assert options.num_steps == 800_000 and options.ema_decay == 0.9999
    np.testing.assert_allclose(built.learning_rate(2500), 1e-4, rtol=1e-4)
    np.testing.assert_allclose(built.learning_rate(799_999), 2e-4, rtol=1e-6)


MISTAKES = {
    "network.chanels=8": "config.network key 'chanels'; did you mean 'channels'",
    "optimizer.learning_rat=1": "did you mean 'learning_rate'",
    "schedule.beta_stop=1": "unknown config.schedule key 'beta_stop'",
    "timesteps.steps=10": "unknown config.timesteps key 'steps'; did you mean",
    "denoiser.clipp=1": "did you mean 'clip'",
    "sampler.etta=1": "did you mean 'eta'",
    "loss.predict=v": "did you mean 'predicts'",
    "loss.predicts=noise": "config.loss: unknown parameterization 'noise'",
    "sampler.name=ddimm": "config.sampler: unknown name 'ddimm'; did you mean 'ddim'",
    "schedule.name=cosin": "did you mean 'cosine'",
    "network.name=gan": "unknown name 'gan'; there are: ddpmpp, jit, ncsnpp, unet",
    "timesteps.num_steps=2000": "num_steps must be 1 ... 1000",
    "network.channels=40": "config.network: 40 features .* num_groups 16",
    "network.channel_mults=1,2,2,2,2": "8x8 cannot be halved 4 times",
    "image_shape=8,8": "image_shape must be",
    "network.channels=many": "network.channels must be a whole number, got 'many'",
    "network.dropout=None": "config.network.dropout must be a number, got None",
    "network.channels=32.5": "network.channels must be a whole number, got 32.5",
    "network.channel_mults=two": "channel_mults must be a list, as in 1,2, got 'two'",
    "network.channel_mults=2.5": "channel_mults must be a list, as in 1,2, got 2.5",
    "network.attention_resolutions=0": "attention_resolutions must be 1 or more",
    "network.dropout=1.0": "dropout must lie in .0, 1.",
    "network.dtype=float16": "dtype must be 'float32' or 'bfloat16', got 'float16'",
    "network.CHANNELS=8": "did you mean 'channels'",
    "loss.name=hybrid": "needs a network with learned_variance=True",
    "optimizer.b1=2.0": "config.optimizer: b1 must lie in .0, 1., got 2.0",
    "schedule.num_steps=10**9": "must be a whole number",
    "schedule.num_steps=1000000000": "at most 10000000, got 1000000000",
    "schedule.max_beta=1.5": "max_beta in .0, 1., got 0.008, 1.5",
    "schedule.offset=-1.0": "offset must lie in .0, 1.",
    "schedule={'name':'linear','beta_end':2.0}": "config.schedule: betas must rise",
    "schedule={'name':'linear','beta_start':0.5}": "beta_start 0.5 and beta_end 0.02",
    "schedule={'name':'constant','beta':1.0}": "1 at the last step only",
    "sampler={'name':'heun','churn_noise':-1.0}": "a churn_noise of 0 or more",
    "timesteps.num_steps=0": "num_steps must be 1 ... 1000",
    "network.dropout=2.0": "config.network: dropout must lie in .0, 1.",
    "network.num_groups=0": "config.network: num_groups must be 1 or more",
    "network.learned_variance=True": "config.loss: the loss 'simple' does not train",
    "optimizer.b1=x": "config.optimizer: ",
    "optimizer.clip_norm=-1": "clip_norm must be positive or None",
    "schedule.name=zero_terminal": "config.schedule: unknown name 'zero_terminal'",
    "denoiser.guidance_scale=1e999": "must be a number, got inf",
    "denoiser.clip=1": "config.denoiser.clip must be True or False, got 1",
    "optimizer.learning_rate=1e-4x": "must be a number, got '1e-4x'",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    with pytest.raises(ConfigError, match=MISTAKES[mistake]) as caught:
        build.check(build.build(digits(mistake)))
    assert "\n" not in str(caught.value)


def test_checking_a_config_takes_no_memory():
    """Of images of a petabyte."""
    build.build(digits("image_shape=16777216,16777216,1"))


def test_eps_at_zero_terminal_snr():
    changes = ("schedule.zero_terminal_snr=True", "loss.predicts=eps")
    build.build(digits(changes[0]))
    with pytest.raises(ConfigError, match="config.loss: .* needs parameterization 'v'"):
        build.build(digits(*changes))


@pytest.mark.parametrize(
    "change", ["network.label_dropout=0.0", "network.num_classes=0"]
)
def test_guidance_needs_a_null_class(change):
    with pytest.raises(ConfigError, match="config.denoiser: guidance_scale needs"):
        build.build(digits(change, "denoiser.guidance_scale=2.0"))


GUIDED = "denoiser.guidance_scale=3.0"
INTERVAL = "denoiser.guidance_interval="
DENOISER_MISTAKES = {
    INTERVAL + "0.2,3": "guidance_interval need a guidance_scale other than 1",
    "denoiser.guidance_rescale=0.5": "guidance_rescale and .* need a guidance_scale",
    GUIDED + " denoiser.guidance_rescale=1.5": "guidance_rescale must lie in .0, 1.",
    GUIDED + f" {INTERVAL}0.2,3,4": "guidance_interval must be two noise levels",
    GUIDED + f" {INTERVAL}()": "guidance_interval must be two noise levels",
    GUIDED + f" {INTERVAL}3.0,0.2": "the interval must have 0 <= low < high, got 3.0",
    GUIDED + f" {INTERVAL}3": "guidance_interval must be .*, got 3",
    GUIDED + f" {INTERVAL}0,'x'": "guidance_interval must be .*, got .0, 'x'.",
    "denoiser.dynamic_percentile=200.0": "percentile must lie in .0, 100., got 200",
    "denoiser.dynamic_percentile=most": "dynamic_percentile must be .*, got 'most'",
    "denoiser.dynamic_percentile=99.5 denoiser.clip=False": "dynamic_percentile needs",
    "denoiser.dynamic_largest=1.5": "dynamic_largest needs a dynamic_percentile",
    "denoiser.dynamic_percentile=99.5 denoiser.dynamic_largest=0.5": "is 0.5, below 1",
}


@pytest.mark.parametrize("mistakes", DENOISER_MISTAKES)
def test_mistakes_about_the_denoiser_are_named(mistakes):
    with pytest.raises(ConfigError, match=DENOISER_MISTAKES[mistakes]) as caught:
        build.build(digits(*mistakes.split()))
    assert str(caught.value).startswith("config.denoiser")
    assert "\n" not in str(caught.value)


def test_settings_of_the_denoiser_have_their_effect():
    """On x_0 of a small network with random weights, unclipped but where it says."""
    x_t, labels = 3 * jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), jnp.arange(2)
    params = random_params(build.build(digits(*SMALL)))
    params = jax.tree.map(lambda p: 3 * p, params)  # so that the label counts

    def x_0(t, *overrides):
        settings = [f"denoiser.{override}" for override in overrides]
        built = build.build(digits(*SMALL, *settings))
        return jax.jit(built.model.denoiser(params, labels))(x_t, t).x_0

    def deviation(images):
        return np.std(images, axis=(1, 2, 3))

    raw, scale = "clip=False", "guidance_scale=9.0"
    plain, guided = x_0(300, raw), x_0(300, raw, scale)
    assert np.all(np.abs(deviation(guided) / deviation(plain) - 1) > 0.01)
    # Lin et al. (2024), Eq. 15-16.
    half = deviation(x_0(300, raw, scale, "guidance_rescale=0.5"))
    middle = (deviation(guided) + deviation(plain)) / 2
    np.testing.assert_allclose(half, middle, rtol=1e-4)
    # The cosine schedule has sigma / alpha = tan(0.47) = 0.51 at 0.3 T.
    for interval, expected in (("0.4,0.6", guided), ("0.6,5.0", plain)):
        limited = x_0(300, raw, scale, f"guidance_interval={interval}")
        np.testing.assert_allclose(limited, expected, rtol=1e-4, atol=1e-4)
    r = np.percentile(np.abs(plain), 80, axis=(1, 2, 3), keepdims=True)
    assert np.all(r > 1.2)
    bounded = x_0(300, "dynamic_percentile=80.0")
    np.testing.assert_allclose(bounded, np.clip(plain / r, -1, 1), rtol=1e-4, atol=1e-4)
    bounded = x_0(300, "dynamic_percentile=80.0", "dynamic_largest=1.1")
    most = np.clip(plain / 1.1, -1, 1)
    np.testing.assert_allclose(bounded, most, rtol=1e-4, atol=1e-4)


REMARKS = {
    "network.attention_resolutions=16": "16: no level has that size, there are 8, 4",
    "image_shape=28,28,1": "network.attention_resolutions 4: .* there are 28, 14",
    "image_shape=8,12,1": "",
    "network.head_channels=8": "",
    "network.head_channels=8 network.num_heads=2": "num_heads 2 has no effect",
    "network.num_classes=0": "label_dropout has no effect without num_classes",
    "network={'name':'uvit','channels':8,'num_heads':1,'label_dropout':0.1}": (
        "label_dropout has no effect without num_classes"
    ),
    "network={'name':'jit','patch_size':2,'class_tokens':8}": (
        "class_tokens has no effect without num_classes"
    ),
    "network={'name':'jit','patch_size':2}": "",
    "network={'name':'ddpmpp','channels':16,'label_dropout':0.1}": (
        "label_dropout has no effect without num_classes"
    ),
    "schedule.num_steps=50": "",
    "schedule={'name':'linear','num_steps':50}": "leaves 78% of the image at its last",
    "optimizer.decay=constant": "",
    "optimizer.decay=constant optimizer.decay_steps=9": "decay_steps 9 has no effect",
    "train.num_steps=50": "warmup_steps 100 are not over when .* ends, at step 50",
    "train.num_steps=10000": "",
    "train.num_steps=10000 optimizer.decay_steps=10001": "",
}


@pytest.mark.parametrize("changes", REMARKS)
def test_what_is_odd_about_a_training_is_said(changes):
    made = digits(*changes.split())
    built = build.build(made)
    found = remarks.of_training(built)
    assert len(found) == bool(REMARKS[changes])
    assert re.search(REMARKS[changes], "".join(found)) and "\n" not in "".join(found)


@pytest.mark.parametrize("path", RECIPES)
def test_nothing_is_odd_about_a_recipe(path):
    assert remarks.of_training(build.build(config.read_config(path))) == []


CONTRADICTIONS = {
    "train.num_steps=10000 optimizer.decay_steps=2500": "config.optimizer: the learning"
    " rate is 0 from decay_steps 2500 on, but .* to step 10000: give decay_steps=10000",
    "train.num_steps=2147483648": "config.train.num_steps must be below 2..31",
    "image_shape=8,8,4": "images of 4 channels cannot be drawn .*sample_every=0",
}


@pytest.mark.parametrize("changes", CONTRADICTIONS)
def test_what_contradicts_itself_is_not_trained(changes, tmp_path):
    """But what was trained so can still be opened."""
    made = digits(*changes.split())
    with pytest.raises(ConfigError, match=CONTRADICTIONS[changes]) as caught:
        fit(made, tmp_path / "r")
    assert "\n" not in str(caught.value) and not (tmp_path / "r").exists()
    build.build(made)


def test_channels_without_pictures_are_trained():
    assert (
        remarks.of_training(
            build.build(digits("image_shape=8,8,4", "train.sample_every=0"))
        )
        == []
    )


def test_remarks_are_said_before_anything_is_read(tmp_path, capsys):
    with pytest.raises(ConfigError, match="config.data"):
        fit(digits("train.num_steps=5", "data.name=none"), tmp_path / "r")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: optimizer.warmup_steps 100 are not over")


DATA_MISTAKES = {
    "train.num_step=5": "did you mean 'num_steps'",
    "train.keep=0": "config.train.keep must be 1 or more",
    "train.ema_decay=1": "config.train.ema_decay must be below 1",
    "data.batchsize=12": "key 'batchsize'; did you mean 'batch_size'",
    "data.batch_size=3.5": "config.data: batch_size must be whole and at least 1",
    "data.flip=maybe": "config.data.flip must be True or False, got 'maybe'",
    "data.image_size=9": "unknown config.data key 'image_size'",
    "data.batch_size=12": "config.data: batch_size 12 cannot be shared by 8 devices",
    "train.num_microbatches=3": "in 3 microbatches",
    "data.split=valid": "no split 'valid'",
    "data.splitt=test": "did you mean 'split'",
    "image_shape=16,16,1": "images of 'digits' are 8x8x1",
    "network.num_classes=5": "num_classes is 5, but .* have 10 classes",
}


@pytest.mark.parametrize("mistake", DATA_MISTAKES)
def test_mistakes_about_data_and_training_are_named(mistake):
    made = digits(mistake)
    with pytest.raises(ConfigError, match=DATA_MISTAKES[mistake]) as caught:
        dataset.make_dataset(made).feed(train_options(made).num_microbatches)
    assert "\n" not in str(caught.value)


def test_missing_data_without_a_network(tmp_path, monkeypatch):
    import requests

    def unreachable(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests.Session, "request", unreachable)
    made = config.read_config("configs/cifar.py", [f"data.data_dir={tmp_path}"])
    with pytest.raises(ConfigError, match="cifar10 is not in .* give data_dir= of"):
        dataset.make_dataset(made).feed(train_options(made).num_microbatches)


def test_labels_of_samples():
    assert draw.sample_labels(0, 5) is None
    np.testing.assert_array_equal(draw.sample_labels(3, 5), [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(draw.sample_labels(3, 3, [2, 0]), [2, 0, 2])


@pytest.mark.parametrize("labels", [[3], [-1], [0, 5], [0.5], []])
def test_labels_of_samples_are_classes(labels):
    with pytest.raises(ValueError, match="label"):
        draw.sample_labels(3, 4, labels)


@pytest.mark.parametrize("label", [-1, 11])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_labels_that_are_no_classes_reach_no_table(label, scale):
    """Also where guidance would ask for them in pairs; 10 is the null class."""
    built = build.build(digits(*SMALL, f"denoiser.guidance_scale={scale}"))
    params, keys = random_params(built), draw.sample_keys(0, 2)
    for make in (np.array, jnp.array):
        for fn in (built.model.sample_fn, built.model.picture_fn):
            with pytest.raises(ValueError, match=r"must lie in 0 ... 10, got .*"):
                fn(params, keys, make([0, label]))
    labels = jax.ShapeDtypeStruct((2,), np.int32)
    for given in (labels, np.array([0, 10])):
        jax.eval_shape(
            lambda *given: built.model.sample_fn(params, keys, *given), given
        )


def test_seeds_apart_give_other_numbers():
    """Those that JAX tells apart keep theirs; it looks at the lowest 32 bits."""
    for seed in (0, 1, 2**31, 2**32 - 1):
        before = jax.random.key(seed, impl="threefry2x32")
        assert build.random_key(seed) == before
        assert build.random_key(np.uint32(seed)) == before
    seeds = [5 + high * 2**32 for high in (0, 1, 2, 2**31, 2**32 - 1)]
    drawn = {float(jax.random.normal(build.random_key(seed))) for seed in seeds}
    assert len(drawn) == len(seeds)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="a seed must lie in 0 ... "):
            build.random_key(seed)


def test_keys_of_samples_do_not_depend_on_their_number():
    few, many = draw.sample_keys(1, 3), draw.sample_keys(1, 30)
    assert (few == many[:3]).all() and len({str(key) for key in many}) == 30


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(OSError, match="no config.json"):
        ddpm_jax.load(tmp_path)


def test_what_may_change_when_a_run_goes_on(tmp_path):
    """Where memory is saved makes no other run; another width does."""
    run.write_config(tmp_path, digits())
    lighter = digits("network.remat=True", "train.num_microbatches=2")
    assert run.changes(tmp_path, lighter) == [
        "network.remat is None there and True here",
        "train.num_microbatches is None there and 2 here",
    ]
    with pytest.raises(ConfigError, match="network.channels is 32 there and 64 here"):
        run.changes(tmp_path, digits("network.channels=64"))


def test_a_longer_run_may_decay_for_longer(tmp_path):
    before = ("optimizer.decay_steps=2500",)
    run.write_config(tmp_path, digits(*before))
    for after in ((), ("optimizer.decay_steps=5000",), ("optimizer.decay=linear",)):
        said = run.changes(tmp_path, digits("train.num_steps=5000", *after))
        assert "train.num_steps is 2500 there and 5000 here" in said
        assert "optimizer.decay_steps is 2500 there" in said[-2] + said[0] + said[1]


@pytest.mark.parametrize(
    "change",
    [
        ("data.batch_size=16",),
        ("network.attention_resolutions=8,4", "network.dropout=0.2"),
        ("loss={'name': 'simple', 'predicts': 'v'}",),
        ("data.split='a test'",),
        ("seed=3", "image_shape=16,16,1"),
    ],
)
def test_a_run_goes_on_with_the_settings_that_a_refusal_names(tmp_path, change):
    """As a shell reads them: nothing is left that differs."""
    for before, now in (((), change), (change, ())):
        run.write_config(tmp_path, digits(*before))
        with pytest.raises(ConfigError, match="choose another --workdir") as refusal:
            run.changes(tmp_path, digits(*now))
        *_, given = str(refusal.value).partition(", or go on with ")
        back = [text.removeprefix("--config.") for text in shlex.split(given)]
        assert run.changes(tmp_path, digits(*now, *back)) == []


def test_what_a_run_did_not_have_cannot_be_given(tmp_path):
    run.write_config(tmp_path, digits())
    with pytest.raises(ConfigError, match="choose another --workdir$"):
        run.changes(tmp_path, digits("loss.weighting=min_snr"))


def test_imagenet64_is_the_recipe_of_nichol_and_dhariwal():
    """Their README: scales of the times and of the bound, steps, batches, rates."""
    for variant, channels, scale, weight, rate, size, num_steps in (
        ("unconditional", 128, 0.25, 1e-3, 1e-4, 128, 1_500_000),
        ("conditional", 192, 1.0, 1 / 4000, 3e-4, 2048, 250_000),
    ):
        made = config.read_config(f"configs/imagenet64.py:{variant}")
        assert made["network"]["channels"] == channels
        assert made["network"]["index_scale"] == scale
        assert made["loss"]["vlb_weight"] == weight
        assert made["optimizer"]["learning_rate"] == rate
        assert made["data"]["batch_size"] == size and not made["data"]["flip"]
        assert made["train"]["num_steps"] == num_steps
    with pytest.raises(ConfigError, match="there are: unconditional, conditional"):
        config.read_config("configs/imagenet64.py:vlb")


def test_random_numbers_are_threefry_whatever_the_environment():
    """`rbg` would give an image other noise in another batch."""
    with jax.default_prng_impl("rbg"):
        keys = draw.sample_keys(3, 4)
        drawn = jax.vmap(lambda key: jax.random.normal(key, (5,)))(keys)
        one = jax.random.normal(keys[2], (5,))
    assert keys.dtype == jax.random.key(0, impl="threefry2x32").dtype
    np.testing.assert_array_equal(drawn[2], one)
    expected = jax.random.key_data(draw.sample_keys(3, 4))
    np.testing.assert_array_equal(jax.random.key_data(keys), expected)
