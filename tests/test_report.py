"""Tables, files and plots of scores."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.evaluation.plots import plot, plot_distances
from ddpm_jax.evaluation.report import Score, load, merge, save, table


def score(subject, metric, value, error=None, *warnings, calls=None, **protocol):
    if calls is not None:
        protocol["network_calls"] = calls
    return Score(subject, metric, value, error, warnings, protocol)


SWEEP = [
    score("ddim:5", "fid", 120.25, None, "few samples", calls=5, num=100),
    score("ddim:5", "precision", 0.5, 0.0123, calls=5, num=100),
    score("ddim:50", "fid", 9.5, None, "few samples", "grey images", calls=50, num=100),
    score("ddpm:1000", "fid", 3.21, None, "grey images", calls=1000, num=100),
    score("ddpm:1000", "precision", 0.75, 0.01, calls=1000, num=100),
    score("data:test", "fid", 2.0, num=100),
    score("images", "bpd", 3.2146, 0.021, num=100),
]


# Tables.


def test_table():
    assert table(SWEEP).splitlines() == [
        "            calls     fid             precision             bpd",
        "ddim:5          5   120.2 [1]     0.500 ± 0.012",
        "ddim:50        50   9.500 [1,2]",
        "ddpm:1000    1000   3.210 [2]     0.750 ± 0.010",
        "data:test           2.000",
        "images                                            3.215 ± 0.021",
        "",
        "[1] few samples",
        "[2] grey images",
    ]


def test_table_of_one():
    assert table([score("images", "bpd", 3.0)]) == "           bpd\nimages   3.000"


def test_table_lists_as_it_comes():
    lines = table(SWEEP[::-1]).splitlines()
    assert lines[0].split() == ["calls", "bpd", "fid", "precision"]
    assert [line.split()[0] for line in lines[1:6]] == [
        "images", "data:test", "ddpm:1000", "ddim:50", "ddim:5",
    ]  # fmt: skip
    assert lines[-2:] == ["[1] grey images", "[2] few samples"]


def test_warning_twice_is_one_mark():
    text = table([score("images", "bpd", 3.0, None, "w", "w")])
    assert text.count("[1]") == 2 and text.endswith("\n[1] w")


@pytest.mark.parametrize("value, error, shown", [
    (0.0, None, "0.000"),
    (0.98, None, "0.9800"),
    (-0.00123456, None, "-0.001235"),
    (1.23456e-7, None, "1.235e-07"),
    (999.96, None, "1000"),
    (12345.6, None, "12346"),
    (math.nan, None, "nan"),
    (-math.inf, None, "-inf"),
    (12.3456, 0.0499, "12.346 ± 0.050"),
    (0.0, 0.0123, "0.000 ± 0.012"),
    (0.00012, 0.0011, "0.0001 ± 0.0011"),
    (1234.5, 120.0, "1234 ± 120"),
    (0.5, 0.0, "0.5000 ± 0"),
    (0.5, 1e-17, "0.5000000 ± 0.0000000"),
    (math.nan, 0.1, "nan ± 0.1"),
    (1.0, math.nan, "1.000 ± nan"),
])  # fmt: skip
def test_digits(value, error, shown):
    line = table([score("x", "m", value, error)]).splitlines()[1]
    assert line.removeprefix("x").strip() == shown


# Files.


def test_files_hold_everything(tmp_path):
    path = tmp_path / "new" / "evaluation.json"
    scores = [
        *SWEEP,
        score("x", "fid", -1.5, 0.25, tolerance=1e-5, net={"a": [1, None]}),
    ]
    save(path, scores)
    assert load(path) == scores
    assert [each["metric"] for each in json.loads(path.read_text())][-2:] == [
        "bpd",
        "fid",
    ]
    assert [file.name for file in path.parent.iterdir()] == ["evaluation.json"]


def test_files_are_json_whatever_the_numbers(tmp_path):
    path = tmp_path / "evaluation.json"
    odd = score("x", "fid", -math.inf, math.nan, prior=math.inf, shape=(8, np.inf))
    save(path, [odd, odd._replace(value=np.float64(2.5), error=math.inf)])

    def refuse(token):
        raise AssertionError(token)

    json.loads(path.read_text(), parse_constant=refuse)
    first, second = load(path)
    assert first.value == -math.inf and math.isnan(first.error)
    assert (second.value, second.error) == (2.5, math.inf)
    assert first.protocol == {"prior": "inf", "shape": [8, "inf"]}


def test_a_failing_write_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "evaluation.json"
    save(path, SWEEP)
    with pytest.raises(TypeError):
        save(path, [score("x", "fid", 1.0, what=object())])

    def full(path, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full)
    for write in (save, plot):
        with pytest.raises(OSError, match="disk full"):
            write(path, SWEEP[:2])
    assert load(path) == SWEEP
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]


ENTRY = score("x", "fid", 1.0)._asdict()


@pytest.mark.parametrize("content", [
    b"",
    b"\xff\xfe",
    b"[{",
    b"null",
    b"3",
    b'{"bpd": {"mean": 3.0}}',
    b"[[1, 2]]",
    b'["text"]',
    b"{}",
    b'""',
    json.dumps([ENTRY | {"more": 1}]).encode(),
    json.dumps([{k: v for k, v in ENTRY.items() if k != "protocol"}]).encode(),
    *(json.dumps([ENTRY | {key: wrong}]).encode() for key, wrong in [
        ("subject", 3), ("metric", None), ("value", None), ("value", "many"),
        ("error", []), ("warnings", None), ("warnings", [1]), ("warnings", "few"),
        ("protocol", [1]),
    ]),
])  # fmt: skip
def test_foreign_files(content, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="move it away or give another --out") as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "evaluation.json")


# Merging.


def test_merging_replaces_in_place_and_appends():
    better, other = SWEEP[2]._replace(value=9.0), score("new", "fid", 1.0)
    merged = merge(SWEEP, [other, better])
    assert merged == [*SWEEP[:2], better, *SWEEP[3:], other]
    assert merge(merged, merged) == merged
    assert merge([], SWEEP) == merge(SWEEP, []) == SWEEP


def test_merging_keeps_what_does_not_compare():
    few, many = score("x", "fid", 9.0, num=100), score("x", "fid", 5.0, num=50000)
    assert merge([few], [many]) == [few, many]
    assert merge([few, many], [few._replace(value=8.0)])[0].value == 8.0


def test_merging_compares_as_files_do(tmp_path):
    """Tuples become lists and infinities strings; they are the same protocol."""
    path = tmp_path / "evaluation.json"
    made = score("x", "fid", 1.0, size=(8, 8), limit=math.nan, classes={3: "dog"})
    save(path, [made])
    assert merge(load(path), [made]) == [made]


def test_the_last_of_the_same_counts():
    same = [score("x", "fid", float(i)) for i in range(3)]
    assert merge([], same) == same[2:]


# Plots.


@pytest.mark.parametrize("scores", [
    SWEEP,
    SWEEP[:1],
    SWEEP[:1] * 2,  # two points in one place
    [*SWEEP, score("data:train", "fid", 2.01), score("data:other", "fid", 2.0)],
    [*SWEEP, score("ddim:9", "fid", math.nan, calls=9), score("a", "fid", math.inf)],
    [*SWEEP, score("ddim:9", "fid", 5.0, math.nan, calls=9)],
    [score("x:1", "kid", -0.01, 0.1, calls=1), score("x:2", "kid", 100.0, calls=2)],
    [score(f"s{i}:{i}", f"m{i % 7}", 2.0**i, 0.5, calls=i) for i in range(1, 40)],
    [score("_a$b$:1", "m$x", 0.0, calls=1), score("_c$:", "m$x", 0.0)],
])  # fmt: skip
def test_plots(scores, tmp_path):
    path = tmp_path / "new" / "sweep.png"
    plot(path, scores)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and min(picture.size) > 400
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    first = path.read_bytes()
    plot(path, scores)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["sweep.png"]


def test_what_a_plot_shows(tmp_path):
    """Lines, floors with their names, and errors; nothing of what has no curve."""

    def pixels(scores):
        plot(tmp_path / "a.png", scores)
        with Image.open(tmp_path / "a.png") as picture:
            return np.asarray(picture.convert("RGB"))

    fid = [each for each in SWEEP if each.metric == "fid"]
    curve, floor = fid[:-1], fid[-1]
    for others in (
        curve,
        [*curve, floor._replace(subject="data:other")],
        [curve[0]._replace(error=50.0), *curve[1:], floor],
        [curve[0]._replace(subject="heun:5"), *curve[1:], floor],
    ):
        assert not np.array_equal(pixels(others), pixels(fid))
    assert pixels(SWEEP).shape[1] > 1.5 * pixels(fid).shape[1]  # two panels, not one
    np.testing.assert_array_equal(pixels(SWEEP), pixels(SWEEP[:-1]))  # bpd has no curve
    turned = [fid[1], fid[0], *fid[2:]]  # lines run from left to right
    np.testing.assert_array_equal(pixels(fid), pixels(turned))


@pytest.mark.parametrize("scores", [
    [],
    SWEEP[-2:],
    [score("ddim:9", "fid", math.nan, calls=9), SWEEP[-2]],
])  # fmt: skip
def test_nothing_to_plot(scores, tmp_path):
    with pytest.raises(ValueError, match="nothing to plot"):
        plot(tmp_path / "a.png", scores)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("distances", [[0.0], [0.0, 0.0], [0.0, 1.0, 3.0]])
def test_plots_of_distances(distances, tmp_path):
    path = tmp_path / "new" / "distances.png"
    written = []
    for _ in range(2):
        plot_distances(path, {"_$x$:1": distances, "test images": np.arange(1, 5)})
        written.append(path.read_bytes())
    with Image.open(path) as picture:
        assert picture.format == "PNG" and min(picture.size) > 400
    assert written[0] == written[1]
    assert [file.name for file in path.parent.iterdir()] == ["distances.png"]


def test_tables_load_nothing_heavy():
    program = (
        "import sys, ddpm_jax.evaluation.report as report; report.table([]); "
        "sys.exit(bool({'jax', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
