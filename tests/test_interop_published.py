"""Names on the hub."""

import sys
import types

import pytest
from foreign import CONFIG, message, write_folder

from ddpm_jax.interop.published import open_published

folder = pytest.fixture(write_folder)


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
