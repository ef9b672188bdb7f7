"""Where a run is watched: what trackers are told, and what fails in them."""

import inspect
import json
import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
import services
from test_loop import DIVERGING
from tiny import fit, plain

from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import build, run
from ddpm_jax.training.journal import Journal
from ddpm_jax.training.meter import DivergedError
from ddpm_jax.training.trackers import TRACKERS
from ddpm_jax.training.trackers.base import Tracker

SETTINGS = {"seed": 0, "optimizer.name": "adam", "optimizer.learning_rate": 1e-3}
GREY = np.zeros((6, 8, 1), np.uint8)


@pytest.fixture
def wandb(monkeypatch):
    module = services.wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def trackio(monkeypatch):
    module = services.trackio()
    monkeypatch.setitem(sys.modules, "trackio", module)
    return module


def life(workdir, first, last, *names):
    """Some steps of a run, and a picture of the last."""
    workdir.mkdir(exist_ok=True)
    writer = Journal(workdir, first, last, names)
    writer.settings(SETTINGS)
    for step in range(first + 1, last + 1):
        writer.metrics(step, {"loss": 1 / step})
    writer.picture(last, "samples", GREY)
    writer.flush()
    writer.close()
    return writer


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_has_the_methods_of_one(name):
    methods = [each for each in vars(Tracker) if each in vars(Journal)]
    assert {"__init__", "settings", "metrics", "picture", "flush", "close"} <= {
        *methods
    }
    for method in methods:
        if callable(wanted := vars(Tracker)[method]):
            made = vars(TRACKERS[name])[method]
            wanted = inspect.signature(wanted).parameters
            assert inspect.signature(made).parameters == wanted, method


def test_wandb_is_told_each_step_of_one_run(wandb, tmp_path):
    """Also those that are taken again: it counts for itself, charts go by ours."""
    life(tmp_path / "digits", 0, 3, "wandb")
    life(tmp_path / "digits", 1, 2, "wandb")
    first, second = wandb.runs
    assert first.begin["project"] == "ddpm_jax" and first.begin["resume"] == "allow"
    assert first.begin["settings"]["finish_timeout"] > 0
    assert first.begin == second.begin and len(first.begin["id"]) > 6
    assert first.name == "digits" and second.name == "sunny-sky-1"  # as it was called
    first.define_metric.assert_called_with("*", step_metric="step")
    nested = {"seed": 0, "optimizer": {"name": "adam", "learning_rate": 1e-3}}
    first.config.update.assert_called_once_with(nested, allow_val_change=True)
    for each, steps in ((first, (1, 2, 3)), (second, (2,))):
        *metrics, picture = services.told(each)
        assert metrics == [{"loss": 1 / step, "step": step} for step in steps]
        assert picture == {"samples": wandb.Image.return_value, "step": steps[-1]}
        each.finish.assert_called_once_with(exit_code=0)


def test_two_folders_of_one_name_are_two_runs(wandb, trackio, tmp_path):
    for above in "ab":
        (tmp_path / above).mkdir()
        life(tmp_path / above / "digits", 0, 1, "wandb", "trackio")
    assert len({each.begin["id"] for each in wandb.runs}) == 2
    assert len({each.name for each in trackio.runs}) == 2


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_is_asked_for_no_account_where_it_needs_none(monkeypatch, tmp_path, mode):
    module = services.wandb(mode=mode, project="ours", run_name="n", finish_timeout=9)
    monkeypatch.setitem(sys.modules, "wandb", module)
    life(tmp_path, 0, 1, "wandb")
    module.login.assert_not_called()
    (begun,) = module.runs
    assert (begun.begin["project"], begun.name) == ("ours", "n")
    assert begun.begin["settings"] == {"finish_timeout": 9}


def test_who_has_no_account_is_told_what_to_do(wandb, tmp_path):
    """And is asked nothing: nobody may be there to answer."""
    wandb.login.return_value = False
    with pytest.raises(OSError, match="wandb login, .* WANDB_API_KEY, .*=offline"):
        life(tmp_path, 0, 1, "wandb")
    wandb.login.assert_called_once_with(prompt=False, verify=False)
    wandb.init.assert_not_called()


def test_wandb_that_is_away_stops_a_beginning_and_no_run_that_goes_on(wandb, tmp_path):
    answers, begin = wandb.init.side_effect, []

    def init(**given):
        begin.append(given)
        if given.get("mode") != "offline":
            raise services.CommError("no\nanswer")
        wandb.teardown.assert_called_once_with()
        return answers(**given)

    wandb.init.side_effect = init
    with pytest.raises(OSError, match="^train.trackers: wandb: CommError: no answer$"):
        life(tmp_path, 0, 1, "wandb")
    wandb.teardown.assert_not_called()
    life(tmp_path, 1, 2, "wandb")
    assert services.told(wandb.runs[0])[0] == {"loss": 0.5, "step": 2}
    assert begin[2] == begin[1] | {"mode": "offline"}


