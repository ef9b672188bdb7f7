"""The folder of a run: its config, its lock, and the model that was trained in it."""

import fcntl
import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from ddpm_jax.data.contents import Contents
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import code
from ddpm_jax.experiment.build import build
from ddpm_jax.experiment.config import differences
from ddpm_jax.experiment.model import Model
from ddpm_jax.files import atomic_write
from ddpm_jax.places import fetch
from ddpm_jax.training import ema, snapshots
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.checksums import DamagedError

# What may change when a run goes on; anything else would make it another run. The
# learning rate and clipping are there so that a run which diverged can be saved, its
# decay so that it ends with a longer run, and
# what costs computation instead of memory so that one can go on where there is less.
# What rounds otherwise is among it, as other devices do: microbatches, steps of a call.
MUTABLE = (
    "init_from",
    "data.cache",
    "data.data_dir",
    "data.max_memory_gb",
    "data.num_workers",
    "data.prefetch",
    "denoiser.",
    "evaluation.",
    "network.remat",
    "optimizer.clip_norm",
    "optimizer.decay",
    "optimizer.learning_rate",
    "sampler.",
    "timesteps.",
    "train.deterministic",
    "train.num_microbatches",
    "train.num_steps",
    "train.log_every",
    "train.save_every",
    "train.upload_every",
    "train.sample_every",
    "train.snapshot_every",
    "train.num_samples",
    "train.keep",
    "train.max_skipped",
    "train.steps_per_call",
    "train.timeout",
    "train.trackers",
    "train.profile",
)

# Where averages are stored, beside checkpoints.
SNAPSHOTS = "snapshots"

# What the data of a run hold, beside its config.
_DATA = "data.json"

# But not where checkpoints have scores, which would no longer compare.
SCORED_BY = (
    "denoiser.",
    "evaluation.convention",
    "evaluation.metric",
    "evaluation.num",
    "sampler.",
    "timesteps.",
)


