"""Files of published models: strict reading, round trips, and what is refused how."""

import inspect
import json
import os
import shutil
import sys
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ddpm_jax.diffusion import schedules
from ddpm_jax.interop import diffusers, ermongroup, names, openai, unet2d
from ddpm_jax.interop.layout import make_entries
from ddpm_jax.interop.published import open_published
from ddpm_jax.interop.tensors import read_tensors
from ddpm_jax.networks import unet

NETWORK = dict(
    name="unet",
    channels=8,
    channel_mults=[1, 2],
    num_res_blocks=1,
    attention_resolutions=[4],
    num_heads=1,
    head_channels=None,
    dropout=0.1,
    scale_shift=False,
    residual_resample=False,
    num_classes=0,
    learned_variance=False,
    num_groups=4,
    norm_eps=1e-6,
    symmetric_padding=False,
    cos_first=False,
    frequency_shift=1,
)
CONFIG = dict(
    image_shape=(8, 8, 3),
    network=NETWORK,
    schedule=dict(name="linear", num_steps=1000, beta_start=1e-4, beta_end=2e-2),
    loss=dict(name="simple", predicts="eps"),
    denoiser=dict(clip=True),
    sampler=dict(name="ddpm", variance="fixed_large"),
    timesteps=dict(name="trailing", num_steps=1000),
)
LINEAR = schedules.linear()
WEIGHTS = "diffusion_pytorch_model"


def abstract(config):
    settings = {k: v for k, v in config["network"].items() if k != "name"}
    network = unet(**settings)
    return jax.eval_shape(
        lambda: network.init(jax.random.key(0), config["image_shape"])
    )


def draw(config):
    random = np.random.default_rng(3)
    return jax.tree.map(
        lambda leaf: random.standard_normal(leaf.shape).astype(leaf.dtype),
        abstract(config),
    )


def changed(section, **values):
    return {**CONFIG, section: {**CONFIG[section], **values}}


def edit(path, **values):
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    """A folder as diffusers would write it, of random weights."""
    diffusers.export(CONFIG, LINEAR, draw(CONFIG), tmp_path / "model")
    return tmp_path / "model"


def read(path, *args):
    opened = open_published(path, *args)
    return opened.read(abstract(opened.config))


def config_of(folder):
    return diffusers.import_config(folder)[0]


def message(function, *args):
    """What a user is told: one line."""
    with pytest.raises(OSError) as refused:
        function(*args)
    said = str(refused.value)
    assert said and "\n" not in said
    return said


def assert_is_default(network):
    """Whether a section is our U-Net's defaults, which are those of Ho et al."""
    for key, value in network.items():
        if key != "name":
            assert np.array_equal(value, names.OURS[key]), key


def weights(folder):
    return folder / "unet" / f"{WEIGHTS}.safetensors"


# Round trips.


