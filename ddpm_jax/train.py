"""Trains a diffusion model.

  python -m ddpm_jax.train --config configs/digits.py

The same command again goes on from the last checkpoint. Any value of the config can be
changed on the command line, as in --config.optimizer.learning_rate=1e-4. What it will
take is told, and nothing done, with --plan.
"""

import argparse
import contextlib
import itertools
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.cli import command
from ddpm_jax.compiled import estimates
from ddpm_jax.distributed import devices, multihost
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import beside, online
from ddpm_jax.experiment import build as experiments
from ddpm_jax.experiment import config, datasets, init_from, plan, remarks, run
from ddpm_jax.files import check_local
from ddpm_jax.training import calls
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.keys import random_key
from ddpm_jax.training.meter import DivergedError, Meter
from ddpm_jax.training.preemption import Preemption
from ddpm_jax.training.trackers import Tracker
from ddpm_jax.training.watchdog import Watchdog

# What makes XLA's programs for GPUs give the same bits each time.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def train(settings: dict[str, Any], workdir: str | os.PathLike) -> int:
    """Trains from where the folder's last checkpoint left off.

    Args:
      settings: a config, as `config.read_config` gives it.
      workdir: the folder of the run, made if it is not there. Only process 0 uses it.

    Returns:
      0, or 128 plus the number of the signal that stopped it; what was done is saved.

    Raises:
      ConfigError: one line that says what to mend.
      NonFiniteError: if a loss or gradient is not finite, and what to do then.
      OSError: if a checkpoint cannot be written.
    """
    settings = config.override(settings, ())
    check_local(workdir)
    multihost.assert_equal(config.flat(settings))
    with multihost.error_barrier():
        experiment = experiments.build(settings)
        options = experiments.train_options(settings)
        _check_deterministic(options)
        scoring = online.options_of(settings)
        _warn(settings)
        feed = datasets.make_feed(settings, options.num_microbatches)
        options = _with_calls(options, experiment, settings["data"]["batch_size"])
    score_params = None
    if scoring.every:  # all of them make it, with what they share
        score_params = online.make_scorer(settings, experiment.model, scoring)
    workdir = Path(workdir)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        in_flight = 3 if options.steps_per_call == 1 else 1  # calls, beside the newest
        stop = enter(Preemption(in_flight))
        with multihost.error_barrier():
            opened = multihost.Null(), _zeros(experiment), []
            if jax.process_index() == 0:
                opened = _open(workdir, experiment, settings, feed, stack)
        checkpoints, state, notes = opened
        state = multihost.broadcast(state)
        first = saved = int(state.step)
        if first >= options.num_steps:
            done = f"{workdir} is already at step {first}: nothing to do"
            multihost.on_primary(lambda: print(done))
            return 0
        state = devices.replicate(state)  # as steps return it: one program, not two
        with multihost.error_barrier():
            multihost.on_primary(lambda: run.write_config(workdir, settings))
            tracker = multihost.on_primary(
                lambda: Tracker(workdir, first, options.num_steps)
            )
            enter(closing(tracker))
        begun = f"going on from step {first}" if first else "training"
        tracker.line("; ".join([f"{begun} in {workdir}{_devices()}", *notes]))
        tracker.line("; ".join([str(feed.contents), *feed.notes]))

        def log(step, averages):
            measured = batches.measured()
            with beside.late("record", step, tracker):
                tracker.metrics(step, {**averages, **measured})

        def skip(step, why, skipped):
            left = f"{skipped} of at most {options.max_skipped}"
            tracker.line(f"step {step} changed nothing: {why} ({left} such steps)")

        train_key = _keys(settings)[1]
        train_step = _train_step(experiment, options)
        save_picture = beside.make_picture(experiment.model, options, workdir, tracker)
        score = beside.make_score(score_params, scoring.metric, tracker)
        meter = Meter(
            options.log_every,
            log,
            settings["data"]["batch_size"],
            in_flight,
            max_skipped=options.max_skipped,
            skip=skip,
        )
        watchdog = enter(Watchdog(options.timeout))
        batches = enter(closing(feed.ahead(first, options.num_steps, tracker.line)))
        step, most = first, options.steps_per_call
        intervals = options.save_every, options.sample_every, scoring.every
        for end in calls.ends(first, options.num_steps, most, intervals):
            call = [*itertools.islice(batches, end - step)]
            step = end
            state, metrics, votes = train_step(state, call, train_key, stop.requested)
            last = stop.agreed(votes) or step == options.num_steps
            draw = options.sample_every and step % options.sample_every == 0
            judge = scoring.every and step % scoring.every == 0
            save = last or judge or step % options.save_every == 0
            try:
                meter.add(step, metrics, len(call))
                if save or draw:
                    meter.pause()
            except DivergedError as error:
                with multihost.error_barrier():
                    checkpoints.wait()
                good = "there is no checkpoint yet"
                if saved:
                    good = f"the last checkpoint is of step {saved}"
                raise DivergedError(
                    f"{error}; {good}: run again with a smaller "
                    "optimizer.learning_rate or clip_norm, or let train.max_skipped "
                    "such steps change nothing"
                ) from error
            watchdog.heartbeat(f"step {step}")
            tracker.advance(len(call))
            with watchdog.paused():
                if save:  # before anything else that could fail
                    checkpoints.save(state)
                    saved = step
                if draw:
                    with beside.late("picture", step, tracker):
                        save_picture(step, state)
                if judge:
                    checkpoints.wait()
                    with beside.late("score", step, tracker):
                        if scores := score(step, state):
                            checkpoints.add_scores(step, scores)
            if last:
                meter.write_rest(step)
                break
        with multihost.error_barrier():  # none leaves while process 0 saves
            checkpoints.wait()
        if step < options.num_steps:
            tracker.line(f"stopped at step {step}; the same command goes on from it")
            return stop.exit_code
        tracker.line(f"done: step {step} of {workdir}")
        return 0


