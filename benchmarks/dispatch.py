"""Times what a training step costs the host, where several processes share the work.

  python benchmarks/dispatch.py

Two processes of two fake CPU devices each take steps of a state with as many leaves as
the CIFAR-10 recipe's, but tiny ones, so that nothing but the dispatch takes time: one
step a call, and several (`train.steps_per_call`). A call is timed until it returns,
while nothing else is under way. About a minute.
"""

import argparse
import os
import socket
import subprocess
import sys
import time


def measure(calls, per_call):
    """Returns (leaves, host seconds of a step) of one process among others."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ddpm_jax.distributed import devices
    from ddpm_jax.experiment import build, config
    from ddpm_jax.training.ema import Average, constant
    from ddpm_jax.training.optimizers import make_optimizer
    from ddpm_jax.training.step import init_state, make_train_step

    shapes = build.build(config.read_config("configs/cifar.py")).abstract_state().params
    params = jax.tree.map(lambda _: np.ones(2, np.float32), shapes)
    tx, _ = make_optimizer("adam", 2e-4, warmup_steps=5000)

    def loss_fn(params, batch, key):
        total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))
        return total * jnp.mean(batch["x"]), {"loss": total}

    step = make_train_step(
        loss_fn,
        tx,
        {"ema": Average(constant)},
        axis_name=devices.AXIS,
    )
    steps = devices.parallel_steps(step, per_call)
    batches = [{"x": np.ones(8, np.float32)}] * per_call
    state, key = devices.replicate(init_state(params, tx)), jax.random.key(0)
    seconds = []
    for _ in range(calls + 2):  # the first compiles, the second may
        start = time.thread_time()
        state, metrics, _ = steps(state, batches, key)
        seconds.append(time.thread_time() - start)
        jax.block_until_ready((state, metrics))
    num = len(jax.tree.leaves(state))
    return num, float(np.median(seconds[2:])) / per_call


def worker(args):
    """One of the processes; the first prints."""
    from ddpm_jax.distributed import multihost

    where = f"localhost:{args.port}"
    multihost.initialize(where, args.processes, args.worker)
    for per_call in (1, args.steps_per_call):
        leaves, seconds = measure(args.calls, per_call)
        if args.worker == 0:
            print(
                f"{per_call:>3} steps a call: {1e3 * seconds:7.2f} ms of the host a "
                f"step, {leaves} leaves",
                flush=True,
            )


def main():
    """Starts the processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=2, help="of each")
    parser.add_argument("--steps_per_call", type=int, default=8)
    parser.add_argument("--calls", type=int, default=20, help="to time of each kind")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        return worker(args)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    count = f"--xla_force_host_platform_device_count={args.devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": count}
    each = [
        [sys.executable, *sys.argv, "--port", str(port), "--worker", str(i)]
        for i in range(args.processes)
    ]
    started = [subprocess.Popen(command, env=environment) for command in each]
    raise SystemExit(max(process.wait() for process in started))


if __name__ == "__main__":
    main()