ROUND_TRIPS = {
    "as Ho et al.": CONFIG,
    "oblong": {**CONFIG, "image_shape": (8, 16, 3)},
    "gray, without attention": {
        **changed("network", attention_resolutions=[]),
        "image_shape": (8, 8, 1),
    },
    "as OpenAI": {
        **CONFIG,
        "network": NETWORK
        | dict(
            head_channels=4,
            scale_shift=True,
            residual_resample=True,
            num_classes=5,
            learned_variance=True,
            norm_eps=1e-5,
            symmetric_padding=True,
            cos_first=True,
            frequency_shift=0,
        ),
        "schedule": dict(name="cosine", num_steps=1000),
        "loss": dict(name="hybrid", predicts="eps"),
        "sampler": dict(name="ddpm", variance="learned_range"),
    },
    "residual, no attention": changed(
        "network", attention_resolutions=[], residual_resample=True
    ),
    "v": changed("loss", predicts="v"),
    "x_0, unclipped": {**changed("loss", predicts="x_0"), "denoiser": {"clip": 0}},
    "thresholded": changed("denoiser", dynamic_percentile=95.0, dynamic_largest=1.5),
    "thresholded, unbounded": changed("denoiser", dynamic_percentile=99.5),
    "quadratic": changed("schedule", name="quadratic"),
    "zero terminal": changed("schedule", name="sigmoid", zero_terminal_snr=True),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trip(tmp_path, name):
    config = ROUND_TRIPS[name]
    params = draw(config)
    diffusers.export(config, LINEAR, params, tmp_path / "model")
    opened = open_published(tmp_path / "model")
    assert opened.config == config
    jax.tree.map(np.testing.assert_array_equal, opened.read(params), params)
    diffusers.export(opened.config, LINEAR, params, tmp_path / "again")
    for file in ["model_index.json", "unet/config.json"]:
        content = [(tmp_path / n / file).read_text() for n in ("model", "again")]
        assert content[0] == content[1]
    first, second = (load_file(weights(tmp_path / n)) for n in ("model", "again"))
    assert list(first) == list(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_null_class_comes_back(tmp_path):
    """It is one more class for diffusers, and a key of ours says which."""
    config = changed("network", num_classes=5, label_dropout=0.1)
    params = draw(config)
    assert len(params["class_embedding"]["embedding"]) == 6
    diffusers.export(config, LINEAR, params, tmp_path / "model")
    opened = open_published(tmp_path / "model")
    theirs = json.loads((tmp_path / "model/unet/config.json").read_text())
    assert theirs["num_class_embeds"] == 6
    assert opened.config == config
    jax.tree.map(np.testing.assert_array_equal, opened.read(params), params)


@pytest.mark.parametrize(
    "schedule, section",
    [
        (schedules.cosine(50, offset=0.01), dict(name="cosine", offset=0.01)),
        (schedules.constant(50), dict(name="constant")),
        (
            schedules.zero_terminal_snr(schedules.constant(50)),
            dict(name="constant", zero_terminal_snr=True),
        ),
    ],
)
def test_other_schedules_are_written_as_betas(tmp_path, schedule, section):
    config = {**CONFIG, "schedule": section}
    diffusers.export(config, schedule, draw(config), tmp_path / "model")
    section = open_published(tmp_path / "model").config["schedule"]
    assert section.pop("name") == "from_betas" and list(section) == ["betas"]
    again = schedules.from_betas(**section)
    # The last log-SNR may be -inf, and 1 - β is rounded before it.
    np.testing.assert_allclose(again.log_snr, schedule.log_snr, rtol=1e-9)


def test_export_of_defaults(tmp_path):
    """A config needs no more than a name; the defaults are those of the network."""
    config = dict(image_shape=(32, 32, 3), network=dict(name="unet"))
    theirs = unet2d.export_network(config["image_shape"], config["network"], 0)
    signature = inspect.signature(unet).parameters
    how = ("dtype", "remat")  # it is computed, not what
    ours = {k: p.default for k, p in signature.items() if k not in how}
    assert ours == names.OURS
    assert_is_default(unet2d.import_network(theirs)[1])
    scheduler = diffusers.export_scheduler(config, LINEAR)
    assert scheduler["variance_type"] == "fixed_small"
    again = schedules.from_betas(scheduler["trained_betas"])
    np.testing.assert_allclose(again.log_snr, LINEAR.log_snr, rtol=1e-9)


# What diffusers writes, and wrote.


def test_published_names():
    """328 and 450 tensors, as in google/ddpm-cifar10-32 and google/ddpm-cat-256."""
    for mults, size, count in [((1, 2, 2, 2), 32, 328), ((1, 1, 2, 2, 4, 4), 256, 450)]:
        config = dict(
            network=dict(name="unet", channel_mults=mults), image_shape=(size, size, 3)
        )
        layout = names.make_layout(config["network"])
        entries = make_entries(layout, abstract(config)).values()
        shapes = {entry.name: entry.shape for entry in entries}
        assert len(shapes) == count
        for name, shape in {
            "conv_in.weight": (128, 3, 3, 3),
            "time_embedding.linear_1.weight": (512, 128),
            "down_blocks.0.resnets.0.time_emb_proj.weight": (128, 512),
            "down_blocks.0.downsamplers.0.conv.weight": (128, 128, 3, 3),
            "mid_block.attentions.0.to_out.0.bias": (128 * mults[-1],),
            "up_blocks.0.resnets.0.conv_shortcut.weight": (
                128 * mults[-1],
                256 * mults[-1],
                1,
                1,
            ),
            "conv_norm_out.weight": (128,),
            "conv_out.weight": (3, 128, 3, 3),
        }.items():
            assert shapes[name] == shape
        attending = len(mults) - 1 - {32: 1, 256: 4}[size]
        assert shapes[f"up_blocks.{attending}.attentions.2.to_q.weight"]


def test_published_config():
    """That of google/ddpm-cifar10-32, as it is on the hub."""
    theirs = {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * 2],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": [*["UpBlock2D"] * 2, "AttnUpBlock2D", "UpBlock2D"],
    }
    image_shape, network = unet2d.import_network(theirs)
    assert image_shape == (32, 32, 3)
    assert_is_default(network)


def test_other_layouts_of_a_folder(folder, tmp_path):
    expected = read(folder)
    flat = tmp_path / "flat"
    flat.mkdir()
    os.rename(folder / "unet/config.json", flat / "config.json")
    tensors = load_file(weights(folder))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        tensors = {k.replace(f".{new}.", f".{name}."): v for k, v in tensors.items()}
    half = {k: v.astype(np.float16) for k, v in tensors.items()}
    save_file(half, flat / f"{WEIGHTS}.fp16.safetensors")
    rough = dict(rtol=1e-3, atol=1e-3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **rough), read(flat), expected
    )
    save_file(tensors, flat / f"{WEIGHTS}.safetensors")
    jax.tree.map(np.testing.assert_array_equal, read(flat), expected)
    variance = lambda: config_of(flat)["sampler"]["variance"]
    assert variance() == "fixed_small"  # of diffusers, where nothing is said
    os.rename(
        folder / "scheduler/scheduler_config.json", flat / "scheduler_config.json"
    )
    assert variance() == "fixed_large"