def read_config(workdir: str | Path) -> dict[str, Any]:
    """Reads the config of a run.

    Raises:
      ConfigError: if the folder does not hold a run.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        for above in Path(workdir).resolve().parents[:2]:
            if is_run(above):
                raise ConfigError(
                    f"{workdir} lies in the folder of a run: give {above}"
                )
        raise ConfigError(
            f"{workdir} is not the folder of a run: no config.json in it (a published "
            "model is given as --pretrained)"
        )
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): restore it") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} is damaged (it holds no sections): restore it")
    if "_class_name" in config:
        raise ConfigError(f"{workdir} is of diffusers: give it as --pretrained")
    return config


def is_run(workdir: str | Path) -> bool:
    """Returns whether a folder holds a run."""
    folder = Path(workdir)
    return (folder / "config.json").exists() and (folder / "checkpoints").exists()


def has_checkpoint(workdir: str | Path) -> bool:
    """Returns whether a folder holds a complete checkpoint."""
    return any(path.name.isdigit() for path in Path(workdir, "checkpoints").glob("*"))


def write(workdir: Path, config: dict[str, Any], params) -> None:
    """Writes the folder of a run that has not begun, with parameters trained before.

    Raises:
      OSError: if it cannot be written; nothing is left then.
    """
    config = {"optimizer": {"name": "sgd"}, **config}  # sgd: no moments to keep
    if config.get("train", {}).get("averages"):  # of these parameters there is one
        config = {**config, "train": {**config["train"]}}
        del config["train"]["averages"]
        if config["train"].get("ema_decay", 0) is None:
            del config["train"]["ema_decay"]
    partial = workdir.with_name(f".{workdir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with Checkpoints(partial / "checkpoints") as checkpoints:
            checkpoints.save(build(config).begin(params))
        write_config(partial, config)
        partial.replace(workdir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_config(workdir: Path, config: dict[str, Any]) -> None:
    """Writes the config of a run, whole or not at all, and the files that it names."""
    code.keep(workdir, config)
    with atomic_write(workdir / "config.json") as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n")


def data_of(workdir: str | Path) -> Contents | None:
    """Reads what the data of a run hold; None where that was not recorded.

    Raises:
      ConfigError: if the record is damaged.
    """
    path = Path(workdir, _DATA)
    if not path.is_file():
        return None
    try:
        return Contents(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): delete it") from error


def same_data(workdir: Path, contents: Contents) -> None:
    """Compares the data with those that a run was begun with; records new ones.

    Raises:
      ConfigError: if they are others.
    """
    path, before = workdir / _DATA, data_of(workdir)
    if before is None:
        if has_checkpoint(workdir) and contents.classes != sorted(contents.classes):
            raise ConfigError(
                f"{workdir} was begun when classes were numbered alphabetically, now "
                f"they are {', '.join(contents.classes[:4])}, …: choose another "
                "--workdir, or name the folders so that both are the same, as 02 and 10"
            )
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(contents._asdict(), indent=2) + "\n")
        return
    if changed := contents.changed_from(before):
        raise ConfigError(
            f"the data are not those that {workdir} was begun with: {changed}; put "
            "them back, or choose another --workdir, or go on with these by deleting "
            f"{path}"
        )


def changes(workdir: Path, config: dict[str, Any]) -> list[str]:
    """Returns, in words, what differs from the config that a run was begun with.

    Raises:
      ConfigError: if something differs that would make it another run, or if there are
        checkpoints of an unknown config.
    """
    if not (workdir / "config.json").exists():
        if has_checkpoint(workdir):
            raise ConfigError(
                f"{workdir} holds checkpoints, but no config.json that says of what: "
                "choose another --workdir"
            )
        return []
    before = read_config(workdir)
    differ = differences(before, config)
    said = {
        key: f"{key} is {old} there and {new} here"
        for key, (old, new) in differ.items()
    }
    fixed = SCORED_BY if before.get("evaluation", {}).get("every") else ()
    # Where it is known what the data hold, they may have moved.
    moved = ("data.path",) if (workdir / _DATA).is_file() else ()
    refused = {
        key: text
        for key, text in said.items()
        if key.startswith(fixed) or not key.startswith((*MUTABLE, *moved))
    }
    if refused:
        told, back = "; ".join(refused.values()), "choose another --workdir"
        if all(differ[key][0] is not None for key in refused):  # else not there at all
            given = (f"--config.{key}={quote(str(differ[key][0]))}" for key in refused)
            back += f", or go on with {' '.join(given)}"
        raise ConfigError(f"{workdir} holds a run of another config ({told}): {back}")
    return [*said.values(), *code.changed(workdir, config)]


@contextmanager
def lock(workdir: Path):
    """Keeps a second run out of the folder while in use.

    Raises:
      ConfigError: if another run is in it.
    """
    with (workdir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another run is training in {workdir}") from error
        yield


def load_params(
    workdir: str | Path,
    model: Model,
    weights: str | float = ema.MAIN,
    step: int | str | None = None,
):
    """Loads the parameters of a run's network; training in it is not disturbed.

    Args:
      workdir: the folder of a run.
      model: of its network.
      weights: the name of an average, "raw" for the parameters themselves, or the
        sigma_rel of an average to be reconstructed of the run's snapshots.
      step: of the checkpoint, "best" for that of the best score while training, by
        default the latest.

    Raises:
      ConfigError: if the folder does not hold a run, or no such checkpoint or average.
    """
    if isinstance(weights, float):
        step, folder = find_step(workdir, step, weights), Path(workdir, SNAPSHOTS)
        like = model.abstract_params()
        try:
            return snapshots.reconstruct(folder, like, weights, step)
        except ValueError as error:
            raise ConfigError(f"weights {weights}: {error}") from error
    with _checkpoints(workdir) as checkpoints:
        if weights != "raw":
            return checkpoints.restore_ema(model.abstract_params(), step, weights)
        like = build(code.kept(workdir, read_config(workdir))).abstract_state()
        return checkpoints.restore(like, step).params


def find_step(
    workdir: str | Path,
    step: int | str | None = None,
    weights: str | float = ema.MAIN,
) -> int:
    """Returns the step of what `load_params` takes; raises as it."""
    if isinstance(weights, float):
        fetch(Path(workdir, SNAPSHOTS))
        try:
            return snapshots.find_step(Path(workdir, SNAPSHOTS), step)
        except FileNotFoundError as error:
            raise ConfigError(str(error)) from error
    with _checkpoints(workdir) as checkpoints:
        return checkpoints.find(step)


@contextmanager
def _checkpoints(workdir):
    """Yields the checkpoints of a run, to read."""
    folder = Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise ConfigError(f"{workdir} has no checkpoints yet")
    with Checkpoints(folder, read_only=True) as checkpoints:
        try:
            yield checkpoints
        except DamagedError as error:
            raise ConfigError(
                f"{error}: take another with --step; {checkpoints.listed()}"
            ) from error
        except OSError as error:
            raise ConfigError(str(error)) from error
