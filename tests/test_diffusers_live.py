"""diffusers itself reads what we write and computes the same; and the other way.

It needs PyTorch and diffusers: pip install .[test,oracle]
"""

import importlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import denoisers, samplers, schedules, timesteps
from ddpm_jax.diffusion.samplers import loop
from ddpm_jax.interop import diffusers
from ddpm_jax.interop.published import open_published
from ddpm_jax.networks import unet

torch = pytest.importorskip("torch")
hf = pytest.importorskip("diffusers")
pipeline_ddim = importlib.import_module("diffusers.pipelines.ddim.pipeline_ddim")

TINY = dict(
    name="unet",
    channels=16,
    channel_mults=[1, 2],
    num_res_blocks=1,
    attention_resolutions=[8],
    num_groups=4,
)
GUIDED = TINY | dict(
    head_channels=8,
    scale_shift=True,
    residual_resample=True,
    num_classes=5,
    learned_variance=True,
    norm_eps=1e-5,
    cos_first=True,
    frequency_shift=0,
)


def network_of(config):
    return unet(**{k: v for k, v in config["network"].items() if k != "name"})


def abstract(config):
    init = network_of(config).init
    return jax.eval_shape(lambda: init(jax.random.key(0), config["image_shape"]))


def draw(config, scale=1.0):
    """Random parameters that keep the size of activations; none are 0."""
    random = np.random.default_rng(5)

    def leaf(path, like):
        w, kind = random.standard_normal(like.shape), path[-1].key
        if kind == "kernel":
            w = scale * w / np.sqrt(np.prod(like.shape[:-1]))
        elif kind == "scale":
            w = 1 + 0.1 * w
        elif kind == "bias":
            w = 0.1 * w
        return w.astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, abstract(config))


def config_of(network, side, **sections):
    config = dict(
        image_shape=(side, side, 3),
        network=network,
        schedule=dict(name="linear", num_steps=1000, beta_start=1e-4, beta_end=2e-2),
        timesteps=dict(name="leading", num_steps=10),
    )
    return config | sections


def nchw(x):
    return torch.from_numpy(np.array(x.transpose(0, 3, 1, 2)))


def nhwc(x):
    return x.numpy().transpose(0, 2, 3, 1)


def forward(config, params, model, label=None):
    """The largest difference between our output and theirs."""
    x = np.random.default_rng(6).standard_normal((2, *config["image_shape"]))
    x, index = x.astype(np.float32), np.array([3, 700])
    ours = jax.jit(network_of(config).apply)(params, x, index, label)
    label = None if label is None else torch.from_numpy(label)
    with torch.no_grad():
        theirs = model.eval()(nchw(x), torch.from_numpy(index), class_labels=label)
    theirs = nhwc(theirs.sample)
    assert np.abs(theirs).max() > 0.5
    difference = np.abs(ours - theirs).max()
    print(f"largest difference {difference:.1e} of {np.abs(theirs).max():.1f}")
    return difference


def test_published_architecture(tmp_path):
    """google/ddpm-cifar10-32, all 35.7M parameters of it."""
    config = config_of(dict(name="unet"), 32)
    params = draw(config)
    diffusers.export(config, schedules.linear(), params, tmp_path / "model")
    model = hf.UNet2DModel.from_pretrained(tmp_path / "model", subfolder="unet")
    assert model.num_parameters() == 35_746_307
    assert forward(config, params, model) < 2e-5


@pytest.mark.parametrize("attention", [[8], [16, 8], []], ids=str)
@pytest.mark.parametrize("network", [TINY, GUIDED], ids=["tiny", "guided"])
def test_options(tmp_path, network, attention):
    config = config_of(network | {"attention_resolutions": attention}, 16)
    params = draw(config)
    diffusers.export(config, schedules.linear(), params, tmp_path / "model")
    model, loaded = hf.UNet2DModel.from_pretrained(
        tmp_path / "model", subfolder="unet", output_loading_info=True
    )
    assert not any(loaded.values())
    label = np.array([0, 4]) if "num_classes" in network else None
    assert forward(config, params, model, label) < 2e-5