def test_averaged_weights_of_a_training_example(folder, tmp_path):
    """Of a checkpoint they are taken, with the scheduler of the run above it."""
    run = tmp_path / "run"
    checkpoint = run / "checkpoint-500"
    shutil.copytree(folder / "unet", checkpoint / "unet")
    shutil.copytree(folder / "unet", checkpoint / "unet_ema")
    shutil.move(folder / "scheduler", run / "scheduler")
    (checkpoint / "scheduler.bin").touch()  # of its learning rate
    edit(run / "scheduler/scheduler_config.json", beta_schedule="squaredcos_cap_v2")
    edit(
        checkpoint / "unet_ema/config.json",
        decay=0.9999,
        inv_gamma=1.0,
        min_decay=0.0,
        optimization_step=3,
        power=0.75,
        update_after_step=0,
        use_ema_warmup=True,
    )
    tensors = load_file(checkpoint / f"unet/{WEIGHTS}.safetensors")
    averaged = tensors | {"conv_in.bias": np.full(8, 2, np.float32)}
    save_file(averaged, checkpoint / f"unet_ema/{WEIGHTS}.safetensors")
    bias = lambda place: read(place)["conv_in"]["bias"][0]
    assert bias(checkpoint) == bias(checkpoint / "unet_ema") == 2
    assert bias(checkpoint / "unet") != 2
    opened = open_published(checkpoint)
    assert opened.config["schedule"]["name"] == "cosine"
    assert opened.notes == [
        f"the averaged weights in {checkpoint / 'unet_ema'} are taken; for the raw "
        f"ones give {checkpoint / 'unet'}",
        f"its scheduler is {run / 'scheduler/scheduler_config.json'}",
    ]
    opened = open_published(checkpoint / "unet_ema")
    assert opened.config["schedule"]["name"] == "cosine"
    said = message(open_published, run)
    assert f"{checkpoint}/unet, {checkpoint}/unet_ema: give one of them" in said


def test_what_is_assumed_is_said(folder):
    (folder / "scheduler/scheduler_config.json").unlink()
    (note,) = open_published(folder).notes
    assert f"no scheduler_config.json in {folder} or above it: assumed are lin" in note