def _open(workdir, experiment, settings, feed, stack):
    """Locks the folder, and finds the state to begin or to go on with, on the host."""
    notes = run.changes(workdir, settings)
    source, begun = settings.get("init_from"), None
    if source and not run.has_checkpoint(workdir):
        begun = init_from.initial_params(
            source, settings, experiment, _keys(settings)[0], feed.contents.classes
        )
    workdir.mkdir(parents=True, exist_ok=True)
    stack.enter_context(run.lock(workdir))
    run.same_data(workdir, feed.contents)
    keep = experiments.train_options(settings).keep
    checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", keep))
    state, damaged = checkpoints.restore_latest(experiment.abstract_state())
    if state is None and begun is not None:
        state = experiment.begin(begun.params)
        notes = [f"beginning from {source}", *begun.notes]
    elif state is None:
        state = jax.jit(experiment.init)(_keys(settings)[0])
    return checkpoints, jax.device_get(state), [*damaged, *notes]


def _warn(settings):
    """Says what is odd about a training."""
    for remark in remarks.of_training(settings):
        multihost.on_primary(lambda text=remark: print(f"warning: {text}"))


def _keys(settings):
    """Those of the first parameters and of training."""
    return jax.random.split(random_key(settings.get("seed", 0)))


def _zeros(experiment):
    """A state to receive another in."""
    return jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), experiment.abstract_state()
    )


def _devices():
    """How many take part, where that is more than one process."""
    if jax.process_count() == 1:
        return ""
    return f" on {jax.device_count()} devices of {jax.process_count()} processes"


def _with_calls(options, experiment, batch_size):
    """The options, with the number of steps in a call where none is given."""
    if options.steps_per_call is not None:
        return options
    steps = 1
    # On a CPU loops are slow; one process is done with a call before the devices are.
    if jax.process_count() > 1 and jax.default_backend() != "cpu":
        planned = plan.plan(experiment, options, batch_size, jax.device_count())
        share = planned.step_flops * batch_size / planned.devices
        num_leaves = len(jax.tree.leaves(experiment.abstract_state()))
        steps = calls.steps_per_call(num_leaves, share)
    return options._replace(steps_per_call=steps)


def _train_step(experiment, options):
    """The training steps of a call, on all devices."""
    step = experiments.train_step(experiment, options)
    return devices.parallel_steps(step, options.steps_per_call)


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of this main."""
    parser.add_argument(
        "--plan",
        type=_devices_to_plan,
        nargs="?",
        const=0,
        metavar="DEVICES",
        help="only say what training takes on so many devices (default: those here), "
        "or compile it for some that need not be here, such as v5e:4x4 or h100:8",
    )
    parser.add_argument(
        "--by",
        choices=["module"],
        help="with --plan v5e:4x4: where the time goes, by module and by operation",
    )
    return parser


def _devices_to_plan(text):
    """A number, or the name of a topology."""
    if ":" in text or (text[:1].isalpha() and any(map(str.isdigit, text))):
        return text
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            "must be a whole number from 1, or as in v5e:4x4"
        )
    return int(text)


def _before_devices(args: argparse.Namespace) -> None:
    """Sets what train.deterministic asks of the compiler, which is read once."""
    settings = config.read_config(args.config, args.overrides)
    if settings.get("train", {}).get("deterministic"):
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()


def _check_deterministic(options):
    """On GPUs the compiler must have been told."""
    told = DETERMINISTIC in os.environ.get("XLA_FLAGS", "")
    if options.deterministic and jax.default_backend() == "gpu" and not told:
        raise ConfigError(
            f"config.train.deterministic: set XLA_FLAGS={DETERMINISTIC} before JAX is "
            "used, as python -m ddpm_jax.train does"
        )


def main(args: argparse.Namespace) -> int:
    """Trains as the command line says."""
    with multihost.error_barrier():
        settings = config.read_config(args.config, args.overrides)
    if args.plan is not None:
        _warn(settings)
    if isinstance(args.plan, str):
        print(estimates.describe(settings, args.plan, by_module=args.by is not None))
        return 0
    if args.by:
        raise ConfigError("--by needs --plan and devices to compile for, as in v5e:4x4")
    if args.plan is not None:
        print(plan.describe(settings, args.plan or jax.device_count()))
        return 0
    name = args.config.replace(".py:", "_").removesuffix(".py")
    return train(settings, args.workdir or Path("runs", Path(name).name))


if __name__ == "__main__":
    parsed = command.parse_config(add_arguments(command.parser(__doc__)))
    command.run(main, parsed, _before_devices)
