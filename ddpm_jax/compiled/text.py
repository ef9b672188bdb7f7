"""Reading what XLA compiled: its text, `compiled.as_text()`.

A module is a list of computations, one of them the ENTRY; a line of one is an
instruction, `%name = shape opcode(operands), attributes`. Loops, calls and fusions name
the computations that they hold.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple


class Instruction(NamedTuple):
    """A line.

    Attributes:
      name: what its result is called.
      shape: of the result, as written.
      opcode: such as "fusion" or "all-reduce".
      line: all of it.
    """

    name: str
    shape: str
    opcode: str
    line: str

    @property
    def cycles(self) -> int:
        """What the compiler for TPUs estimates, 0 where it says nothing."""
        return 0 if self.is_unsaid else self._said

    @property
    def is_unsaid(self) -> bool:
        """Whether the estimate is none: the largest number, 2^63 - 1."""
        return self._said >= 2**63 - 1

    @property
    def _said(self):
        return int(_found(r'"estimated_cycles":"(\d+)"', self.line) or 0)

    @property
    def op_name(self) -> str:
        """Where in the traced function it comes from, "" if from nowhere."""
        return _found(r'op_name="([^"]*)"', self.line) or ""

    @property
    def num_bytes(self) -> int:
        """Of the result, without what tiles pad."""
        arrays = re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", self.shape)
        sizes = (
            _bits(dtype) * math.prod(map(int, filter(None, sides.split(","))))
            for dtype, sides in arrays
        )
        return sum(sizes) // 8


class Module(NamedTuple):
    """A compiled program.

    Attributes:
      entry: the name of the computation that it begins with.
      computations: the instructions of each, by name.
    """

    entry: str
    computations: dict[str, list[Instruction]]


class Taken(NamedTuple):
    """An instruction that the program takes.

    Attributes:
      instruction: itself.
      times: how often, in loops whose length is known; other loops count as one turn.
      known: whether all of these lengths are.
    """

    instruction: Instruction
    times: int
    known: bool = True


def parse(text: str) -> Module:
    """Reads the text of a compiled program.

    Raises:
      ValueError: if it has no ENTRY.
    """
    entry, current, computations = None, [], {}
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?(\S+) .*\{$", line)
        if head and not line.startswith(" "):
            current = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(Instruction(*found.groups(), line.strip()))
    if entry is None:
        raise ValueError("the text of no compiled program: it has no ENTRY")
    return Module(entry, computations)


def taken(module: Module) -> Iterator[Taken]:
    """Yields the instructions that a run of the program takes, loops' and calls' too.

    A fusion is one instruction. Of the branches of a condition, that of the most cycles
    is taken.
    """
    yield from _taken(module, module.entry, 1, True)


def cycles_by_name(module: Module) -> Counter[tuple[str, str]]:
    """Sums the estimated cycles by (op_name, opcode)."""
    total = Counter()
    for one in taken(module):
        if one.instruction.cycles:
            key = one.instruction.op_name, one.instruction.opcode
            total[key] += one.times * one.instruction.cycles
    return total


def unsaid(module: Module) -> int:
    """Returns of how many operations that are taken the compiler has no estimate."""
    return sum(one.instruction.is_unsaid for one in taken(module))


def all_reduces(module: Module) -> list[int]:
    """Returns the bytes of each all-reduce that is taken, on each device."""
    return [
        one.instruction.num_bytes
        for one in taken(module)
        for _ in range(one.times)
        if one.instruction.opcode in ("all-reduce", "all-reduce-start")
    ]


def traffic(module: Module) -> int:
    """Returns the bytes that the instructions read and write, each by itself.

    What a fusion makes for itself does not count, and caches do not help.
    """
    total = 0
    sizes = {i.name: i.num_bytes for i in _everything(module)}
    for one in taken(module):
        i = one.instruction
        if i.opcode not in _FREE:
            given = i.line.partition(f"{i.opcode}(")[2].partition(")")[0]
            read = sum(sizes.get(name, 0) for name in re.findall(r"%([\w.-]+)", given))
            total += one.times * (i.num_bytes + read)
    return total


def collectives(module: Module) -> list[Instruction]:
    """Returns all that devices tell each other, anywhere in the program."""
    return [i for i in _everything(module) if i.opcode.startswith(_COLLECTIVES)]


def host_transfers(module: Module) -> list[Instruction]:
    """Returns what goes to the host or comes from it, arguments and results aside."""
    return [i for i in _everything(module) if _of_host(i)]


def fusions_with(module: Module, *words: str) -> list[Instruction]:
    """Returns the fusions that hold all of the words, as "convolution(" and "threefry".

    Fusions within fusions belong to the outermost.
    """
    within = {
        name
        for name in _fused(module)
        for i in module.computations[name]
        if i.opcode == "fusion"
        for name in _called(i)
    }
    found = []
    for i in _everything(module):
        if i.opcode == "fusion" and not within.issuperset(_called(i)):
            said = "\n".join([i.line, *_lines_within(module, i)])
            if all(word in said for word in words):
                found.append(i)
    return found


_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(\S+) = (.*?)\s([a-z][\w-]*)\(")
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective",
    "reduce-scatter",
)
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_BRANCHES = (
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.-]+))"
)


def _taken(module, name, times, known):
    for i in module.computations[name]:
        yield Taken(i, times, known)
        if i.opcode == "while":
            turns = _turns(module, i)
            often = times * (1 if turns is None else turns)
            body = _found(r"body=%?([\w.-]+)", i.line)
            yield from _taken(module, body, often, known and turns is not None)
        elif i.opcode == "conditional":
            branches = [[*_taken(module, b, times, known)] for b in _branches(i)]
            yield from max(branches, key=_cycles)
        elif i.opcode in ("call", "async-start", "call-start"):
            for called in _called(i):
                yield from _taken(module, called, times, known)


def _turns(module, loop):
    """How often a loop is gone through, where it counts up to a constant from 0."""
    told = _found(r'"known_trip_count":\{"n":"(\d+)"', loop.line)
    if told:
        return int(told)
    condition = module.computations[_found(r"condition=%?([\w.-]+)", loop.line)]
    # A fused comparison has its constant beside it, or within it.
    lines = [line for i in condition for line in (i.line, *_lines_within(module, i))]
    compared = [line for line in lines if "direction=LT" in line]
    limits = set(re.findall(r" s32\[\]\S* constant\((\d+)\)", "\n".join(lines)))
    return int(limits.pop()) if len(compared) == 1 and len(limits) == 1 else None


def _cycles(branch):
    return sum(one.times * one.instruction.cycles for one in branch)


def _branches(i):
    named = [name for pair in re.findall(_BRANCHES, i.line) for name in pair if name]
    return [name.strip().lstrip("%") for names in named for name in names.split(",")]


def _called(i) -> list[str]:
    return _CALLS.findall(i.line)


def _lines_within(module, i):
    for name in _called(i):
        for inner in module.computations.get(name, ()):
            yield inner.line
            yield from _lines_within(module, inner)


def _fused(module):
    return {n for i in _everything(module) if i.opcode == "fusion" for n in _called(i)}


def _everything(module):
    return [i for lines in module.computations.values() for i in lines]


def _of_host(i):
    calls_back = i.opcode == "custom-call" and "callback" in i.line.lower()
    moves = i.opcode in ("infeed", "outfeed") or "is_host_transfer=true" in i.line
    return calls_back or moves or _HOST_MEMORY in i.shape


_HOST_MEMORY = "S(5)"  # the memory space of the host, in XLA's layouts


def _bits(dtype):
    """Those of a number; 0 for what is none, as tokens."""
    if dtype == "pred":
        return 8
    bits = re.match(r"(?:[usfc]|bf)(\d+)", dtype)
    return int(bits[1]) if bits else 0


def _found(pattern, line):
    found = re.search(pattern, line)
    return found[1] if found else None
