"""The demo over HTTP, for browsers of this machine alone.

`GET /` is the page, `GET /offer` what the model can be asked for. `POST /draw` takes a
wish and answers with lines of JSON while it is drawn: {"place": 2} in the queue, then
{"step": 4, "steps": 50, "png": "<base64>"}, or {"error": "<why>"}, and {"done":
true} at last.

Other pages that are open in the browser can ask for nothing: the address must be of
this machine, and a wish must come from the page itself.
"""

import base64
import contextlib
import errno
import http.server
import json
import select
import socket
import sys
import threading
from importlib import resources
from typing import Any

from ddpm_jax.errors import ConfigError, one_line
from ddpm_jax.sampling.desk import Desk, Failed, Full, Place
from ddpm_jax.sampling.streams import Frame, Streams
from ddpm_jax.sampling.wishes import read_wish

MOST_BYTES = 4 * 2**20  # of a wish
MOST_WAITING = 32
MOST_CONNECTIONS = 64
TIMEOUT = 10  # seconds to send a wish, or to take a part of the answer
NAMES = ("localhost", "127.0.0.1")  # by which browsers may know this machine
PATHS = {"/": "GET", "/offer": "GET", "/draw": "POST"}
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\n\r\ntoo many connections: try again later\n"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class Server(http.server.ThreadingHTTPServer):
    """Serves one model on 127.0.0.1; a thread for each connection, one for drawing.

    Attributes:
      streams: what draws.
      desk: where wishes wait.
      url: its address.
    """

    request_queue_size = MOST_CONNECTIONS

    def __init__(self, streams: Streams, port: int):
        """Takes the port; `serve_forever` begins to serve.

        Args:
          streams: what draws.
          port: where, 0 for any that is free.

        Raises:
          ConfigError: if the port is not free.
        """
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise ConfigError(f"port {port} is in use: give another --port") from error
        self.streams, self.desk = streams, Desk(MOST_WAITING)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def process_request(self, request, client_address):
        """Gives a connection its thread, or sends it away where there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            with contextlib.suppress(OSError):
                request.send(BUSY)
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        """Serves a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request, client_address):
        """Says nothing of those who went away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server
    timeout = TIMEOUT
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """The page, and what may be asked for."""
        if not self._is_for_here():
            return
        if self.path == "/":
            page = resources.files(__package__).joinpath("page.html").read_bytes()
            self._answer(200, page, "text/html; charset=utf-8")
        elif self.path == "/offer":
            offer = json.dumps(self.server.streams.offer._asdict())
            self._answer(200, offer.encode(), "application/json")
        else:
            self._refuse()

    def do_POST(self):
        """Draws."""
        if not self._is_for_here():
            return
        if self.path != "/draw":
            self._refuse()
        elif self.headers.get("Origin") != f"http://{self.headers['Host']}":
            self.send_error(403, "ask from the page of this address")
        elif (wish := self._body()) is not None:
            self._draw(wish)

    def _draw(self, text: bytes) -> None:
        streams, desk = self.server.streams, self.server.desk
        try:
            work = streams.frames(read_wish(text, streams.offer))
            with desk.visit(work) as news:
                self._head(200, "application/x-ndjson")
                for each in news:
                    if self._is_gone():
                        return
                    if each is not None:
                        self._say(_told(each))
                self._say({"done": True})
        except ConfigError as error:
            self.send_error(400, one_line(error))
        except Full as error:
            self.send_error(503, one_line(error))

    def _body(self) -> bytes | None:
        """What was sent, or None if it was refused; no more is read than may be."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self.send_error(411, "say the Content-Length")
        elif len(length) > 12 or int(length) > MOST_BYTES:
            self.send_error(413, f"give at most {MOST_BYTES:,} bytes")
        else:
            return self.rfile.read(int(length))
        return None

    def _is_for_here(self) -> bool:
        """Refuses other names: by such one, any page could speak to this machine."""
        name, _, port = self.headers.get("Host", "").partition(":")
        is_here = name in NAMES and port in ("", str(self.server.server_port))
        if not is_here:
            self.send_error(403, f"open {self.server.url}")
        return is_here

    def _is_gone(self) -> bool:
        """Whether the browser has closed the connection."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _say(self, what: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(what).encode() + b"\n")

    def _refuse(self) -> None:
        self.send_error(405 if self.path in PATHS else 404)

    def send_error(self, code, message=None, explain=None):
        """Answers with one line; to methods that there are not, as to wrong ones."""
        code = 405 if code == 501 else code
        line = message if code != 405 and message else self.responses[code][0]
        self._answer(code, f"{line}\n".encode(), "text/plain; charset=utf-8")

    def _answer(self, code: int, content: bytes, kind: str) -> None:
        self._head(code, kind, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, code: int, kind: str, length: int | None = None) -> None:
        self.close_connection = True
        self.send_response(code)
        more = {} if length is None else {"Content-Length": str(length)}
        more |= {"Allow": PATHS.get(self.path, "GET")} if code == 405 else {}
        for name, value in {"Content-Type": kind, **HEADERS, **more}.items():
            self.send_header(name, value)
        self.end_headers()

    def version_string(self):
        """The name of the server, without versions."""
        return "ddpm_jax"

    def log_message(self, *given):
        """Keeps the terminal quiet."""


def _told(news: Place | Failed | Frame) -> dict[str, Any]:
    """What the page is told, as JSON has it."""
    if isinstance(news, Place):
        return {"place": news.before}
    if isinstance(news, Failed):
        return {"error": news.why}
    return {**news._asdict(), "png": base64.b64encode(news.png).decode()}
