"""Chromium without a window, by the WebDriver protocol of chromedriver."""

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # what the protocol calls one
PROGRAMS = [shutil.which(name) for name in ("chromedriver", "chromium")]
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage")


class Browser:
    """One tab."""

    def __init__(self, address, size):
        self._address = address
        options = {"args": [*ARGUMENTS, f"--window-size={size}"]}
        wanted = {"goog:chromeOptions": options | {"binary": PROGRAMS[1]}}
        session = self._post("", {"capabilities": {"alwaysMatch": wanted}})
        self._address += f"/{session['sessionId']}"

    def _send(self, method, path, what=None):
        data = None if what is None else json.dumps(what).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(
            self._address + path, data, headers, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def _post(self, path, what):
        return self._send("POST", path, what)

    def open(self, url):
        self._post("/url", {"url": url})

    def run(self, script, *given):
        """Returns what JavaScript returns."""
        return self._post("/execute/sync", {"script": script, "args": given})

    def wait(self, script, seconds=60):
        """Waits until JavaScript returns something true, and returns it."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never: {script}"
            time.sleep(0.02)
        return value

    def find(self, selector):
        found = self._post("/element", {"using": "css selector", "value": selector})
        return found[ELEMENT]

    def click(self, selector):
        self._post(f"/element/{self.find(selector)}/click", {})

    def type(self, selector, text):
        self._post(f"/element/{self.find(selector)}/value", {"text": str(text)})

    def drag(self, selector, *shares):
        """Presses the mouse in an element, and moves through shares of its size."""
        left, top, width, height = self.run(
            "const box = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [box.left, box.top, box.width, box.height]",
            selector,
        )
        moves = [
            {
                "type": "pointerMove",
                "duration": 50,
                "x": round(left + x * width),
                "y": round(top + y * height),
            }
            for x, y in shares
        ]
        down, up = ({"type": f"pointer{name}", "button": 0} for name in ("Down", "Up"))
        actions = [moves[0], down, *moves[1:], up]
        mouse = {"type": "pointer", "id": "mouse", "actions": actions}
        self._post("/actions", {"actions": [mouse]})

    def screenshot(self):
        """Returns a PNG."""
        return base64.b64decode(self._send("GET", "/screenshot"))

    def close(self):
        self._send("DELETE", "")


@contextlib.contextmanager
def browser(port, size="1280,860"):
    """Yields a browser; chromedriver listens to a port of this machine."""
    with subprocess.Popen(
        [PROGRAMS[0], f"--port={port}"], stdout=subprocess.DEVNULL
    ) as driver:
        try:
            opened = _opened(f"http://127.0.0.1:{port}/session", size)
            try:
                yield opened
            finally:
                opened.close()
        finally:
            driver.terminate()


def _opened(address, size):
    for _ in range(200):
        with contextlib.suppress(ConnectionError, urllib.error.URLError):
            return Browser(address, size)
        time.sleep(0.05)
    raise AssertionError("chromedriver does not answer")
