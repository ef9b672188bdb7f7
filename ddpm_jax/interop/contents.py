"""What a file of tensors holds: which of its models is meant, and what else it is."""

import re
from pathlib import Path

from ddpm_jax.interop.layout import Tensors, few

# A tensor that a kind of file has and no other, by which it is told.
ERMONGROUP = "temb.dense.0.weight"
OPENAI = "input_blocks.0.0.weight"
DIFFUSERS = "time_embedding.linear_1.weight"
EDM = "map_layer0.weight"
JIT = "x_embedder.proj1.weight"
UVIT = "in_blocks.0.attn.qkv.weight"
# What stands before the names of a module in another: data parallel, or preconditioned.
WRAPPERS = ("module.", "model.", "net.")
# What averaged weights lie under; "online" are those beside them within an "ema".
AVERAGED = re.compile(
    r"^(?!.*online).*(?<![a-z])(?<!non_)(ema|averaged?)(?![a-z])", re.I
)
NAMELESS = "shadow_params."  # averaged weights in a list
# Parts of names, with what has them: models of latents, whose U-Nets have our names...
LATENT = re.compile(r"first_stage_model\.|transformer_blocks\.")
# ... and others.
OTHERS = {
    r"lora[_.]": "LoRA, changes of another model's weights",
    r"controlnet_": "a ControlNet",
    r"quant_conv\.": "an autoencoder",
    r"adaLN_modulation\.": "a diffusion transformer",
    r"all_modules\.": "a score model of yang-song/score_sde",
    r"downs\.0\.0\.": "a model of denoising-diffusion-pytorch",
    r"exp_avg": "the state of an optimizer",
    re.escape(NAMELESS): "averaged weights without their names, as EMAModel keeps them "
    "(copy_to puts them into a model, whose state_dict can be saved)",
}
ONLY = (
    "only networks for images in pixels can be imported, of diffusers, of OpenAI, of "
    "EDM, of JiT, of U-ViT or of ermongroup/ddim"
)


def only_model(file: Path, tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Returns the tensors of the model that is meant, and what to say of the choice.

    Of several the averaged one is meant, the first where these are numbered; of a list,
    as the runner of Song et al. (2021) saves it, the last. What stands before their
    names is dropped. Where no model is known, all are returned.

    Raises:
      OSError: if it is a model of latents, or if several could be meant.
    """
    if any(LATENT.search(name) for name in tensors):
        raise OSError(
            f"{file}: a model of latents or with text, such as Stable Diffusion; {ONLY}"
        )
    tensors = _with_dots(tensors)
    places = _places(tensors)
    place = _meant(places)
    if place is None:
        raise OSError(
            f"{file} holds several models, under {_said(places)}: save one of them"
        )
    if place == "":
        return tensors, []
    notes = _choice(file, place, [other for other in places if other != place])
    if any(NAMELESS in name for name in tensors) and not AVERAGED.search(place):
        notes.append(f"{file}: averaged weights, {NAMELESS[:-1]}, have no names there")
    inside = {k: v for k, v in tensors.items() if k.startswith(place)}
    return {name.removeprefix(place): v for name, v in inside.items()}, notes


def what_else(tensors: Tensors) -> str:
    """Returns, in words, what tensors are whose model is not known."""
    for part, what in OTHERS.items():
        if any(re.search(part, name) for name in tensors):
            return f"{what}; {ONLY}"
    keys = few(sorted({name.partition(".")[0] for name in tensors}), 8)
    return f"not the weights of a network that is known ({keys}); {ONLY}"


def _with_dots(tensors):
    """Averaged weights of Lightning modules named as the others, not without dots."""
    parts = [name.partition("model.") for name in tensors]
    dotted = {
        f"{before}model_ema.{name.replace('.', '')}": f"{before}model_ema.{name}"
        for before, found, name in parts
        if found
    }
    return {dotted.get(name, name): value for name, value in tensors.items()}


def _places(tensors):
    """What stands before the names of each model that is known."""
    ends = (ERMONGROUP, OPENAI, DIFFUSERS, EDM, JIT, UVIT)
    found = [(name, end) for name in tensors for end in ends if name.endswith(end)]
    places = {name.removesuffix(end) for name, end in found}
    return sorted(place for place in places if place == "" or place.endswith("."))


def _meant(places):
    """The one that is meant, "" where none is known, None where it is unclear."""
    averaged = [place for place in places if AVERAGED.search(place)]
    listed = [place for place in places if place[:1].isdigit()]
    if len(places) < 2:
        return next(iter(places), "")
    if len({re.sub(r"\d", "", place) for place in averaged}) == 1:
        return averaged[0]  # of several that are numbered, as JiT's, the first
    return listed[-1] if listed == places else None


def _choice(file, place, others):
    if place in WRAPPERS and not others:
        return []
    what = ", the averaged ones," if AVERAGED.search(place) else ""
    beside = f", not those under {_said(others)}" if others else ""
    return [f"{file}: the weights under {_said([place])}{what} are taken{beside}"]


def _said(places):
    return few([repr(place[:-1]) for place in places], 8)
