"""How diffusers names the tensors of a UNet2DModel, today and in older versions.

Up blocks count from the lowest resolution there, levels from the highest here.
"""

from typing import Any

from ddpm_jax.interop.layout import Layout, Tensors

# What our U-Net takes where a config does not say.
OURS = dict(
    channels=128,
    channel_mults=(1, 2, 2, 2),
    num_res_blocks=2,
    attention_resolutions=(16,),
    num_heads=1,
    head_channels=None,
    dropout=0.0,
    scale_shift=False,
    residual_resample=False,
    num_classes=0,
    label_dropout=0.0,
    learned_variance=False,
    num_groups=32,
    norm_eps=1e-6,
    symmetric_padding=False,
    cos_first=False,
    frequency_shift=1,
    index_scale=1.0,
)
PARTS = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    "time_proj": "time_emb_proj",
    "shortcut": "conv_shortcut",
}
MODULES = {
    "time_0": "time_embedding.linear_1",
    "time_1": "time_embedding.linear_2",
    "mid_0_block": "mid_block.resnets.0",
    "mid_attn": "mid_block.attentions.0",
    "mid_1_block": "mid_block.resnets.1",
    "norm_out": "conv_norm_out",
}
# Before diffusers 0.2, and those of attention before 0.17.
OLD_MODULES = {
    "downsample_blocks": "down_blocks",
    "mid": "mid_block",
    "upsample_blocks": "up_blocks",
}
OLD_PARTS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def make_layout(network: dict[str, Any]) -> Layout:
    """Returns how diffusers names the parameters of a network of ours."""
    network = OURS | network
    modules, last = dict(MODULES), len(network["channel_mults"]) - 1
    for i in range(last + 1):
        down, up = f"down_blocks.{i}", f"up_blocks.{last - i}"
        modules[f"down_{i}_downsample"] = f"{down}.downsamplers.0"
        modules[f"up_{i}_upsample"] = f"{up}.upsamplers.0"
        for j in range(network["num_res_blocks"] + 1):
            for way, name in [("down", down), ("up", up)]:
                modules[f"{way}_{i}_{j}_block"] = f"{name}.resnets.{j}"
                modules[f"{way}_{i}_{j}_attn"] = f"{name}.attentions.{j}"
    return Layout(modules, PARTS, {"shortcut": 2})


def with_new_names(tensors: Tensors) -> Tensors:
    """Returns tensors with the names that diffusers gives them today."""
    return {_new_name(name): value for name, value in tensors.items()}


def _new_name(name):
    first, *parts = name.split(".")
    if parts[-4:-3] == ["attentions"]:
        parts[-2] = OLD_PARTS.get(parts[-2], parts[-2])
    return ".".join((OLD_MODULES.get(first, first), *parts))
