"""Where the time of a compiled program goes: by module, and by kind of operation.

Operations are told apart by the names that tracing gave them. A fusion has the name of
one operation of those in it, mostly that of its result.
"""

import re
from collections import Counter
from typing import NamedTuple

from ddpm_jax.compiled.programs import Compiled


def by_module(made: Compiled) -> str:
    """Returns where the cycles of a program go, by module and by kind of operation."""
    total = made.total_cycles
    if not total:
        return "by module: this compiler estimates no cycles"
    of_modules, kinds, passes = Counter(), Counter(), Counter()
    for op_name, opcode, cycles in made.cycles:
        place = place_of(op_name)
        of_modules[place.module] += cycles
        passes[place.module, place.backward] += cycles
        kinds[kind_of(op_name, opcode)] += cycles

    def share(cycles):
        return f"{100 * cycles / total:.1f} %"

    lines = [f"{'by module':<28}{'cycles':>16}{'all':>9}{'forward':>9}{'backward':>9}"]
    for module, cycles in of_modules.most_common():
        parts = (cycles, passes[module, False], passes[module, True])
        shares = "".join(f"{share(part):>9}" for part in parts)
        lines.append(f"  {module:<26}{cycles:>16,}{shares}")
    lines.append(f"{'by kind of operation':<28}{'cycles':>16}{'all':>9}")
    for kind, cycles in kinds.most_common():
        lines.append(f"  {kind:<26}{cycles:>16,}{share(cycles):>9}")
    return "\n".join(lines)


class Place(NamedTuple):
    """Where an operation stands in the network.

    Attributes:
      module: of the network, one below its outermost, or "outside the network".
      backward: whether it is of the gradient.
    """

    module: str
    backward: bool


OUTSIDE = "outside the network"


def place_of(op_name: str) -> Place:
    """Reads where an operation stands from its name, such as
    jit(step)/transpose(jvp(UNet))/down_0_0_block/conv1/conv_general_dilated.
    """
    backward, parts = "transpose(" in op_name, op_name.split("/")
    for i, part in enumerate(parts):
        outermost = re.fullmatch(r"(?:\w+\()*([A-Z]\w*)\)*", part)
        if outermost and i + 1 < len(parts):
            inner = parts[i + 1].removeprefix(f"{outermost[1]}.")
            is_module = i + 2 < len(parts) and "(" not in inner
            return Place(inner if is_module else outermost[1], backward)
    return Place(OUTSIDE, backward)


def kind_of(op_name: str, opcode: str) -> str:
    """Returns what kind of operation it is; a fusion is what its result comes from."""
    for kind, pattern in _KINDS.items():
        if re.search(pattern, op_name):
            return kind
    if (
        opcode in ("copy", "convert", "transpose", "reshape", "copy-start")
        or not op_name
    ):
        return "copies and conversions"
    outside = place_of(op_name).module == OUTSIDE
    return "optimizer, average, loss" if outside else "other of the network"


_KINDS = {
    "random numbers": r"threefry|bernoulli|_uniform|_normal|random_bits",
    "dropout": r"dropout",
    "normalisation": r"/norm\w*/",
    "convolution": r"conv_general_dilated",
    "matrix product": r"dot_general",
    "all-reduce": r"psum|all_reduce",
}