def test_trackio_is_told_each_step_of_one_run(trackio, tmp_path):
    life(tmp_path / "digits", 0, 2, "trackio")
    life(tmp_path / "digits", 1, 2, "trackio")
    first, second = trackio.runs
    assert first.project == "ddpm_jax" and first.begin["resume"] == "allow"
    assert first.name == second.name and first.name.startswith("digits-")
    assert first.config == {"_Group": None, **SETTINGS}
    metrics, picture = [call.args for call in second.log.call_args_list]
    assert metrics == ({"loss": 0.5}, 2)
    assert picture == ({"samples": trackio.Image.return_value}, 2)
    assert trackio.Image.call_args.args[0].shape == (6, 8, 3)  # it takes no grey ones
    assert trackio.finish.call_count == 2


def test_what_fails_in_one_is_said_once_and_kept_from_no_other(
    wandb, tmp_path, capsys, monkeypatch
):
    class Theirs(Exception):
        pass

    writer = Journal(tmp_path, 0, 3, ["wandb", "tensorboard"])
    (begun,) = wandb.runs
    begun.log.side_effect = begun.config.update.side_effect = Theirs("no\nnetwork")
    begun.finish.side_effect = TimeoutError("later")
    writer.settings(SETTINGS)
    for step in (1, 2, 3):
        writer.metrics(step, {"loss": 1.0})
    writer.picture(3, "samples", GREY)
    writer.close()
    (events,) = tmp_path.glob("events.*")
    assert events.read_bytes().count(b"loss") > 3
    said = [line for line in capsys.readouterr().out.splitlines() if "wandb" in line]
    assert said == [
        "wandb: settings failed (Theirs: no network); all else goes on",
        "wandb: metrics failed (Theirs: no network); all else goes on",
        "wandb: picture failed (Theirs: no network); all else goes on",
        "wandb: close failed (TimeoutError: later); all else goes on",
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_what_is_flushed_is_in_the_file(tmp_path):
    """Which is sent to a bucket then; what it shows is closed later."""
    writer = Journal(tmp_path, 0, 50, ["tensorboard"])
    for step in range(50):
        writer.picture(step, "samples", GREY)
    writer.flush()
    (events,) = tmp_path.glob("events.*")
    assert events.read_bytes().count(b"samples") == 50
    writer.close()
    assert [*tmp_path.glob("events.*")] == [events]


def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch):
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(OSError, match=rf"pip install 'ddpm_jax\[{name}\]'$"):
            Journal(tmp_path, 0, 1, [name])


def test_a_package_that_is_broken_is_not_called_missing(tmp_path, monkeypatch):
    """To install it again would not help: what it lacks is said, and where."""
    (tmp_path / "trackio.py").write_text("import what_it_needs\n")
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="No module named 'what_it_needs'"):
        Journal(tmp_path / "run", 0, 1, ["trackio"])


def test_nothing_is_imported_that_is_not_asked_for(tmp_path):
    """PyTorch, where it is installed, would take seconds."""
    (tmp_path / "torch.py").write_text("Tensor = object\n")
    code = f"""if True:
        import sys
        from ddpm_jax.training.journal import Journal
        late = {{"tensorboardX", "torch", "trackio", "wandb"}}
        assert not late & {{*sys.modules}}
        Journal({str(tmp_path / "run")!r}, 0, 1, ["tensorboard"]).close()
        assert late & {{*sys.modules}} == {{"tensorboardX"}}
        import torch
    """
    (tmp_path / "run").mkdir()
    paths = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | paths)


# A whole training.


def test_a_training_is_watched_where_its_config_says(wandb, tmp_path, capsys):
    """By TensorBoard unless told otherwise; and it may be told otherwise later."""
    workdir = tmp_path / "run"
    assert fit(plain("train.num_steps=1"), workdir) == 0
    said = capsys.readouterr().out
    assert f"tensorboard --logdir {workdir}" in said
    assert "trackers" not in json.loads((workdir / "config.json").read_text())["train"]
    (events,) = workdir.glob("events.*")
    size = events.stat().st_size
    steps = "train.num_steps=2", "train.sample_every=2"
    assert fit(plain("train.trackers=", *steps), workdir) == 0
    assert "tensorboard" not in capsys.readouterr().out
    assert [*workdir.glob("events.*")] == [events] and events.stat().st_size == size
    assert not (workdir / "run_id").exists() and not wandb.runs
    more = plain("train.num_steps=4", "train.sample_every=2", "train.trackers=wandb")
    assert fit(more, workdir) == 0
    (begun,) = wandb.runs
    assert [values["step"] for values in services.told(begun)] == [3, 4, 4]
    begun.finish.assert_called_once_with(exit_code=0)
    assert [*workdir.glob("events.*")] == [events]
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_run_that_an_error_ends_has_failed(wandb, tmp_path):
    with pytest.raises(DivergedError):
        fit(plain("train.num_steps=9", "train.trackers=wandb", *DIVERGING), tmp_path)
    wandb.runs[0].finish.assert_called_once_with(exit_code=1)


