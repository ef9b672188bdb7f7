"""Weights fit a network exactly, or it is said which do not."""

import numpy as np
import pytest
from foreign import abstract, changed, message, read, weights, write_folder
from safetensors.numpy import load_file, save_file

from ddpm_jax.interop.published import open_published

folder = pytest.fixture(write_folder)


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