def test_weights_in_parts(folder):
    expected = read(folder)
    tensors = load_file(weights(folder))
    weights(folder).unlink()
    parts = [f"{WEIGHTS}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {name: parts[i % 2] for i, name in enumerate(tensors)}
    for part in parts:
        held = {name: x for name, x in tensors.items() if places[name] == part}
        save_file(held, folder / "unet" / part)
    assert "to its parts diffusion_pytorch_model.safetensors.index.json; there is" in (
        message(open_published, folder)
    )
    index = folder / "unet" / f"{WEIGHTS}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    jax.tree.map(np.testing.assert_array_equal, read(folder), expected)
    said = message(open_published, folder / "unet" / parts[0])
    assert "is one of several parts: give the folder" in said
    (folder / "unet" / parts[1]).unlink()
    said = message(open_published, folder)
    assert f"of its 2 files there is no {parts[1]}: copy or" in said
    index.write_text(json.dumps({"weight_map": {"a": "../../b.safetensors"}}))
    assert "damaged" in message(open_published, folder)


def test_variants_of_weights(folder):
    """The plain name goes first, the raw weights last, and the choice is said."""
    tensors = load_file(weights(folder))
    names = [
        f"{WEIGHTS}.non_ema.safetensors",
        f"{WEIGHTS}.pruned.safetensors",
        f"{WEIGHTS}.safetensors",
    ]
    for i, name in enumerate(names):
        values = np.full(8, i, np.float32)
        save_file(tensors | {"conv_in.bias": values}, folder / "unet" / name)
    (folder / "unet" / f"{WEIGHTS}.bin").touch()  # never opened
    others = f"{WEIGHTS}.bin, {names[1]}, {names[0]}"
    assert open_published(folder).notes == [
        f"the weights {names[2]} are taken, and not {others}"
    ]
    assert read(folder)["conv_in"]["bias"][0] == 2
    # Another is had by its name, with the config beside it.
    assert read(folder / "unet" / names[0])["conv_in"]["bias"][0] == 0
    (folder / "unet" / f"{WEIGHTS}.bin").unlink()
    for i in (2, 1):
        assert read(folder)["conv_in"]["bias"][0] == i
        (folder / "unet" / names[i]).unlink()
    assert read(folder)["conv_in"]["bias"][0] == 0
    (note,) = open_published(folder).notes
    assert note == f"the weights are {names[0]}, raw ones"


def test_which_of_a_files_models_is_meant(folder):
    """Compiled and data parallel ones, and those one level down."""
    original = load_file(weights(folder))
    zeros = {name: np.zeros_like(value) for name, value in original.items()}
    expected = read(folder)

    def under(place, tensors=original):
        return {f"{place}{name}": value for name, value in tensors.items()}

    def notes_of(*held):
        save_file({k: v for each in held for k, v in each.items()}, weights(folder))
        opened = open_published(folder)
        found = opened.read(abstract(opened.config))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        return [note.removeprefix(f"{weights(folder)}: ") for note in opened.notes]

    for place in ("_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module."):
        assert notes_of(under(place)) == []
    inside = {
        n.replace("resnets.", "_orig_mod.resnets."): original[n] for n in original
    }
    assert notes_of(inside) == []
    averaged = {"n_averaged": np.ones((), np.int64)}  # of torch's AveragedModel
    assert notes_of(under("module."), averaged) == []
    taken = "the weights under 'state_dict.model' are taken"
    optimizer = {"optimizer.state.0.exp_avg": np.ones(3)}
    assert notes_of(under("state_dict.model."), optimizer) == [taken]
    for raw, ema in (
        ("model.", "ema."),
        ("params.", "params_ema."),
        ("state_dict.model.", "state_dict.model_ema."),
        ("ema.online_model.", "ema.ema_model."),
        ("model_state_dict.", "ema_state_dict."),
        ("", "EMA.module."),
        ("unet_non_ema.", "unet_ema."),
    ):
        (note,) = notes_of(under(raw, zeros), under(ema))
        assert note == (
            f"the weights under {ema[:-1]!r}, the averaged ones, are taken, not those "
            f"under {raw[:-1]!r}"
        )
    # As latent-diffusion's code, also of models in pixels, averages: without dots.
    flat = {f"net.{name}".replace(".", ""): x for name, x in original.items()}
    decay = {"state_dict.model_ema.decay": np.ones(())}
    held = under("state_dict.model_ema.", flat)
    (note,) = notes_of(under("state_dict.model.net.", zeros), held, decay)
    assert "under 'state_dict.model_ema.net', the averaged ones, are taken" in note
    shadow = {"ema.shadow_params.0": np.ones(3)}
    _, note = notes_of(under("model."), shadow)
    assert note == "averaged weights, shadow_params, have no names there"
    # As the runner of Song et al. saves them.
    (note,) = notes_of(under("0.module.", zeros), under("4."))
    assert note == "the weights under '4' are taken, not those under '0.module'"
    save_file({**under("student."), **under("teacher.")}, weights(folder))
    said = message(open_published, folder)
    assert "several models, under 'student', 'teacher': save one of them" in said


def test_older_spellings(folder, tmp_path):
    """Of configs and of names, before diffusers 0.2."""
    expected = read(folder)
    path = folder / "unet/config.json"
    theirs = json.loads(path.read_text())
    for old, new in unet2d.OLD_KEYS.items():
        theirs[old] = theirs.pop(new)
    path.write_text(json.dumps(theirs | {"_class_name": "UNetUnconditionalModel"}))
    tensors = load_file(weights(folder))
    for new, old in (
        ("mid_block.", "mid."),
        ("down_blocks.", "downsample_blocks."),
        ("up_blocks.", "upsample_blocks."),
    ):
        tensors = {k.replace(new, old): v for k, v in tensors.items()}
    save_file(tensors, weights(folder))
    opened = open_published(folder)
    assert opened.config["network"]["head_channels"] is None
    jax.tree.map(np.testing.assert_array_equal, read(folder), expected)
    edit(path, sample_size=16)
    said = message(open_published, folder)
    assert "sample_size = 16 is not supported: as sample_size it is 8" in said


def test_older_spellings_of_schedulers(folder):
    path = folder / "scheduler/scheduler_config.json"
    theirs = {"_class_name": "DDPMScheduler", "beta_schedule": "linear"}
    old = dict(timesteps=50, clip_predicted_image=False, predict_epsilon=False)
    path.write_text(json.dumps({**theirs, **old, "tensor_format": "pt"}))
    opened = open_published(folder)
    assert opened.config["schedule"]["num_steps"] == 50
    assert opened.config["denoiser"] == dict(clip=False)
    assert opened.config["loss"]["predicts"] == "x_0"
    assert opened.notes == []
    edit(path, prediction_type="epsilon")
    said = message(open_published, folder)
    assert "predict_epsilon = False" in said and "prediction_type says 'eps" in said


def test_keys_of_schedulers_that_are_not_known(folder):
    """What only chooses a sampler is passed over, the rest is named."""
    path = folder / "scheduler/scheduler_config.json"
    edit(
        path,
        timestep_spacing="trailing",
        steps_offset=1,
        set_alpha_to_one=False,
        solver_order=2,
        algorithm_type="dpmsolver++",
        use_karras_sigmas=True,
        lambda_min_clipped=-np.inf,
        not_used=None,
    )
    assert open_published(folder).notes == []
    edit(path, warp=0.3)
    (note,) = open_published(folder).notes
    assert note == f"{path}: passed over, not known here: warp = 0.3"


def test_other_schedulers(folder):
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    config = config_of(folder)
    assert config["sampler"] == dict(name="ddim", eta=0.0)
    assert config["timesteps"] == dict(name="trailing", num_steps=50)
    assert config["denoiser"] == dict(clip=True)
    assert config["schedule"] == CONFIG["schedule"]
    edit(path, _class_name="PNDMScheduler", beta_schedule="scaled_linear")
    assert config_of(folder)["schedule"]["name"] == "quadratic"
    edit(path, trained_betas=[0.1, 0.2])
    config = config_of(folder)
    assert config["schedule"] == dict(name="from_betas", betas=[0.1, 0.2])
    assert config["timesteps"]["num_steps"] == 2
    path.write_text(json.dumps({"variance_type": "fixed_large_log"}))
    config = config_of(folder)
    assert config["sampler"] == dict(name="ddpm", variance="fixed_large")


# Refusals.


@pytest.mark.parametrize(
    "key, value",
    [
        ("_class_name", "UNet2DConditionModel"),
        ("_class_name", None),
        ("center_input_sample", True),
        ("time_embedding_type", "fourier"),
        ("time_embedding_dim", 100),
        ("freq_shift", 2),
        ("mid_block_type", None),
        ("mid_block_scale_factor", 1.4142),
        ("downsample_padding", 2),
        ("downsample_type", "fir"),
        ("act_fn", "gelu"),
        ("resnet_time_scale_shift", "scale_shift"),  # then the middle has no norm
        ("resnet_time_scale_shift", "ada_group"),
        ("attn_norm_num_groups", 2),
        ("norm_num_groups", None),
        ("add_attention", False),
        ("class_embed_type", "timestep"),
        ("block_out_channels", [8, 12]),
        ("block_out_channels", [16, 8]),
        ("block_out_channels", None),
        ("down_block_types", ["DownBlock2D", "SkipDownBlock2D"]),
        ("down_block_types", ["DownBlock2D", "DownBlock2D"]),
        ("down_block_types", ["DownBlock2D"]),
        ("down_block_types", ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]),
        ("up_block_types", ["AttnUpBlock2D", "AttnUpBlock2D"]),
        ("out_channels", 4),
        ("attention_head_dim", [8, 8]),
        ("sample_size", None),
        ("something_new", 3),
    ],
)
def test_refused_models(folder, key, value):
    edit(folder / "unet/config.json", **{key: value})
    said = message(open_published, folder)
    assert str(folder / "unet/config.json") in said
    if value is not None and key not in ("_class_name", "block_out_channels"):
        known = key if key != "resnet_time_scale_shift" else ""
        assert known in said or "up_block_types" in said