@pytest.mark.parametrize(
    "given, names",
    [
        ("wandb", ["wandb"]),
        ("tensorboard,wandb", ["tensorboard", "wandb"]),
        ('("tensorboard","wandb")', ["tensorboard", "wandb"]),
        ("['trackio']", ["trackio"]),
        ("()", []),
        ("", []),
    ],
)
def test_trackers_as_they_may_be_written(given, names):
    settings = plain(f"train.trackers={given}")
    assert settings["train"]["trackers"] == names
    assert list(build.build(settings).training.trackers) == names


@pytest.mark.parametrize(
    "given, message",
    [
        ("wandbb", "^config.train.trackers: unknown tracker 'wandbb'; did you mean"),
        ("tensorboard,x", "'x'; there are: tensorboard, trackio, wandb$"),
        ("5", "^config.train.trackers must be a list, as in a,b, got 5$"),
        ("[5]", "^config.train.trackers must be a list, as in a,b, got .5.$"),
        ("None", "^config.train.trackers must be a list, as in a,b, got None$"),
    ],
)
def test_trackers_that_are_none(given, message):
    with pytest.raises(ConfigError, match=message):
        build.build(plain(f"train.trackers={given}"))


def test_a_run_may_be_watched_elsewhere_when_it_goes_on(tmp_path):
    run.write_config(tmp_path, plain())
    (said,) = run.changes(tmp_path, plain("train.trackers=wandb"))
    assert said == "train.trackers is None there and ['wandb'] here"


# The packages themselves, where they are installed, without a network.


def test_wandb_itself(tmp_path, monkeypatch):
    package = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    try:
        life(tmp_path / "digits", 0, 3, "wandb")
        life(tmp_path / "digits", 1, 4, "wandb")
    finally:
        package.teardown()
    folders = sorted((tmp_path / "digits" / "wandb").glob("offline-run-*"))
    told = []
    for folder in folders:
        records = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", folder],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        told.append([json.loads(record) for record in records])
    for records, steps in zip(told, ([1, 2, 3, 3], [2, 3, 4, 4]), strict=True):
        items = [r["history"]["item"] for r in records if r["type"] == "history"]
        assert [item["step"] for item in items] == steps
        assert [item["loss"] for item in items[:3]] == [1 / step for step in steps[:3]]
        assert items[3]["samples.format"] == "png" and items[3]["samples.width"] == 8
        runs = [record["run"] for record in records if record["type"] == "run"]
        assert {each["project"] for each in runs} == {"ddpm_jax"}
        assert runs[-1]["display_name"] == "digits"
        updates = [r["config"]["update"] for r in records if r["type"] == "config"]
        assert updates[-1]["optimizer"] == {"name": "adam", "learning_rate": 1e-3}
        axes = [record["metric"] for record in records if record["type"] == "metric"]
        assert axes[1]["glob_name"] == "*" and axes[1]["step_metric"] == "step"
        assert records[-1]["exit"] == {"exit_code": 0} | records[-1]["exit"]
    ids = {
        r["run"]["run_id"] for records in told for r in records if r["type"] == "run"
    }
    assert ids == {(tmp_path / "digits" / "run_id").read_text().strip()}


def test_trackio_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))  # read at its import
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trackio")
    life(tmp_path / "digits", 0, 3, "trackio")
    life(tmp_path / "digits", 1, 4, "trackio")
    with sqlite3.connect(tmp_path / "kept" / "ddpm_jax.db") as database:
        rows = database.execute(
            "select run_id, run_name, step, metrics from metrics order by id"
        ).fetchall()
        (config,) = database.execute("select config from configs").fetchone()
    database.close()
    assert len({row[:2] for row in rows}) == 1
    assert [row[2] for row in rows] == [1, 2, 3, 3, 2, 3, 4, 4]
    kept = [json.loads(row[3]) for row in rows]
    assert kept[0] == {"loss": 1.0} and kept[6] == {"loss": 0.25}
    picture = tmp_path / "kept" / "media" / kept[7]["samples"]["file_path"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(config)["optimizer.learning_rate"] == 1e-3
