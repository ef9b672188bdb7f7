"""The demo: what it draws, what it refuses, and many browsers at once."""

import base64
import contextlib
import dataclasses
import http.client
import io
import json
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import browser
import jax
import numpy as np
import pytest
from PIL import Image
from tiny import call, plain, random_params

import ddpm_jax
from ddpm_jax import demo
from ddpm_jax.data import images
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import build, load
from ddpm_jax.experiment import run as runs
from ddpm_jax.experiment.options import SampleOptions
from ddpm_jax.sampling import server, streams, tasks
from ddpm_jax.sampling.desk import KEPT, Desk, Failed, Full, Place
from ddpm_jax.sampling.draw import sample_keys
from ddpm_jax.sampling.wishes import read_wish

SETTINGS = (
    "network.label_dropout=0.1",
    "sampler={'name': 'ddim'}",
    "schedule.num_steps=300",
)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
PICTURE = base64.b64encode(images.to_png(PIXELS)).decode()
MASK = "1" * 24 + "0" * 40


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    settings = plain(*SETTINGS)
    runs.write(folder, settings, random_params(build.build(settings)))
    return folder


@pytest.fixture(scope="module")
def trained(workdir):
    return load.from_run(workdir)


@pytest.fixture(scope="module")
def drawing(trained):
    return streams.Streams(trained)