def test_size_may_be_given(folder):
    edit(folder / "unet/config.json", sample_size=None)
    opened = open_published(folder, None, (8, 8, 3))
    assert opened.config == CONFIG
    assert "in_channels" in message(open_published, folder, None, (8, 8, 1))


@pytest.mark.parametrize(
    "key, value",
    [
        ("beta_schedule", "laplace"),
        ("prediction_type", "flow"),
        ("variance_type", "learned"),
        ("variance_type", "learned_range"),
        ("clip_sample_range", 2.0),
        ("use_flow_sigmas", True),
        ("timestep_type", "continuous"),
        ("snr_shift_scale", 3.0),
    ],
)
def test_refused_schedulers(folder, key, value):
    edit(folder / "scheduler/scheduler_config.json", **{key: value})
    said = message(open_published, folder)
    assert f"{key} = {value!r}" in said and "scheduler_config.json" in said


@pytest.mark.parametrize(
    "values, denoiser",
    [
        # Bounded by 1, all of it is plain clipping, and clip_sample is not asked.
        (dict(sample_max_value=1.0, clip_sample=False), dict(clip=True)),
        (dict(), dict(clip=True)),
        (
            dict(sample_max_value=1.5, clip_sample_range=3.0),
            dict(clip=True, dynamic_percentile=99.5, dynamic_largest=1.5),
        ),
        (
            dict(dynamic_thresholding_ratio=0.95, sample_max_value=np.inf),
            dict(clip=True, dynamic_percentile=95.0),
        ),
    ],
)
def test_thresholding(folder, values, denoiser):
    edit(folder / "scheduler/scheduler_config.json", thresholding=True, **values)
    assert config_of(folder)["denoiser"] == denoiser


