"""A trace of some steps: what the host and the devices did when."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from ddpm_jax.errors import one_line

# Calls that are let pass first: what is compiled, and what is still filled with work.
_BEFORE = 3


@contextlib.contextmanager
def traced(
    train_step: Callable, folder: Path, num_steps: int, say: Callable[[str], Any]
) -> Iterator[Callable]:
    """Yields a training step that writes a trace of some of its steps, once.

    TensorBoard shows it from there, with its profiler plugin (`pip install xprof`).

    Args:
      train_step: of `devices.parallel_steps`.
      folder: that of the run.
      num_steps: how many steps are traced, 0 for none.
      say: told where the trace lies, and what goes wrong, which ends no training.
    """
    calls, left, is_tracing = 0, num_steps, False

    def end(results):
        nonlocal is_tracing
        if is_tracing:
            is_tracing = False
            jax.block_until_ready(results)
            try:
                jax.profiler.stop_trace()
            except (OSError, RuntimeError) as error:  # as a full disk
                say(f"no trace is written: {one_line(error)}")
                return
            say(f"a trace of {num_steps - left} steps is in {folder}/plugins/profile")

    def step(state, batches, *given):
        nonlocal calls, left, is_tracing
        if calls == _BEFORE and left > 0:
            try:
                jax.profiler.start_trace(folder)
                is_tracing = True
            except (OSError, RuntimeError) as error:  # as where another traces
                left = 0
                say(f"no trace is written: {one_line(error)}")
        calls += 1
        with jax.profiler.StepTraceAnnotation("train", step_num=calls):
            results = train_step(state, batches, *given)
        if is_tracing:
            left -= len(batches)
            if left <= 0:
                end(results)
        return results

    try:
        yield step if num_steps else train_step
    finally:
        end(())