def test_ddim_pipeline(tmp_path, monkeypatch):
    config = config_of(TINY, 16)
    schedule, params = schedules.linear(), draw(config)
    diffusers.export(config, schedule, params, tmp_path / "model")
    x_T = np.random.default_rng(7).standard_normal((2, 16, 16, 3)).astype(np.float32)
    monkeypatch.setattr(pipeline_ddim, "randn_tensor", lambda *a, **k: nchw(x_T))
    pipeline = hf.DDIMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    # Theirs are in [0, 1].
    theirs = 2 * pipeline(2, num_inference_steps=10, output_type="np").images - 1

    denoiser = denoisers.from_network(network_of(config).apply, params, schedule)
    ours, _ = loop.sample(
        samplers.ddim(schedule, 0.0),
        denoisers.clip(denoiser, schedule, rederive=False),
        jax.random.split(jax.random.key(0), 2),
        jnp.asarray(x_T),
        timesteps.leading(schedule, 10),
    )
    assert np.mean(np.abs(theirs) < 1) > 0.1  # not all of it clipped
    print(f"largest difference {np.abs(np.clip(ours, -1, 1) - theirs).max():.1e}")
    np.testing.assert_allclose(np.clip(ours, -1, 1), theirs, atol=1e-3)


def test_ddpm_pipeline(tmp_path):
    config = config_of(
        TINY,
        16,
        sampler=dict(name="ddpm", variance="fixed_large"),
        loss=dict(predicts="v"),
        denoiser=dict(clip=False),
    )
    diffusers.export(config, schedules.linear(), draw(config), tmp_path / "model")
    pipeline = hf.DDPMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    settings = pipeline.scheduler.config
    assert settings.variance_type == "fixed_large"
    assert settings.prediction_type == "v_prediction"
    assert settings.clip_sample is False
    images = pipeline(1, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 16, 16, 3) and np.isfinite(images).all()


@pytest.mark.parametrize(
    "section, schedule",
    [
        (dict(name="linear"), schedules.linear()),
        (dict(name="quadratic"), schedules.quadratic()),
        (dict(name="sigmoid"), schedules.sigmoid()),
        (dict(name="cosine"), schedules.cosine()),
        (dict(name="cosine", offset=0.02), schedules.cosine(offset=0.02)),
        (dict(name="constant"), schedules.constant()),
        (
            dict(name="linear", zero_terminal_snr=True),
            schedules.zero_terminal_snr(schedules.linear()),
        ),
    ],
)
def test_schedules(tmp_path, section, schedule):
    """Theirs are float32, and so are the products."""
    config = config_of(TINY, 16, schedule=section)
    diffusers.export(config, schedule, draw(config), tmp_path / "model")
    theirs = hf.DDPMScheduler.from_pretrained(tmp_path / "model", subfolder="scheduler")
    ours = 1 / (1 + np.exp(-schedule.log_snr[1:]))
    np.testing.assert_allclose(theirs.alphas_cumprod, ours, rtol=1e-4, atol=1e-6)