@pytest.mark.parametrize(
    "key, value", [("dynamic_thresholding_ratio", 1.2), ("sample_max_value", 0.5)]
)
def test_refused_thresholding(folder, key, value):
    path = folder / "scheduler/scheduler_config.json"
    edit(path, thresholding=True, **{key: value})
    assert f"{path}: {key} = {value} is not supported" in message(
        open_published, folder
    )


def test_refused_folders(folder, tmp_path):
    assert "config.json" in message(open_published, tmp_path)
    (folder / "scheduler/scheduler_config.json").write_text('{"_class_name": "Ve"}')
    assert "'Ve'" in message(open_published, folder)
    (folder / "scheduler/scheduler_config.json").unlink()
    edit(folder / "model_index.json", vqvae=["diffusers", "VQModel"])
    assert "scheduler, unet, vqvae" in message(open_published, folder)
    (folder / "model_index.json").unlink()
    weights(folder).unlink()
    assert "no weights" in message(open_published, folder)
    (folder / "unet/diffusion_flax_model.msgpack").touch()
    assert "; there is diffusion_flax_model.msgpack" in message(open_published, folder)
    (folder / "unet/config.json").write_text("{")
    assert "damaged" in message(open_published, folder)
    (folder / "unet/config.json").write_text("[]")
    assert "it holds [] in the place of keys" in message(open_published, folder)
    (folder / "unet/config.json").unlink()
    shutil.rmtree(folder / "unet")
    (folder / "model.safetensors").touch()
    said = message(open_published, folder)
    assert "put that of the model of model.safetensors beside it" in said


def test_a_model_of_latents_is_told_by_the_folder_above(folder):
    edit(folder / "model_index.json", vqvae=["diffusers", "VQModel"])
    assert "scheduler, unet, vqvae" in message(open_published, folder / "unet")
    (folder / "unet").rename(folder / "transformer")
    assert "scheduler, unet, vqvae" in message(open_published, folder)


# Weights.


def test_weights_must_fit_exactly(folder):
    original = load_file(weights(folder))
    names = list(original)

    def said(tensors):
        save_file(tensors, weights(folder))
        return message(read, folder)

    def without(*gone):
        return {k: v for k, v in original.items() if k not in gone}

    assert f"missing: {names[3]}" in said(without(names[3]))
    many = said(without(*names[:5]))
    assert "missing: " in many and " and 2 more" in many
    extra = {**original, "ema.decay": np.ones(1, np.float32)}
    assert "not expected: ema.decay" in said(extra)
    wide = {"conv_in.weight": np.ones((16, 3, 3, 3), np.float32)}
    expected = "conv_in.weight is [16, 3, 3, 3] there and [8, 3, 3, 3] in the model"
    assert expected in said(original | wide)
    # [in, out] instead of [out, in] of a square layer could not be seen; this can.
    name = "time_embedding.linear_1.weight"
    assert "is [8, 32] there" in said(original | {name: original[name].T.copy()})
    nan = {"conv_in.bias": np.full(8, np.nan, np.float32)}
    assert "not finite: conv_in.bias" in said(original | nan)
    all_at_once = said({**without("conv_out.bias"), **wide, **nan, "a": np.ones(1)})
    for fault in ["missing: conv_out.bias", "not expected: a", expected, "not finite"]:
        assert fault in all_at_once
    assert str(weights(folder)) in all_at_once


def test_another_network_is_refused(folder):
    opened = open_published(folder)
    wider = abstract(changed("network", channels=16))
    assert "in the model" in message(opened.read, wider)
    deeper = abstract(changed("network", channel_mults=[1, 2, 2]))
    assert "missing: " in message(opened.read, deeper)
    classes = abstract(changed("network", num_classes=3))
    assert "missing: class_embedding.weight" in message(opened.read, classes)


