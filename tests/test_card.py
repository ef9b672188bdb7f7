"""A model to be shared: its folder, its card, and the hub, of which one stands in."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest
from plain import NAME
from tiny import call, random_params, tiny

import ddpm_jax
from ddpm_jax import convert
from ddpm_jax.buckets import open_bucket
from ddpm_jax.data import images
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import report
from ddpm_jax.evaluation.report import Score
from ddpm_jax.experiment import build, run
from ddpm_jax.metrics.features.base import fingerprint


@pytest.fixture
def workdir(tmp_path):
    built = build.build(tiny("data.split=train", "init_from=/home/me/before"))
    params = random_params(built)
    folder = tmp_path / "run"
    run.write(folder, built.config, params)
    for step in (3, 12):
        picture = np.full((8, 8, 1), step, np.uint8)
        images.save_png(folder / "samples" / f"step_{step:08}.png", picture)
    of_these = {"params": fingerprint(params), "num": 1000, "features": {"name": "f"}}
    scores = [
        Score("ddim:50", "fd", 1.5, None, (), of_these),
        Score("ddim:9", "fd", 7.5, None, (), {**of_these, "params": "another"}),
        Score("bound", "bpd", 2.5, None, (), {"given": {"params": of_these["params"]}}),
    ]
    report.save(folder / "evaluation.json", scores)
    return folder


def shared(workdir, out, *given):
    call(convert, "--workdir", workdir, "--out", out, "--format", "hub", *given)
    return out


def test_a_folder_holds_all_that_others_need(workdir, tmp_path):
    out = shared(workdir, tmp_path / "shared", "--license", "mit")
    found, there = ddpm_jax.load(out), ddpm_jax.load(workdir)
    jax.tree.map(np.testing.assert_array_equal, found.params, there.params)
    assert images.read(out / "samples.png", 1).max() == 12, "the newest"
    text = (out / "README.md").read_text()
    head = text.split("---\n")[1].splitlines()
    assert "license: mit" in head and "library_name: ddpm_jax" in head
    assert "ddim:50" in text and "1.500" in text and "2.500" in text
    assert "ddim:9" not in text, "of other parameters"
    assert "- fd: of 1,000 images, by features of f" in text
    training = json.loads((out / "training.json").read_text())
    assert (
        training["optimizer"]
        == json.loads(json.dumps(found.config | training))["optimizer"]
    )
    everything = text + json.dumps(training)
    assert str(tmp_path) not in everything and "/home/me" not in everything


def test_what_cannot_be_shared_is_said(workdir, tmp_path):
    wrong = ("--workdir", workdir, "--out", tmp_path / "a", "--license", "mit")
    with pytest.raises(ConfigError, match="belong to --format hub"):
        call(convert, *wrong)
    with pytest.raises(OSError, match="no name on the hub: give one as in"):
        shared(workdir, tmp_path / "a", "--push", "digits")
    assert not (tmp_path / "a").exists()
    network = f"network={{'name': '{NAME}', 'num_classes': 10}}"
    one = "loss={'name': 'simple'}", "sampler={'name': 'ddim'}"
    built = build.build(tiny(network, *one))
    run.write(tmp_path / "code", built.config, random_params(built))
    with pytest.raises(OSError, match="is code, which such a file does not hold"):
        shared(tmp_path / "code", tmp_path / "a")


def run_main(name, *given):
    subprocess.run([sys.executable, "-m", f"ddpm_jax.{name}", *given], check=True)


# The clients leave their connections to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("store", ["gs"], indirect=True)
def test_it_may_lie_in_a_bucket(workdir, address):
    bucket, prefix = open_bucket(address)
    for path in workdir.rglob("*"):
        if path.is_file():
            bucket.upload(path, f"{prefix}/{path.relative_to(workdir).as_posix()}")
    given = ["--workdir", address, "--out", f"{address}shared", "--format", "hub"]
    assert (
        subprocess.run([sys.executable, "-m", "ddpm_jax.convert", *given]).returncode
        == 0
    )
    given[-3:] = [f"{address}shared/a.stablehlo", "--apart"]
    assert (
        subprocess.run([sys.executable, "-m", "ddpm_jax.export", *given]).returncode
        == 0
    )
    found = {
        each.name.removeprefix(f"{prefix}shared/")
        for each in bucket.list(f"{prefix}shared/")
    }
    shared = {"README.md", "model.safetensors", "samples.png", "training.json"}
    assert found == shared | {"a.stablehlo", "a.json", "a.safetensors"}
    model = ddpm_jax.load(f"{address}shared")
    there = ddpm_jax.load(workdir)
    jax.tree.map(np.testing.assert_array_equal, model.params, there.params)


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does to who makes a model and sends files in one commit."""

    files, asked, refuses = {}, [], False

    def do_GET(self):
        self.answer({"type": "user", "name": "someone"})

    def do_POST(self):
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        self.asked.append(self.path)
        if self.refuses:
            return self.answer({"error": "who are you"}, 401)
        if self.path.startswith("/api/repos/create"):
            name = json.loads(body)["name"]
            return self.answer({"url": f"http://{self.headers['Host']}/someone/{name}"})
        if "/preupload/" in self.path:
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "validate-yaml" in self.path:
            return self.answer({"errors": [], "warnings": []})
        for line in body.splitlines():
            value = json.loads(line)["value"]
            if "content" in value:
                self.files[value["path"]] = base64.b64decode(value["content"])
        commit = f"http://{self.headers['Host']}/someone/digits/commit/1"
        self.answer({"commitUrl": commit, "commitOid": "1"})

    def answer(self, what, code=200):
        content = json.dumps(what).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *given):
        pass


@pytest.mark.parametrize("refuses", [False, True])
def test_pushing(workdir, tmp_path, monkeypatch, refuses):
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "refuses", refuses)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_x", "HF_HOME": str(tmp_path)}
    given = ("--workdir", workdir, "--out", tmp_path / "shared", "--format", "hub")
    given = [*map(str, given), "--push", "someone/digits"]
    done = subprocess.run(
        [sys.executable, "-m", "ddpm_jax.convert", *given],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    server.shutdown()
    server.server_close()
    files = {path.name: path.read_bytes() for path in (tmp_path / "shared").iterdir()}
    assert set(files) == {
        "README.md",
        "model.safetensors",
        "samples.png",
        "training.json",
    }
    if refuses:
        assert done.returncode == 1 and not Hub.files
        assert "error: cannot push to someone/digits" in done.stderr
        assert (
            "hf upload someone/digits" in done.stderr and done.stderr.count("\n") == 1
        )
        return
    assert done.returncode == 0, done.stderr
    assert f"pushed to {address}/someone/digits" in done.stdout
    assert Hub.files == files
    assert b'ddpm_jax.load("someone/digits")' in files["README.md"]
