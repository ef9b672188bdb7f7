"""The cache of the Inception network's weights: filled once, from here or afar."""

import errno
import hashlib
import http.server
import sys
import threading

import numpy as np
import pytest

from ddpm_jax import places
from ddpm_jax.metrics.features import inception_weights

CONTENT = bytes(range(256)) * 10_000
# What the server says that it sends, and sends.
SERVED = {
    "good": (CONTENT, CONTENT),
    "cut": (CONTENT, CONTENT[:1_500_000]),
    "other": (CONTENT[::-1],) * 2,
    "long": (CONTENT * 10,) * 2,
}
PUBLISHED, CONVERTED = "0-weights.pth", "0-weights.safetensors"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        kind = self.path.split("/")[1]
        self.server.asked.append(kind)
        self.send_response(200 if kind in SERVED else 404)
        promised, sent = SERVED.get(kind, (b"", b""))
        self.send_header("Content-Length", str(len(promised)))
        self.end_headers()
        try:
            self.wfile.write(sent)
        except ConnectionError:
            assert kind == "long"

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Says what the URLS serve, and gives a list of what is asked for."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"

    def set_urls(*kinds):
        urls = tuple(f"{address}/{k}/{i}-weights.pth" for i, k in enumerate(kinds))
        monkeypatch.setattr(inception_weights, "URLS", urls)
        return server.asked

    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setattr(
        inception_weights, "SHA256", hashlib.sha256(CONTENT).hexdigest()
    )
    monkeypatch.setattr(inception_weights, "NUM_BYTES", len(CONTENT))
    monkeypatch.setattr(inception_weights.inception, "check", lambda tensors: None)
    yield set_urls
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def tensors(monkeypatch):
    """The tensors of the file, read as where PyTorch is."""
    content = {"a": np.arange(3, dtype=np.float32)}
    read = inception_weights.read_tensors
    monkeypatch.setattr(
        inception_weights,
        "read_tensors",
        lambda p: content if p.suffix == ".pth" else read(p),
    )
    return content


def kept():
    return sorted(path.name for path in places.cache_dir().iterdir())


def test_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    assert places.cache_dir() == tmp_path / "there" / "ddpm_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert places.cache_dir() == tmp_path / ".cache" / "ddpm_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert places.cache_dir() == tmp_path / ".cache" / "ddpm_jax"


def test_downloaded_and_converted_once(serve, tensors):
    asked = serve("good", "good")
    for _ in range(2):
        np.testing.assert_array_equal(
            inception_weights.load_weights()["a"], tensors["a"]
        )
        assert kept() == [PUBLISHED, CONVERTED]
        assert asked == ["good"]
    for name, remains in ((CONVERTED, PUBLISHED), (PUBLISHED, CONVERTED)):
        (places.cache_dir() / name).unlink()
        assert kept() == [remains]
        assert inception_weights.load_weights().keys() == tensors.keys()
        assert asked == ["good"]


@pytest.mark.parametrize("first", ["cut", "other", "long", "absent"])
def test_the_second_address_serves(serve, tensors, first):
    asked = serve(first, "good")
    assert inception_weights.load_weights().keys() == tensors.keys()
    assert asked == [first, "good"]
    assert kept() == [PUBLISHED, CONVERTED]
    assert (places.cache_dir() / PUBLISHED).read_bytes() == CONTENT


def test_nothing_to_download(serve, monkeypatch):
    serve("cut", "other", "absent")
    closed = ("http://127.0.0.1:1/weights.pth",)
    monkeypatch.setattr(inception_weights, "URLS", inception_weights.URLS + closed)
    reasons = (
        "ChunkedEncodingError",
        "it serves another file",
        "status 404",
        "ConnectionError",
    )
    with pytest.raises(OSError, match="--inception FILE.*--metrics fd") as error:
        inception_weights.load_weights()
    assert "\n" not in str(error.value)
    for url, reason in zip(inception_weights.URLS, reasons, strict=True):
        assert f"{url} ({reason})" in str(error.value)
    assert kept() == []


@pytest.mark.parametrize("torch_home", [None, "elsewhere"])
def test_a_file_that_pytorch_keeps(serve, tensors, monkeypatch, tmp_path, torch_home):
    asked = serve("absent", "absent")
    if torch_home:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / torch_home))
    hub = tmp_path / (torch_home or "torch") / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / PUBLISHED).write_bytes(CONTENT[:-1])  # passed over
    with pytest.raises(OSError, match="cannot download"):
        inception_weights.load_weights()
    (hub / "1-weights.pth").write_bytes(CONTENT)
    asked.clear()
    assert inception_weights.load_weights().keys() == tensors.keys()
    assert kept() == [CONVERTED]
    assert not asked


def test_without_pytorch(serve, monkeypatch):
    asked = serve("good")
    monkeypatch.setitem(sys.modules, "torch", None)
    for _ in range(2):
        with pytest.raises(OSError, match="pip install torch.*once is enough") as error:
            inception_weights.load_weights()
        assert "\n" not in str(error.value)
        assert kept() == [PUBLISHED]
    assert asked == ["good"]


class Failing:
    """A hash that fails after the first piece, as the disk or the user might."""

    def __init__(self, error):
        self._error = error

    def update(self, piece):
        raise self._error


@pytest.mark.parametrize(
    "error, raised, message",
    [
        (OSError(errno.ENOSPC, "No space"), OSError, f"write .*{PUBLISHED}.*No space"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=["full disk", "interrupted"],
)
def test_a_failed_download_leaves_nothing(serve, monkeypatch, error, raised, message):
    asked = serve("good", "good")
    monkeypatch.setattr(inception_weights.hashlib, "sha256", lambda: Failing(error))
    with pytest.raises(raised, match=message):
        inception_weights.load_weights()
    assert asked == ["good"]
    assert kept() == []


def test_a_cache_that_cannot_be(serve, monkeypatch, tmp_path):
    asked = serve("good")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="file"):
        inception_weights.load_weights()
    assert not asked
