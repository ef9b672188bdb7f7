"""diffusers' UNet2DModel: its config, in ours and back.

Up blocks count from the lowest resolution there, levels from the highest here.
"""

from typing import Any

from ddpm_jax.interop.layout import multiples
from ddpm_jax.interop.names import OURS

# What diffusers takes where a config does not say.
DEFAULTS = dict(
    sample_size=None,
    in_channels=3,
    out_channels=3,
    center_input_sample=False,
    time_embedding_type="positional",
    time_embedding_dim=None,
    freq_shift=0,
    flip_sin_to_cos=True,
    down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * 3),
    mid_block_type="UNetMidBlock2D",
    up_block_types=(*["AttnUpBlock2D"] * 3, "UpBlock2D"),
    block_out_channels=(224, 448, 672, 896),
    layers_per_block=2,
    mid_block_scale_factor=1,
    downsample_padding=1,
    downsample_type="conv",
    upsample_type="conv",
    dropout=0.0,
    act_fn="silu",
    attention_head_dim=8,
    norm_num_groups=32,
    attn_norm_num_groups=None,
    norm_eps=1e-5,
    resnet_time_scale_shift="default",
    add_attention=True,
    class_embed_type=None,
    num_class_embeds=None,
    num_train_timesteps=None,
)
# Of these keys, all that our U-Net can be.
SUPPORTED = dict(
    center_input_sample=(False,),
    time_embedding_type=("positional",),
    freq_shift=(0, 1),
    flip_sin_to_cos=(True, False),
    mid_block_type=("UNetMidBlock2D",),
    mid_block_scale_factor=(1,),
    downsample_padding=(0, 1),
    downsample_type=("conv", "resnet", None),
    upsample_type=("conv", "resnet", None),
    act_fn=("silu", "swish"),
    resnet_time_scale_shift=("default", "scale_shift"),
    add_attention=(True,),
    class_embed_type=(None,),
)
# Before diffusers 0.2.
OLD_CLASS = "UNetUnconditionalModel"
OLD_KEYS = dict(
    image_size="sample_size",
    num_res_blocks="layers_per_block",
    block_channels="block_out_channels",
    down_blocks="down_block_types",
    up_blocks="up_block_types",
    downscale_freq_shift="freq_shift",
    resnet_num_groups="norm_num_groups",
    resnet_act_fn="act_fn",
    resnet_eps="norm_eps",
    num_head_channels="attention_head_dim",
)
# What its EMAModel writes beside these keys: how the weights were averaged.
OF_AVERAGING = {
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power"),
    *("update_after_step", "use_ema_warmup"),
}
# A key of ours, which diffusers passes over: how often training dropped labels. Where
# it is there, the last class is the null class of guidance.
NULL_CLASS = "_label_dropout"
# The names are written without the prefix "UNetRes" that old configs have.
PLAIN = {"down": "DownBlock2D", "up": "UpBlock2D"}
ATTENTION = {"down": "AttnDownBlock2D", "up": "AttnUpBlock2D"}
RESIDUAL = {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"}


def import_network(theirs: dict[str, Any], image_shape=None):
    """Returns the shape of the images and the section `network` of a model's config.

    Args:
      theirs: the content of its config.json.
      image_shape: (height, width, channels), for a config that does not say.

    Raises:
      OSError: naming the key and value that our U-Net has nothing for.
    """
    theirs = renamed(theirs, OLD_KEYS)
    _refuse_what_differs(theirs)
    theirs = DEFAULTS | theirs
    image_shape = _image_shape(theirs, image_shape)
    widths = theirs["block_out_channels"]
    attention, residual_resample = _blocks(theirs)
    head_channels = theirs["attention_head_dim"]
    label_dropout = theirs.get(NULL_CLASS, 0.0)
    network = dict(
        name="unet",
        channels=widths[0],
        channel_mults=multiples(widths, widths[0]),
        num_res_blocks=theirs["layers_per_block"],
        attention_resolutions=[min(image_shape[:2]) >> i for i in attention],
        num_heads=1,
        head_channels=head_channels,
        dropout=theirs["dropout"],
        scale_shift=theirs["resnet_time_scale_shift"] == "scale_shift",
        residual_resample=residual_resample,
        num_classes=(theirs["num_class_embeds"] or 0) - (1 if label_dropout else 0),
        **({"label_dropout": label_dropout} if label_dropout else {}),
        learned_variance=theirs["out_channels"] != theirs["in_channels"],
        num_groups=theirs["norm_num_groups"],
        norm_eps=theirs["norm_eps"],
        symmetric_padding=theirs["downsample_padding"] == 1,
        cos_first=theirs["flip_sin_to_cos"],
        frequency_shift=theirs["freq_shift"],
    )
    return image_shape, network


def export_network(image_shape, network: dict[str, Any], num_classes: int):
    """Returns the content of config.json for a network of ours.

    Args:
      image_shape: (height, width, channels).
      network: the section of our config.
      num_classes: rows of the class embedding, the null class among them.

    Raises:
      OSError: naming what diffusers has nothing for.
    """
    ours = OURS | network
    if ours.get("name") != "unet":
        raise OSError(f"only a unet can be written for diffusers, not {ours['name']!r}")
    if ours["index_scale"] != 1:
        raise OSError(
            f"network.index_scale = {ours['index_scale']:g}: diffusers cannot scale "
            "the times that a model gets"
        )
    height, width, channels = image_shape
    sizes = [min(height, width) >> i for i in range(len(ours["channel_mults"]))]
    attends = [size in ours["attention_resolutions"] for size in sizes]
    residual, scale_shift = ours["residual_resample"], ours["scale_shift"]

    def types(way):
        plain = (RESIDUAL if residual else PLAIN)[way]
        return [ATTENTION[way] if attend else plain for attend in attends]

    resample = "resnet" if residual else "conv"
    return dict(
        _class_name="UNet2DModel",
        sample_size=height if height == width else [height, width],
        in_channels=channels,
        out_channels=channels * (2 if ours["learned_variance"] else 1),
        freq_shift=ours["frequency_shift"],
        flip_sin_to_cos=ours["cos_first"],
        down_block_types=types("down"),
        up_block_types=types("up")[::-1],
        block_out_channels=[ours["channels"] * m for m in ours["channel_mults"]],
        layers_per_block=ours["num_res_blocks"],
        downsample_padding=1 if ours["symmetric_padding"] else 0,
        downsample_type=resample,
        upsample_type=resample,
        dropout=ours["dropout"],
        act_fn="silu",
        attention_head_dim=_head_dim(ours, attends),
        norm_num_groups=ours["num_groups"],
        # Otherwise the attention in the middle would have no norm there.
        attn_norm_num_groups=ours["num_groups"] if scale_shift else None,
        norm_eps=ours["norm_eps"],
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        num_class_embeds=num_classes or None,
        **({NULL_CLASS: ours["label_dropout"]} if ours["label_dropout"] else {}),
    )


def refuse(key: str, value, hint: str = "our U-Net has nothing like it") -> OSError:
    """Returns the error for a value that cannot be taken over."""
    return OSError(f"{key} = {value!r} is not supported: {hint}")


def renamed(theirs: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Returns a config with the keys of today for those of older versions.

    Raises:
      OSError: if a key is there by both names, with different values.
    """
    today = {}
    for key, value in theirs.items():
        name = names.get(key, key)
        if today.setdefault(name, value) != value:
            raise refuse(key, value, f"as {name} it is {today[name]!r}")
    return today


def _refuse_what_differs(theirs):
    name = theirs.get("_class_name")
    if name is None:
        raise OSError(
            "no _class_name in it, so it is of no model of diffusers (and a run is one "
            "once it has checkpoints)"
        )
    if name not in ("UNet2DModel", OLD_CLASS):
        raise OSError(
            f"a model of class {name!r}; only UNet2DModel, of images in pixels, can be "
            "imported"
        )
    for key, value in theirs.items():
        if key in SUPPORTED and value not in SUPPORTED[key]:
            raise refuse(key, value)
        known = key in DEFAULTS or key in OF_AVERAGING or key[0] == "_"
        if not known and value not in (None, False):
            raise refuse(
                key,
                value,
                "UNet2DModel had no such key; if nothing depends on it, take it out",
            )
    theirs = DEFAULTS | theirs
    if theirs["time_embedding_dim"] not in (None, 4 * theirs["block_out_channels"][0]):
        raise refuse("time_embedding_dim", theirs["time_embedding_dim"])
    if not isinstance(theirs["norm_num_groups"], int):
        raise refuse("norm_num_groups", theirs["norm_num_groups"])
    for key in ("in_channels", "out_channels", "layers_per_block"):
        if not isinstance(theirs[key], int):
            raise refuse(key, theirs[key], "it must be a whole number")
    if not isinstance(theirs["attention_head_dim"], (int, type(None))):
        raise refuse(
            "attention_head_dim",
            theirs["attention_head_dim"],
            "it must be a whole number, or null for one head",
        )
    groups = theirs["attn_norm_num_groups"]
    if groups is None and theirs["resnet_time_scale_shift"] == "default":
        groups = theirs["norm_num_groups"]
    if groups != theirs["norm_num_groups"]:
        raise refuse("attn_norm_num_groups", groups, "norms must have norm_num_groups")
    if theirs["out_channels"] not in (theirs["in_channels"], 2 * theirs["in_channels"]):
        raise refuse(
            "out_channels",
            theirs["out_channels"],
            f"it must be in_channels, {theirs['in_channels']}, or twice it (a model "
            "that is given more than the noisy image cannot be imported)",
        )


def _image_shape(theirs, image_shape):
    size, channels = theirs["sample_size"], theirs["in_channels"]
    if size is None and image_shape is None:
        raise OSError(
            "sample_size is null: give --config.image_shape=HEIGHT,WIDTH,CHANNELS"
        )
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        image_shape = (height, width, channels)
    if image_shape[2] != channels:
        raise OSError(f"image_shape is {image_shape}, but in_channels = {channels}")
    return tuple(image_shape)


def _blocks(theirs):
    """The levels with attention, and whether residual blocks resample."""
    widths = theirs["block_out_channels"]
    types = dict(down=theirs["down_block_types"], up=theirs["up_block_types"][::-1])
    resample = dict(down=theirs["downsample_type"], up=theirs["upsample_type"])
    attention, kinds = {}, set()
    for way, names in types.items():
        if len(names) != len(widths):
            raise refuse(f"{way}_block_types", names, "one for each level is needed")
        names = [name.removeprefix("UNetRes") for name in names]
        attention[way] = [i for i, name in enumerate(names) if name == ATTENTION[way]]
        for i, name in enumerate(names):
            known = {
                PLAIN[way]: "conv",
                RESIDUAL[way]: "resnet",
                ATTENTION[way]: resample[way] or "conv",
            }
            if name not in known:
                raise refuse(f"{way}_block_types", name)
            if i < len(names) - 1 if way == "down" else i > 0:
                kinds.add(known[name])
    if attention["up"] != attention["down"]:
        raise refuse(
            "up_block_types",
            theirs["up_block_types"],
            "attention must be at the same levels as in down_block_types",
        )
    if len(kinds) > 1:
        raise refuse(
            "down_block_types",
            theirs["down_block_types"],
            "all levels must be resampled by convolutions, or all by residual blocks",
        )
    return attention["down"], kinds == {"resnet"}


def _head_dim(ours, attends):
    """Channels per head: diffusers has one number for all levels, null for one head."""
    if ours["head_channels"] is not None or ours["num_heads"] == 1:
        return ours["head_channels"]
    mults = ours["channel_mults"]
    attending = {m for m, attend in zip(mults, attends, strict=True) if attend}
    widths = sorted(ours["channels"] * m for m in attending | {mults[-1]})
    if len(widths) > 1:
        raise OSError(
            f"network.num_heads = {ours['num_heads']} with attention over "
            f"{' and '.join(map(str, widths))} features: diffusers has one "
            "number of channels per head, network.head_channels here"
        )
    return widths[0] // ours["num_heads"]
