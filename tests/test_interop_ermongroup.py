"""Files of ermongroup's code, whose networks are told by their tensors."""

import numpy as np
from foreign import changed, file_of, message, read
from safetensors.numpy import save_file

from ddpm_jax.interop import ermongroup
from ddpm_jax.interop.published import open_published


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