@pytest.fixture(scope="module")
def served(drawing):
    with server.Server(drawing, 0) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def pictures(png, num):
    """The images of a frame."""
    grid, columns = np.asarray(Image.open(io.BytesIO(png))), int(np.ceil(num**0.5))
    rows = grid.reshape(len(grid) // 8, 8, columns, 8).swapaxes(1, 2)
    return rows.reshape(-1, 8, 8, 1)[:num]


def watch(drawing, **wish):
    wish = read_wish(json.dumps(wish).encode(), drawing.offer)
    return [*drawing.frames(wish)]


# What is drawn.


@pytest.mark.parametrize(
    "sampler, steps, num, label, scale",
    [
        ("ddim", 5, 3, None, 1.0),
        ("ddpm", 8, 4, 7, 1.0),
        ("dpmpp_2m", 7, 2, 3, 2.5),
        ("heun", 6, 5, None, 0.0),
        ("reverse_sde", 210, 2, None, 1.0),
    ],
)
def test_the_last_frame_is_what_the_library_draws(
    trained, drawing, sampler, steps, num, label, scale
):
    wish = {"sampler": sampler, "steps": steps, "num": num, "label": label, "seed": 5}
    frames = watch(drawing, **wish, guidance_scale=scale)
    options = SampleOptions(sampler, num_steps=steps, guidance_scale=scale)
    model = trained.model(options)
    model = dataclasses.replace(model, params=trained.load_params(model))
    expected = ddpm_jax.draw(model, num, 5, None if label is None else [label])
    np.testing.assert_array_equal(pictures(frames[-1].png, num), expected)
    done = [frame.step for frame in frames]
    assert done[0] == 0 and done[-1] == len(model.timesteps) - 1
    assert done == sorted({*done}) and len(done) <= streams.FRAMES + 1


@pytest.mark.parametrize(
    "label, edit", [(None, {"mask": MASK}), (3, {"strength": 0.4})], ids=str
)
def test_edits_are_those_of_the_library(trained, drawing, label, edit):
    """Of a picture whose class is not said, the model is told nothing."""
    frames = watch(drawing, picture=PICTURE, num=2, steps=9, label=label, **edit)
    scale = 0.0 if label is None else 1.0
    model = trained.model(SampleOptions(num_steps=9, guidance_scale=scale))
    given, painted = np.stack([PIXELS] * 2), np.zeros((8, 8, 1), bool)
    painted[:3] = True
    task = tasks.inpaint(model, given, painted)
    if "strength" in edit:
        task = tasks.img2img(model, given, 0.4)
    labels = np.arange(2) if label is None else np.full(2, label)
    draw, params = jax.jit(tasks.make_draw(model, task)), trained.load_params(model)
    expected, _ = draw(params, sample_keys(0, 2), labels, task.given)
    drawn = pictures(frames[-1].png, 2)
    np.testing.assert_array_equal(drawn, expected)
    if "mask" in edit:
        np.testing.assert_array_equal(drawn[:, 3:], given[:, 3:])
        assert (drawn[:, :3] != given[:, :3]).mean() > 0.5


def test_a_model_of_other_shapes_without_classes(tmp_path):
    """Coloured, not square, on times of its own."""
    settings = plain(
        "image_shape=4,8,3",
        "network.num_classes=0",
        "timesteps={'name': 'custom', 'times': [20, 11, 3]}",
    )
    runs.write(tmp_path / "r", settings, random_params(build.build(settings)))
    drawing = streams.Streams(load.from_run(tmp_path / "r"))
    offer = drawing.offer
    assert (offer.name, offer.steps, offer.guided) == ("r", 3, False)
    assert not offer.classes
    frame = watch(drawing, num=3)[-1]
    expected = ddpm_jax.draw(ddpm_jax.load(tmp_path / "r"), 3)
    shown = np.asarray(Image.open(io.BytesIO(frame.png)))
    np.testing.assert_array_equal(shown, images.grid(expected, scale=1, pad=0))
    for wrong in ({"label": 0}, {"guidance_scale": 2}, {"steps": 2}):
        with pytest.raises(ConfigError):
            watch(drawing, **wrong)


def test_what_comes_as_an_argument_compiles_nothing(drawing):
    """Steps, classes, seeds, strengths, pictures and masks."""
    common = {"num": 2, "sampler": "unipc", "picture": PICTURE}
    edits = [{"mask": MASK}, {"strength": 0.5}]
    for edit in edits:
        watch(drawing, **common, **edit, label=1, steps=4)
    before = len(drawing._programs)
    other = base64.b64encode(images.to_png(255 - PIXELS)).decode()
    common |= {"picture": other, "label": 2, "seed": 9}
    watch(drawing, **common, mask=MASK[::-1], steps=5)
    watch(drawing, **common, strength=0.5, steps=3)
    assert len(drawing._programs) == before
    kept = [program._cache_size() for program in drawing._programs._kept.values()]
    assert {*kept} == {1}


def test_what_was_used_last_is_kept():
    recent, made = streams.Recent(2), []
    for key in "abacab":
        assert recent.get(key, lambda key=key: made.append(key) or key) == key
    assert "".join(made) == "abcb" and len(recent) == 2


# What is refused.


def ask(port, method="POST", path="/draw", body=None, **headers):
    """Returns the code and the answer, and closes."""
    headers = {"Origin": f"http://127.0.0.1:{port}"} | headers
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def wish(**given):
    return json.dumps(given)


def encoded(data):
    return base64.b64encode(data).decode()


def bomb(side=100_000):
    """The head of a PNG of many pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side // 200, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    data = zlib.compress(bytes(1000))
    body = struct.pack(">I", len(data)) + b"IDAT" + data
    body += struct.pack(">I", zlib.crc32(b"IDAT" + data))
    return b"\x89PNG\r\n\x1a\n" + chunk + body


MISTAKES = [
    ("", "give the wish as JSON"),
    ("{", "give the wish as JSON"),
    ("[" * 100_000, "give the wish as JSON"),
    ("[1]", "give an object of num, seed"),
    (wish(mum=1), "give an object of num, seed"),
    (wish(steps=10**9), "steps must be a whole number from 1 to 300"),
    (wish(steps=0), "steps must be"),
    (wish(steps=2.0), "steps must be"),
    (wish(steps=True), "steps must be"),
    (wish(steps="9" * 9), "steps must be"),
    (wish(label=-1), "label must be a whole number from 0 to 9"),
    (wish(label=10), "label must be"),
    (wish(label=[1]), "label must be"),
    (wish(guidance_scale=float("nan")), "guidance_scale must be a number from 0 to 20"),
    (wish(guidance_scale=float("inf")), "guidance_scale must be"),
    (wish(guidance_scale=-1), "guidance_scale must be"),
    (wish(sampler="magic"), "sampler must be one of ddim, ddpm"),
    (wish(sampler=["ddim"]), "sampler must be one of ddim, ddpm"),
    (wish(num=65), "num must be a whole number from 1 to 64"),
    (wish(seed=2**63), "seed must be"),
    (wish(picture="~"), "picture must be a PNG"),
    (wish(picture=5), "picture must be a PNG"),
    (wish(picture=encoded(b"no picture")), "picture must be a PNG"),
    (wish(picture=PICTURE[:40]), "picture must be a PNG"),
    (wish(picture=encoded(bomb())), "picture must be .* of at most 16,777,216 pixels"),
    (wish(picture=encoded(b"%!PS-Adobe-3.0 EPSF-3.0\n")), "picture must be a PNG"),
    (wish(mask=MASK), "belong to a picture"),
    (wish(strength=0.5), "belong to a picture"),
    (wish(picture=PICTURE, strength=0), "strength must be"),
    (wish(picture=PICTURE, mask="01"), "mask must be 64 of 0 and 1"),
    (wish(picture=PICTURE, mask="2" * 64), "mask must be 64 of 0 and 1"),
    (wish(picture=PICTURE, mask="1" * 64), "mask must be 1 where to paint, and 0"),
]


@pytest.mark.parametrize("body, line", MISTAKES, ids=[line for _, line in MISTAKES])
def test_mistakes_are_answered_in_one_line(served, body, line):
    code, said = ask(served.server_port, body=body)
    assert code == 400 and said.count("\n") == 1 and len(said) < 200
    with pytest.raises(AssertionError, match=line):
        raise AssertionError(said)


def test_who_may_ask_what(served):
    port = served.server_port
    for path in ("/../../etc/passwd", "/page.html", "/%2e%2e/", "/?a", "/offer/"):
        assert ask(port, "GET", path)[0] == 404
        assert ask(port, path=path)[0] == 404
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "BREW"):
        assert ask(port, method, "/")[0] == 405
    assert [ask(port, "GET", "/draw")[0], ask(port, path="/")[0]] == [405, 405]
    for host in ("evil.example", f"evil.example:{port}", "localhost:1", "", "[::1]"):
        assert ask(port, "GET", "/", Host=host)[0] == 403
        assert ask(port, body="{}", Host=host, Origin=f"http://{host}")[0] == 403
    for origin in ("null", "http://evil.example", f"http://localhost:{port}", ""):
        assert ask(port, body="{}", Origin=origin)[0] == 403
    code, page = ask(port, "GET", "/", Host=f"localhost:{port}")
    assert code == 200 and "</html>" in page and "://" not in page
    code, offer = ask(port, "GET", "/offer")
    assert code == 200 and json.loads(offer)["classes"] == [str(i) for i in range(10)]


def test_no_more_is_read_than_may_be(served):
    """Of what is too long, nothing at all."""
    for length, code in ((server.MOST_BYTES + 1, 413), ("9" * 5000, 413), ("-1", 411)):
        assert ask(served.server_port, **{"Content-Length": str(length)})[0] == code
    for damaged in (b"\x00\xff\r\n\r\n", b"GET / HTTP/9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", served.server_port)) as raw:
            raw.sendall(damaged)
            assert raw.makefile("rb").read().splitlines()[-1].startswith(b"Bad request")


def test_a_port_in_use(served, workdir):
    port = served.server_port
    with pytest.raises(ConfigError, match=f"port {port} is in use: give another"):
        call(demo, "--workdir", workdir, "--port", port)


def test_other_channels_than_those_of_pictures(tmp_path):
    settings = plain("image_shape=8,8,4")
    runs.write(tmp_path / "r", settings, random_params(build.build(settings)))
    with pytest.raises(ConfigError, match="images of 4 channels cannot be shown"):
        call(demo, "--workdir", tmp_path / "r")


# Many at once.


def test_twenty_browsers_at_once(served):
    """Each is told its place, and gets its own images."""

    def one(seed):
        body = wish(num=4, steps=6, seed=seed, sampler="ddim")
        code, said = ask(served.server_port, body=body)
        lines = [json.loads(line) for line in said.splitlines()]
        places = [line["place"] for line in lines if "place" in line]
        assert code == 200 and places == sorted(places, reverse=True)
        assert lines[-1] == {"done": True} and lines[-2]["step"] == 6
        return lines[-2]["png"], max(places)

    with ThreadPoolExecutor(20) as pool:
        answers = [*pool.map(one, [*range(10)] * 2)]
    drawn = [png for png, _ in answers]
    assert drawn[:10] == drawn[10:] and len({*drawn}) == 10
    assert max(place for _, place in answers) > 0


def steady(stop):
    """Work without end, a piece at a time."""
    while not stop.wait(0.005):
        yield "piece"


def pieces(*these):
    yield from these


def test_who_leaves_is_served_no_further():
    desk, ended = Desk(3), threading.Event()

    def work():
        try:
            yield from steady(threading.Event())
        finally:
            ended.set()

    with desk.visit(work()) as first:
        assert [next(first), next(first)] == [Place(0), "piece"]
        with desk.visit(pieces("never")) as second, desk.visit(pieces("3")) as third:
            assert [next(second), next(third)] == [Place(1), Place(2)]
            with pytest.raises(Full, match="3 are waiting already"), desk.visit(work()):
                pass
        assert not ended.is_set()
    with desk.visit(pieces("next")) as news:
        assert [*news][-1] == "next"
    assert ended.is_set()


def test_a_queue_moves_up():
    desk, stop = Desk(3), threading.Event()
    with desk.visit(steady(stop)) as first:
        next(first)
        with desk.visit(pieces("a")), desk.visit(pieces("b")) as third:
            assert [next(third), next(third)] == [Place(2), None]  # nothing for a while
            stop.set()
            assert [*third][-1] == "b"


def test_work_that_fails_stops_nobody_else(capsys):
    def failing():
        yield 1
        raise RuntimeError("out of memory\nand more")

    desk = Desk(2)
    for _ in range(2):
        with desk.visit(failing()) as news:
            assert [*news][-2:] == [1, Failed("out of memory")]
    assert "RuntimeError: out of memory" in capsys.readouterr().err


def test_results_are_not_piled_up():
    """Who is slow misses some, but not the last."""
    desk, ended = Desk(1), threading.Event()

    def work():
        yield from range(1000)
        ended.set()

    with desk.visit(work()) as news:
        assert ended.wait(10)
        got = [each for each in news if isinstance(each, int)]
    assert got == [*range(1000 - KEPT, 1000)]


def test_a_browser_that_goes_away_is_noticed(served, monkeypatch):
    """While it is drawn for, and while it waits."""
    ended, frame = threading.Event(), streams.Frame(0, 1, b"")

    def work(wish):
        try:
            for _ in steady(threading.Event()):
                yield frame
        finally:
            ended.set()

    monkeypatch.setattr(served.streams, "frames", work)
    port = served.server_port

    def begin():
        raw = socket.create_connection(("127.0.0.1", port), timeout=30)
        host = f"127.0.0.1:{port}"
        raw.sendall(
            f"POST /draw HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"
            "Content-Length: 2\r\n\r\n{}".encode()
        )
        file = raw.makefile("rb")
        while b"place" not in (line := file.readline()):
            assert line
        return raw, file, line

    drawn, waiting = begin(), begin()
    assert (drawn[2], waiting[2]) == (b'{"place": 0}\n', b'{"place": 1}\n')
    for raw, file, _ in (waiting, drawn):
        file.close()
        raw.close()
    assert ended.wait(10)
    monkeypatch.undo()
    code, said = ask(port, body=wish(num=1, steps=2))
    assert code == 200 and said.endswith('{"done": true}\n')


def test_too_many_connections_are_said(served):
    taken = 0
    while served._free.acquire(blocking=False):
        taken += 1
    try:
        with socket.create_connection(("127.0.0.1", served.server_port)) as other:
            said = other.makefile("rb").read()
    finally:
        served._free.release(taken)
    assert said.startswith(b"HTTP/1.1 503 ") and said.endswith(b"try again later\n")


def test_a_full_queue_is_said(served, monkeypatch):
    monkeypatch.setattr(served.desk, "_most", 0)
    code, said = ask(served.server_port, body="{}")
    assert (code, said) == (503, "0 are waiting already: try again later\n")


# In a browser.


@pytest.mark.skipif(None in browser.PROGRAMS, reason="no chromium with chromedriver")
def test_a_visit(served):
    """Draw, stop, look back, repaint an image, and make another of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with browser.browser(port) as page:
        page.open(f"http://127.0.0.1:{served.server_port}/")
        page.wait("return !document.querySelector('#draw').disabled")
        ready = "return drawing === null && document.querySelector('#status').innerText"
        page.click("#draw")
        assert page.wait(ready).startswith("Drawn in")
        assert page.run("return frames.length") == 4
        assert (
            page.run("return document.querySelectorAll('#tiles canvas').length") == 16
        )
        page.run("document.querySelector('#steps').value = 300")
        page.click("#draw")
        page.wait("return drawing && frames.at(-1).steps === 300")
        page.click("#stop")
        assert page.wait(ready) == "Stopped."
        page.run("document.querySelector('#steps').value = 4")
        page.click("#tiles canvas:nth-child(4)")
        assert page.run("return document.querySelector('#draw').disabled")
        page.drag("#board", (0.1, 0.1), (0.9, 0.1), (0.9, 0.3), (0.1, 0.3))
        assert 10 < page.run("return mask.reduce((sum, on) => sum + on)") < 40
        before = page.run(PICTURE_OF, "#picture")
        page.click("#draw")
        assert page.wait(ready).startswith("Drawn in")
        after = page.run(PICTURE_OF, "#tiles canvas")
        painted = np.array(page.run("return [...mask]"), bool)
        same = np.array(before) == np.array(after)
        assert same[~painted].all() and not same[painted].all()
        page.click("[value=change] + span")
        page.click("#draw")
        assert page.wait(ready).startswith("Drawn in")
        page.run("offer.most_steps = 1e6; document.querySelector('#steps').max = 1e6")
        page.run("document.querySelector('#steps').value = 5000")
        page.click("#draw")
        assert page.wait(ready) == "steps must be a whole number from 1 to 300"


PICTURE_OF = """
const canvas = document.querySelector(arguments[0]);
const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
return [...data].filter((_, i) => i % 4 === 0);
"""