def test_folder_of_diffusers(tmp_path):
    """Their defaults: [cos, sin], padding on all sides, heads of 8 channels."""
    torch.manual_seed(0)
    model = hf.UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    with torch.no_grad():  # also where norms begin as 1 and 0
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    scheduler = hf.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    hf.DDPMPipeline(model, scheduler).save_pretrained(tmp_path / "model")
    opened = open_published(tmp_path / "model")
    network = opened.config["network"]
    assert network["cos_first"] and network["symmetric_padding"]
    assert network["head_channels"] == 8 and network["norm_eps"] == 1e-5
    assert opened.config["schedule"] == dict(name="cosine", num_steps=1000)
    params = opened.read(abstract(opened.config))
    assert forward(opened.config, params, model) < 2e-5

    # The same in a pickle, as older folders have it.
    unet_folder = tmp_path / "model/unet"
    (unet_folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(model.state_dict(), unet_folder / "diffusion_pytorch_model.bin")
    again = open_published(tmp_path / "model").read(abstract(opened.config))
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_checkpoint_of_a_runner(tmp_path):
    """[model, optimizer, epoch, step, average], with names of a data parallel model."""
    with np.load("tests/data/ermongroup.npz") as golden:
        names = json.loads(str(golden["small/names"]))
    random = np.random.default_rng(8)
    model = {f"module.{name}": torch.zeros(shape) for name, shape in names}
    ema = {n: torch.from_numpy(random.standard_normal(s)).float() for n, s in names}
    optimizer = {
        "state": {0: {"step": 3, "exp_avg": torch.ones(2)}},
        "param_groups": [],
    }
    torch.save([model, optimizer, 1, 10, ema], tmp_path / "ckpt.pth")
    torch.save([model, optimizer, 1, 10, {}], tmp_path / "raw.pth")
    torch.save({n: v.bfloat16() for n, v in ema.items()}, tmp_path / "half.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    (tmp_path / "damaged.pt").write_bytes(b"12345")

    def bias(name):
        opened = open_published(tmp_path / name)
        return opened.read(abstract(opened.config))["conv_in"]["bias"]

    expected = ema["conv_in.bias"].numpy()
    np.testing.assert_array_equal(bias("ckpt.pth"), expected)
    np.testing.assert_array_equal(bias("raw.pth"), 0)
    np.testing.assert_allclose(bias("half.pt"), expected, rtol=1e-2)
    for name, words in [
        ("empty.pt", "no tensors; there is epoch"),
        ("damaged.pt", "dam"),
    ]:
        with pytest.raises(OSError, match=words) as refused:
            open_published(tmp_path / name)
        assert "\n" not in str(refused.value)

    # As Lightning and others save them: one level down, beside other things.
    for held, taken in (
        ({"state_dict": ema, "epoch": 3, "lr_schedulers": []}, "state_dict"),
        ({"model": model, "ema_state_dict": ema, "step": 3}, "ema_state_dict"),
        ({"state": {"net": model, "params_ema": ema}}, "state.params_ema"),
    ):
        torch.save(held, tmp_path / "held.ckpt")
        np.testing.assert_array_equal(bias("held.ckpt"), expected)
        (note,) = open_published(tmp_path / "held.ckpt").notes
        assert f"the weights under {taken!r}" in note


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")  # as torch loads it
def test_tensors_that_numpy_does_not_have_are_named(tmp_path):
    for tensor in (torch.eye(2).to_sparse(), torch.ones(2).to(torch.float8_e4m3fn)):
        torch.save({"a": {"weight": tensor}}, tmp_path / "model.pt")
        with pytest.raises(OSError, match=r"a.weight is a tensor of torch\.(f|s)"):
            open_published(tmp_path / "model.pt")


def test_objects_in_pickles_are_named_and_not_loaded(tmp_path):
    weights = {"temb.dense.0.weight": torch.ones(2)}
    path, trace = tmp_path / "model.pt", tmp_path / "loaded"
    for held, name in (
        (
            {"model": weights, "args": types.SimpleNamespace(lr=1)},
            "types.SimpleNamespace",
        ),
        ({"model": weights, "loss": np.float64(1)}, "numpy.*scalar"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"model": weights, "hook": Canary(str(trace))}, "io.open"),
    ):
        torch.save(held, path)
        with pytest.raises(OSError, match=f"a Python object, {name}, ") as refused:
            open_published(path)
        assert f'torch.load("{path}", weights_only=False)' in str(refused.value)
        assert "\n" not in str(refused.value) and not trace.exists()
    # What the line says to do.
    torch.save({"model": weights, "args": types.SimpleNamespace(lr=1)}, path)
    better = tmp_path / "weights.pt"
    torch.save(torch.load(path, weights_only=False)["model"], better)
    with pytest.raises(OSError, match="missing: conv_in.weight"):
        open_published(better)
    # Both ways, what a suffix says is not asked.
    path.rename(tmp_path / "model.safetensors")
    with pytest.raises(OSError, match=r"types.SimpleNamespace"):
        open_published(tmp_path / "model.safetensors")
