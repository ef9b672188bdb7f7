"""The loop of a training: steps, and what is logged, saved and drawn between them.

It is handed functions, and knows neither what is trained nor on what.
"""

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ddpm_jax.distributed import multihost
from ddpm_jax.errors import ConfigError, one_line
from ddpm_jax.training import calls
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.ema import MAIN, Average, constant
from ddpm_jax.training.journal import Journal
from ddpm_jax.training.meter import DivergedError, Meter
from ddpm_jax.training.preemption import Preemption
from ddpm_jax.training.step import TrainState
from ddpm_jax.training.watchdog import Watchdog


class TrainOptions(NamedTuple):
    """The section `train` of a config.

    Attributes:
      num_steps: the step to train to.
      ema_decay: decay of the average of the parameters from which is drawn; None
        where `averages` says how "ema" is made.
      averages: further averages by name (see `training.ema`).
      snapshot_every: steps between snapshots of the averages by power functions, from
        which others are reconstructed; 0 for none.
      num_microbatches: parts of a batch gone through in turn, to save memory.
      log_every: steps between records.
      save_every: steps between checkpoints; the last is always saved.
      upload_every: of a run in a bucket, steps between checkpoints that are sent there,
        1 for each. Others stay on this machine, for a restart of it.
      sample_every: steps between pictures of samples, 0 for none.
      num_samples: images in such a picture.
      keep: how many checkpoints to keep.
      max_skipped: how many steps that are not finite may change nothing.
      timeout: seconds without a step after which a run that hangs ends.
      steps_per_call: the most steps that the devices are given at once, see
        `devices.parallel_steps`; by default 1, and on accelerators of several
        processes as many, up to 8, as hide what a call costs their hosts. More than 1
        is slow on a CPU, whose XLA runs convolutions of a loop on one core, and rounds
        otherwise. Calls end where something is saved or drawn.
      augmentation: probability of each augmentation of training images that does not
        leak (see `training.augmentation`), 0 for none; the network is told of them.
      trackers: by name, where the run is shown while it trains, beside the lines of
        `metrics.jsonl` and the terminal (see `training.trackers`).
      profile: how many steps a trace is written of, after the first few; 0 for none.
      deterministic: whether GPUs give the same bits each time, as others do anyway.
    """

    num_steps: int
    ema_decay: float | None = 0.9999
    averages: dict[str, Average] | None = None
    snapshot_every: int = 0
    num_microbatches: int = 1
    log_every: int = 100
    save_every: int = 5000
    upload_every: int = 1
    sample_every: int = 5000
    num_samples: int = 64
    keep: int = 3
    max_skipped: int = 0
    timeout: float = 1800
    steps_per_call: int | None = None
    deterministic: bool = False
    augmentation: float = 0.0
    trackers: Sequence[str] = ("tensorboard",)
    profile: int = 0

    @property
    def averaging(self) -> dict[str, Average]:
        """All averages by name."""
        if self.ema_decay is None:
            return self.averages or {}
        plain = Average(constant, (("decay", self.ema_decay),))
        return {MAIN: plain, **(self.averages or {})}

    @property
    def in_flight(self) -> int:
        """How many calls may be under way beside the newest, so that nobody waits."""
        return 3 if self.steps_per_call == 1 else 1


class Callback(NamedTuple):
    """What is done beside the steps. What fails in it ends no training.

    Attributes:
      makes: what, in a word, for what is said where it fails.
      every: steps from one call to the next; 0 for never.
      call: (step, state) -> scores that the checkpoint of this step keeps, or None.
      of_checkpoint: whether the step is saved before, whatever `save_every` says.
    """

    makes: str
    every: int
    call: Callable[[int, TrainState], Mapping[str, float] | None]
    of_checkpoint: bool = False


