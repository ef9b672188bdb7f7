"""Trains a diffusion model.

  python -m ddpm_jax.train --config configs/digits.py

The same command again goes on from the last checkpoint. Any value of the config can be
changed on the command line, as in --config.optimizer.learning_rate=1e-4. What it will
take is told, and nothing done, with --plan.
"""

import argparse
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import jax
import numpy as np

from ddpm_jax import buckets
from ddpm_jax.cli import command
from ddpm_jax.compiled import estimates, peaks
from ddpm_jax.distributed import devices, multihost
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import online
from ddpm_jax.experiment import config, plan, remarks, run
from ddpm_jax.experiment.build import Experiment, build, check, train_step
from ddpm_jax.experiment.init_from import initial_params
from ddpm_jax.experiment.options import train_options
from ddpm_jax.places import check_scheme
from ddpm_jax.training import calls, profiling, snapshots
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.journal import Journal, line
from ddpm_jax.training.loop import TrainOptions, fit
from ddpm_jax.training.preemption import Preemption
from ddpm_jax.training.uploads import Uploads

# What makes XLA's programs for GPUs give the same bits each time.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def train(experiment: Experiment, workdir: str | os.PathLike) -> int:
    """Trains from where the folder's last checkpoint left off.

    Args:
      experiment: what is trained, as `build` makes it of a config.
      workdir: the folder of the run, made if it is not there, or its address in a
        bucket, such as gs://bucket/runs/cifar. Only process 0 uses it.

    Returns:
      0, or 128 plus the number of the signal that stopped it; what was done is saved.

    Raises:
      ConfigError: one line that says what to mend.
      DivergedError: if a loss or gradient is not finite, and what to do then.
      OSError: if a checkpoint cannot be written; of a bucket, if it cannot be reached,
        or another run trains there.
    """
    check_scheme(workdir)
    multihost.assert_equal(config.flat(experiment.config))
    with multihost.error_barrier():
        _warn(experiment)
        _check_deterministic(experiment.training)
        options = _with_calls(experiment)
        experiment = experiment._replace(training=options)
        checked = check(experiment)
        feed = experiment.dataset.feed(experiment.training.num_microbatches)
    score = None
    if experiment.scoring.every:  # all of them make it, with what they share
        score = online.make_scorer(experiment)
    address = workdir
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        preemption = enter(Preemption(options.in_flight))
        with multihost.error_barrier():
            checkpoints, begun, notes = multihost.Null(), None, []
            workdir, uploads, compiled = Path(address), multihost.Null(), None
            if jax.process_index() == 0:
                found = []
                if buckets.is_address(address):
                    uploads = enter(_uploads(address, options, preemption))
                    workdir, found = uploads.folder, uploads.notes
                opened = _open(workdir, experiment, feed, stack, found)
                checkpoints, begun, notes = opened
                if (checkpoints.latest_step() or 0) < options.num_steps:
                    # Meanwhile the first state is made, by another program, or read;
                    # what goes wrong with that is told at once.
                    thread = ThreadPoolExecutor(1)
                    stack.callback(thread.shutdown, wait=False)
                    compiled = thread.submit(checked.compile)
        with multihost.error_barrier():
            state = _zeros(experiment)
            if jax.process_index() == 0:
                state, more = _state(experiment, checkpoints, begun)
                notes += more
        state = multihost.broadcast(state)
        first = int(state.step)
        if first >= options.num_steps:
            done = f"{address} is already at step {first}: nothing to do"
            with multihost.error_barrier():
                uploads.finish()
            multihost.on_primary(lambda: print(done))
            return 0
        state = devices.replicate(state)  # as steps return it: one program, not two
        with multihost.error_barrier():
            multihost.on_primary(lambda: run.write_config(workdir, experiment.config))
            journal = multihost.on_primary(
                lambda: Journal(workdir, first, options.num_steps, options.trackers)
            )
            stack.push(lambda *error: journal.close(failed=error[0] is not None))
        begun = f"going on from step {first}" if first else "training"
        journal.line("; ".join([f"{begun} in {address}", *notes]))
        journal.line("; ".join([str(feed.contents), *feed.notes]))
        journal.line(_network(experiment, checked.image_flops))
        journal.settings(config.flat(experiment.config))
        every, averages = options.snapshot_every, options.averaging
        callbacks = [
            snapshots.callback(workdir / run.SNAPSHOTS, every, averages),
            online.pictures(experiment, workdir, journal),
        ]
        if score is not None:
            callbacks.append(online.scores(experiment, score, journal))
        steps = devices.parallel_steps(train_step(experiment), options.steps_per_call)
        profile = options.profile if jax.process_index() == 0 else 0
        if compiled is not None:
            compiled.result()
        reached = fit(
            enter(profiling.traced(steps, workdir, profile, journal.line)),
            state,
            enter(closing(feed.ahead(first, options.num_steps, journal.line))),
            experiment.keys[1],
            options,
            peaks.speeds(feed.batch_size, checked.image_flops, _dtype(experiment)),
            checkpoints,
            journal,
            preemption,
            callbacks,
        )
        with multihost.error_barrier():
            journal.flush()
            uploads.finish()
        if reached < options.num_steps:
            journal.line(f"stopped at step {reached}; the same command goes on from it")
            return preemption.exit_code
        journal.line(f"done: step {reached} of {address}")
        watch = f"; tensorboard --logdir {address}"
        journal.line(
            f"next: python -m ddpm_jax.sample --workdir {address}, .evaluate or .demo"
            f"{watch if 'tensorboard' in options.trackers else ''}"
        )
        return 0


