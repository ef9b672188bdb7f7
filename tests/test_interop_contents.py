"""Which of a file's models is meant, and whose it is."""

import jax
import numpy as np
import pytest
from foreign import abstract, message, read, weights, write_folder
from safetensors.numpy import load_file, save_file

from ddpm_jax.interop.published import open_published

folder = pytest.fixture(write_folder)


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
    (note,) = notes_of(under("model."), shadow)
    assert note == "averaged weights, shadow_params, have no names there"
    # As the runner of Song et al. saves them.
    (note,) = notes_of(under("0.module.", zeros), under("4."))
    assert note == "the weights under '4' are taken, not those under '0.module'"
    save_file({**under("student."), **under("teacher.")}, weights(folder))
    said = message(open_published, folder)
    assert "several models, under 'student', 'teacher': save one of them" in said


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
        (["model.map_layer0.weight"], "missing: enc.32x32_block0.conv0.weight"),
        (["state.0.exp_avg"], "the state of an optimizer"),
        (["ema.shadow_params.0"], "averaged weights without their names"),
        (["fc.weight", "fc.bias", "conv.weight"], "that is known (conv, fc); only ne"),
    ],
)
def test_models_of_others_are_named(tmp_path, names, words):
    file = tmp_path / "model.safetensors"
    save_file({name: np.ones((4, 3), np.float32) for name in names}, file)
    said = message(open_published, file)
    assert words in said and str(file) in said
    (tmp_path / "model.jpg").touch()
    assert "not a file of weights, whose names end" in message(
        open_published, tmp_path / "model.jpg"
    )