def test_files_that_cannot_be_read(tmp_path):
    assert "no file" in message(read_tensors, tmp_path / "absent.safetensors")
    assert "no file or folder" in message(open_published, str(tmp_path / "absent"))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"12345")
    assert "damaged" in message(open_published, file)
    save_file({"a": np.ones(3)}, file)
    file.write_bytes(file.read_bytes()[:-5])
    assert "damaged" in message(open_published, file)
    save_file({}, file)
    assert "no tensors" in message(open_published, file)
    save_file({"a": np.ones(3)}, file)
    assert "not the weights" in message(open_published, file)
    save_file({"time_embedding.linear_1.weight": np.ones(3)}, file)
    assert "give the folder" in message(open_published, file)
    (tmp_path / "model.npz").touch()
    assert ".safetensors, .bin" in message(open_published, tmp_path / "model.npz")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b"<html>", "is a web page"),
        (b"Entry not found", "it is text, 'Entry not found'"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_what_lies_in_the_place_of_weights(folder, suffix, content, words):
    weights(folder).unlink()
    file = folder / "unet" / f"{WEIGHTS}{suffix}"
    file.write_bytes(content)
    said = message(open_published, folder)
    assert words in said and str(file) in said


@pytest.mark.parametrize("name", ["unet/config.json", "model_index.json"])
def test_what_lies_in_the_place_of_a_config(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1")
    assert f"{name}: it is a pointer of Git LFS" in message(open_published, folder)
    (folder / name).write_text("")
    assert f"{name}: it is empty" in message(open_published, folder)


def test_numbers_that_are_not_read_are_named(tmp_path):
    tensor = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    header = json.dumps({"a": tensor}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    said = message(read_tensors, path)
    assert "fewer bits" in said and "float8" in said and "save it as float32" in said


def test_files_go_by_what_they_are(folder):
    """Safetensors by another name need no PyTorch."""
    expected = read(folder)
    weights(folder).rename(folder / "unet" / f"{WEIGHTS}.bin")
    jax.tree.map(np.testing.assert_array_equal, read(folder), expected)


@pytest.mark.parametrize(
    "names, words",
    [
        (
            ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.a"],
            "of latents or with text, such as Stable Diffusion",
        ),
        (
            ["time_embedding.linear_1.weight", "mid.0.transformer_blocks.0.a"],
            "of latents or with text",
        ),
        (["input_blocks.0.0.weight", "out.2.positional_embedding"], "a classifier"),
        (["unet.down.lora_A.weight"], "LoRA, changes of another model's weights"),
        (["model.map_layer0.weight"], "a model of NVIDIA's EDM"),
        (["state.0.exp_avg"], "the state of an optimizer"),
        (["ema.shadow_params.0"], "averaged weights without their names"),
        (["fc.weight", "fc.bias", "conv.weight"], "that is known (conv, fc); only U-"),
    ],
)
def test_models_of_others_are_named(tmp_path, names, words):
    file = tmp_path / "model.safetensors"
    save_file({name: np.ones((4, 3), np.float32) for name in names}, file)
    said = message(open_published, file)
    assert words in said and str(file) in said
    (tmp_path / "edm.pkl").touch()
    assert "a .pkl, as of NVIDIA's EDM, is a" in message(
        open_published, tmp_path / "edm.pkl"
    )


def test_pickles_need_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.ckpt").write_bytes(b"PK\3\4")
    said = message(open_published, tmp_path / "model.ckpt")
    assert "needs PyTorch: pip install torch, or convert it to safetensors" in said


# OpenAI's and ermongroup's files.


def file_of(module, config, path, *settings):
    """Writes a file of random weights for a network of ours."""
    random = np.random.default_rng(4)
    layout = module.make_layout(config["network"], *settings)
    entries = make_entries(layout, abstract(config)).values()
    shapes = {entry.name: entry.shape for entry in entries}
    tensors = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, path)
    return tensors


GUIDED = changed(
    "network",
    channels=64,
    channel_mults=[1, 2],
    num_groups=32,
    head_channels=64,
    residual_resample=True,
    scale_shift=True,
    num_classes=3,
    learned_variance=True,
)


def test_published_openai_files_are_known_by_name(tmp_path):
    settings = openai.PUBLISHED["64x64_diffusion"]
    config = {**GUIDED, "image_shape": (64, 64, 3)}
    config["network"] = {**GUIDED["network"], "attention_resolutions": [32]}
    path = tmp_path / "64x64_diffusion.safetensors"
    file_of(openai, config, path, settings)
    opened = open_published(path)
    assert opened.config["image_shape"] == (64, 64, 3)
    assert opened.config["schedule"] == dict(name="cosine", num_steps=1000)
    assert opened.config["loss"]["name"] == "hybrid"
    assert opened.config["sampler"]["variance"] == "learned_range"
    for key in GUIDED["network"]:
        ours = ("dropout", "norm_eps", "symmetric_padding", "cos_first", "num_groups")
        if key not in (*ours, "frequency_shift"):
            assert opened.config["network"][key] == config["network"][key], key
    read(path)
    os.rename(path, tmp_path / "other.safetensors")
    said = message(open_published, tmp_path / "other.safetensors")
    assert (
        "not one of OpenAI's published files" in said and "--openai image_size=" in said
    )


def test_openai_settings_reach_the_config(tmp_path):
    path, settings = tmp_path / "a.safetensors", openai.Settings(8, num_steps=4000)
    config = changed("network", num_groups=32, channels=32, residual_resample=False)
    tensors = file_of(openai, config, path, settings)
    opened = open_published(path, settings)
    assert opened.config["schedule"] == dict(
        name="linear", num_steps=4000, beta_start=2.5e-5, beta_end=5e-3
    )
    assert opened.config["network"]["index_scale"] == 1
    assert opened.config["sampler"] == dict(name="ddpm", variance="fixed_large")
    (tmp_path / "ema_0.99_005.safetensors").touch()
    raw = shutil.copy(path, tmp_path / "model005.safetensors")
    (note,) = open_published(raw, settings).notes
    assert note.endswith("the averaged ones are in ema_0.99_005.safetensors")
    scaled = open_published(path, settings._replace(rescale=True))
    assert scaled.config["network"]["index_scale"] == 0.25
    read(path, settings)
    tensors["input_blocks.0.0.weight"] = np.ones((16, 3, 3, 3), np.float32)
    save_file(tensors, path)
    assert "512x512" in message(open_published, path, settings)
    tensors["input_blocks.0.0.weight"] = np.ones((32, 6, 3, 3), np.float32)
    save_file(tensors, path)
    assert "enlarge" in message(open_published, path, settings)
    assert "enlarge" in message(open_published, path)  # before settings are asked for
    published = tmp_path / "cd_imagenet64_l2.safetensors"
    tensors["input_blocks.0.0.weight"] = np.ones((32, 3, 3, 3), np.float32)
    save_file(tensors, published)
    assert "a consistency model" in message(open_published, published, settings)
    save_file({"input_blocks.0.0.weight": np.ones((32, 3, 3, 3))}, path)
    assert "missing: out.2.weight" in message(open_published, path, settings)


def test_ermongroup_sizes(tmp_path):
    """Attention is at 16x16 in all of them; the variances are the authors'."""
    path = tmp_path / "model.safetensors"
    for level, size, variance in [(2, 64, "fixed_large"), (4, 256, "fixed_small")]:
        mults = [1, 2, 2, 2, 4, 4][: level + 2]
        config = changed(
            "network",
            channels=32,
            channel_mults=mults,
            num_groups=32,
            attention_resolutions=[16],
        )
        config = {**config, "image_shape": (size, size, 3)}
        tensors = file_of(ermongroup, config, path)
        opened = open_published(path)
        assert opened.config["image_shape"] == (size, size, 3)
        assert opened.config["network"]["channel_mults"] == mults
        assert opened.config["sampler"]["variance"] == variance
        read(path)
    name = "down.0.attn.0.q.weight"
    save_file({**tensors, name: np.ones((32, 32, 1, 1), np.float32)}, path)
    assert "attention at 2 levels" in message(open_published, path)
    save_file({"temb.dense.0.weight": np.ones(1)}, path)
    assert "missing: conv_in.weight" in message(open_published, path)


# Export.


def test_export_does_not_overwrite(folder, tmp_path):
    before = weights(folder).read_bytes()
    said = message(diffusers.export, CONFIG, LINEAR, draw(CONFIG), folder)
    assert "exists and is not empty" in said
    assert weights(folder).read_bytes() == before
    (tmp_path / "empty").mkdir()
    diffusers.export(CONFIG, LINEAR, draw(CONFIG), tmp_path / "empty")
    assert (tmp_path / "empty/unet/config.json").is_file()
    (tmp_path / "file").touch()
    message(diffusers.export, CONFIG, LINEAR, draw(CONFIG), tmp_path / "file")


def test_export_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(diffusers, "save_file", full)
    target = tmp_path / "model"
    said = message(diffusers.export, CONFIG, LINEAR, draw(CONFIG), target)
    assert "No space left" in said and str(target) in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "values, named",
    [
        (dict(index_scale=0.25), "index_scale"),
        (dict(num_heads=2, attention_resolutions=[8]), "num_heads"),
        (dict(name="transformer"), "transformer"),
    ],
)
def test_export_refuses(tmp_path, values, named):
    config = changed("network", **values)
    said = message(diffusers.export, config, LINEAR, draw(CONFIG), tmp_path / "model")
    assert named in said and not any(tmp_path.iterdir())


def test_heads_are_written_as_their_channels(tmp_path):
    config = changed("network", num_heads=2)
    diffusers.export(config, LINEAR, draw(config), tmp_path / "model")
    network = open_published(tmp_path / "model").config["network"]
    assert network["head_channels"] == 8  # 2 heads, where all attention has 16


# The hub.


def test_hub_names(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    said = message(open_published, "google/ddpm-cifar10-32")
    assert "pip install huggingface_hub" in said and "google/ddpm-cifar10-32" in said

    asked = []
    hub = types.ModuleType("huggingface_hub")

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert open_published("google/ddpm-cifar10-32").config == CONFIG
    assert asked == [("google/ddpm-cifar10-32", ["*.json", "*.safetensors", "*.bin"])]

    def no_network(name, allow_patterns):
        raise ConnectionError("no route\nto host")

    hub.snapshot_download = no_network
    said = message(open_published, "google/ddpm-cifar10-32")
    assert "cannot be downloaded (no route)" in said