def _uploads(address, options, preemption):
    """Keeps the run in a bucket."""
    every, stop = options.upload_every, preemption.request
    return Uploads(address, options.keep, every, line, stop)


def _open(workdir, experiment, feed, stack, found):
    """Locks the folder; its checkpoints, parameters to begin with, and what to say."""
    notes, begun = run.changes(workdir, experiment.config), None
    if experiment.init_from and not run.has_checkpoint(workdir):
        begun = initial_params(experiment, feed.contents.classes)
    workdir.mkdir(parents=True, exist_ok=True)
    stack.enter_context(run.lock(workdir))
    run.same_data(workdir, feed.contents)
    folder, keep = workdir / "checkpoints", experiment.training.keep
    checkpoints = stack.enter_context(Checkpoints(folder, keep))
    return checkpoints, begun, [*found, *notes]


def _state(experiment, checkpoints, begun):
    """The state to go on or to begin with, on the host, and what to say of it."""
    state, notes = checkpoints.restore_latest(experiment.abstract_state())
    if state is None and begun is not None:
        state = experiment.begin(begun.params)
        notes = [*notes, f"beginning from {experiment.init_from}", *begun.notes]
    elif state is None:
        state = jax.jit(experiment.init)(experiment.keys[0])
    return jax.device_get(state), notes


def _warn(experiment):
    """Says what is odd about a training."""
    for remark in remarks.of_training(experiment):
        multihost.on_primary(lambda text=remark: print(f"warning: {text}"))


def _zeros(experiment):
    """A state to receive another in."""
    return jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), experiment.abstract_state()
    )


def _network(experiment, image_flops):
    """How large it is, what a step takes, and on what."""
    params = jax.tree.leaves(experiment.model.abstract_params())
    count, num = sum(leaf.size for leaf in params), jax.device_count()
    kind, several = jax.devices()[0].device_kind, jax.process_count() > 1
    return (
        f"{count:,} parameters, {plan.flop(image_flops)} an image and step, "
        f"on {num} {kind} device{'s' if num > 1 else ''}"
        f"{f' of {jax.process_count()} processes' if several else ''}"
    )


def _dtype(experiment):
    """What the network computes in."""
    return experiment.model.protocol()["network"].get("dtype") or "float32"


def _with_calls(experiment) -> TrainOptions:
    """The options, with the number of steps in a call where none is given."""
    options = experiment.training
    if options.steps_per_call is not None:
        return options
    steps = 1
    # On a CPU loops are slow; one process is done with a call before the devices are.
    if jax.process_count() > 1 and jax.default_backend() != "cpu":
        planned = plan.plan(experiment, jax.device_count())
        share = planned.step_flops * planned.batch_size / planned.devices
        num_leaves = len(jax.tree.leaves(experiment.abstract_state()))
        steps = calls.steps_per_call(num_leaves, share)
    return options._replace(steps_per_call=steps)


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
    if train_options(config.read_config(args.config, args.overrides)).deterministic:
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
        if args.by and not isinstance(args.plan, str):
            raise ConfigError(
                "--by needs --plan and devices to compile for, as in v5e:4x4"
            )
        experiment = build(settings)
    if args.plan is None:
        name = args.config.replace(".py:", "_").removesuffix(".py")
        return train(experiment, args.workdir or Path("runs", Path(name).name))
    _warn(experiment)
    experiment.dataset.check_keys()  # the images themselves need not be there
    if isinstance(args.plan, str):
        by_module = args.by is not None
        print(estimates.describe(experiment, args.plan, by_module))
    else:
        print(plan.describe(experiment, args.plan or jax.device_count()))
    return 0


if __name__ == "__main__":
    parsed = command.parse_config(add_arguments(command.parser(__doc__)))
    command.run(main, parsed, _before_devices)
