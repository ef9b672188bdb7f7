"""How training steps are cut into calls of the devices."""

import math
from collections.abc import Iterable, Iterator

# What pmap takes to convert a leaf of the state, on a host of several: 20-53 ms for the
# 1,315 of the CIFAR-10 recipe.
_LEAF_SECONDS = 40e-6
# More than a device does in a second of training, so that steps take longer than
# thought, and calls are rather too short than too long.
_RATE = 4e14
# A stop waits for the call, and that many batches are ready at once.
_MOST = 8


def steps_per_call(num_leaves: int, step_flops: float) -> int:
    """Returns how many steps make a call last as long as its host takes to give it.

    It depends on what is the same for all processes only, as they all must agree.

    Args:
      num_leaves: of the state.
      step_flops: floating-point operations of a step, on each device.
    """
    steps = num_leaves * _LEAF_SECONDS * _RATE / step_flops
    return min(max(math.ceil(steps), 1), _MOST)


def ends(first: int, last: int, most: int, intervals: Iterable[int]) -> Iterator[int]:
    """Yields the steps at which calls end: all at which something is done, and `last`.

    Args:
      first: the steps taken before.
      last: the step to train to.
      most: the most steps of a call.
      intervals: something is done at each multiple of these; 0 for never.
    """
    intervals = [every for every in intervals if every]
    while first < last:
        due = [(first // every + 1) * every for every in intervals]
        first = min(first + most, last, *due)
        yield first