def fit(
    train_step: Callable,
    state: TrainState,
    batches,
    key: jax.Array,
    options: TrainOptions,
    speeds: Callable[[float], dict[str, float]],
    checkpoints: Checkpoints,
    journal: Journal,
    preemption: Preemption,
    callbacks: Sequence[Callback] = (),
) -> int:
    """Trains to `options.num_steps`, or until it is asked to stop; all is saved then.

    Args:
      train_step: of `devices.parallel_steps`, for `options.steps_per_call`.
      state: the state to begin with, on all devices; it is donated.
      batches: this process's share of the batches from its step on, an iterator with a
        method `measured()`, as `batches.Feed.ahead` gives it.
      key: of the run.
      options: for how long, and how often what is done.
      speeds: what to record of the seconds that a step takes.
      checkpoints: where states are saved; on process 0 alone.
      journal: what is told of the steps; on process 0 alone.
      preemption: whether it is to stop.
      callbacks: what else is done between steps.

    Returns:
      The step that was reached.

    Raises:
      DivergedError: if a loss or gradient is not finite, and what to do then.
      OSError: if a checkpoint cannot be written.
    """

    def log(step, averages):
        measured = batches.measured()
        with _late("record", step, journal):
            journal.metrics(step, {**averages, **measured})

    def skip(step, why, skipped):
        left = f"{skipped} of at most {options.max_skipped}"
        journal.line(f"step {step} changed nothing: {why} ({left} such steps)")

    in_flight, max_skipped = options.in_flight, options.max_skipped
    meter = Meter(options.log_every, log, speeds, in_flight, max_skipped, skip)
    step = saved = int(state.step)
    intervals = [options.save_every, *(callback.every for callback in callbacks)]
    most = options.steps_per_call
    with Watchdog(options.timeout) as watchdog:
        for end in calls.ends(step, options.num_steps, most, intervals):
            call = [*itertools.islice(batches, end - step)]
            step = end
            state, metrics, votes = train_step(state, call, key, preemption.requested)
            last = preemption.agreed(votes) or step == options.num_steps
            due = [each for each in callbacks if each.every and step % each.every == 0]
            asked = any(callback.of_checkpoint for callback in due)
            save = last or asked or step % options.save_every == 0
            try:
                meter.add(step, metrics, len(call))
                if save or due:
                    meter.pause()
            except DivergedError as error:
                with multihost.error_barrier():
                    checkpoints.wait()
                raise _advised(error, saved) from error
            watchdog.heartbeat(f"step {step}")
            journal.advance(len(call))
            with watchdog.paused():
                if save:  # before anything else that could fail
                    checkpoints.save(state)
                    saved = step
                for callback in due:
                    if callback.of_checkpoint:
                        checkpoints.wait()
                    with _late(callback.makes, step, journal):
                        if scores := callback.call(step, state):
                            checkpoints.add_scores(step, scores)
            if last:
                meter.write_rest(step)
                break
    with multihost.error_barrier():  # none leaves while process 0 saves
        checkpoints.wait()
    return step


def _advised(error: DivergedError, saved: int) -> DivergedError:
    """The same, with what there is to go on from, and what to do."""
    good = f"the last checkpoint is of step {saved}"
    return DivergedError(
        f"{error}; {good if saved else 'there is no checkpoint yet'}: run again with a "
        "smaller optimizer.learning_rate or clip_norm, or let train.max_skipped such "
        "steps change nothing"
    )


@contextlib.contextmanager
def _late(what: str, step: int, journal: Any):
    """A record, picture or score that fails is told, and training goes on.

    Where there are several processes, only what fails on all of them, or after all that
    they do together: no process may miss what the others wait for.
    """
    try:
        yield
    except Exception as error:  # nothing that comes after a step may end a training
        expected = isinstance(error, (ConfigError, OSError, ValueError))
        if jax.process_count() > 1 and not expected:
            raise
        kind = "" if expected else f"{type(error).__name__}: "
        said = f"{kind}{one_line(error)}"[:300]
        journal.line(f"no {what} of step {step} ({said}); training goes on")
