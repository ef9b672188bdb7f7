"""What a program of JAX costs: operations, and memory for what it makes on its way."""

import math

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def flops(program: Jaxpr) -> int:
    """Counts the operations of a program's convolutions and matrix products.

    A multiplication and an addition are two. Padding counts as if it were there, as in
    published numbers; what goes over each element, such as a norm, does not count.
    """
    total = 0
    for line in program.eqns:
        name = line.primitive.name
        if name == "dot_general":
            (contracted, _), _ = line.params["dimension_numbers"]
            shape = line.invars[0].aval.shape
            terms = math.prod(shape[axis] for axis in contracted)
            total += 2 * line.outvars[0].aval.size * terms
        elif name == "conv_general_dilated":
            kernel = line.invars[1].aval
            features = kernel.shape[line.params["dimension_numbers"].rhs_spec[0]]
            # The zeros between dilated inputs are of the gradient of a strided one.
            zeros = math.prod(line.params["lhs_dilation"])
            terms = kernel.size // features
            total += 2 * line.outvars[0].aval.size * terms // zeros
        within = [flops(inner) for inner in _programs_in(line)]
        repeated = line.params["length"] if name == "scan" else 1
        if within:  # of the branches of a condition, one is taken
            total += repeated * (max(within) if name == "cond" else sum(within))
    return total


def activations(program: Jaxpr) -> int:
    """Returns the bytes of what a program makes, at the line where most is alive.

    Arguments and results do not count. Each line makes its result before it lets go of
    what it reads, where a compiler makes one loop of many lines: XLA on a CPU needed
    0.75 to 0.81 of this for the digits recipe and for U-Nets of 1.5 and 9 million
    parameters, and 0.78 with `remat` where kept from undoing it, as it does on a CPU.
    A TPU pads arrays to tiles of 8 x 128: for digits, 16 images on each device, XLA
    needed 34.0 MB where this and the gradients are 13.9 MB. `--plan v5e:2x2` asks it.
    """
    results = set(_variables(program.outvars))
    last = {
        v: i for i, line in enumerate(program.eqns) for v in _variables(line.invars)
    }
    sizes, alive, most = {}, 0, 0
    for i, line in enumerate(program.eqns):
        made = [v for v in line.outvars if v in last and v not in results]
        sizes |= {v: num_bytes(v.aval) for v in made}
        alive += sum(sizes[v] for v in made)
        within = max(map(activations, _programs_in(line)), default=0)
        most = max(most, alive + within)
        read = {v for v in _variables(line.invars) if last[v] == i}
        alive -= sum(sizes.get(v, 0) for v in read)
    return most


def program_of(function, *given) -> Jaxpr:
    """Traces a function of shapes to a program, without compiling it."""
    return jax.make_jaxpr(function)(*given).jaxpr


def _programs_in(line) -> list[Jaxpr]:
    """The programs within a line of one, as of a scan."""
    values = jax.tree.leaves([*line.params.values()], is_leaf=_is_program)
    return [getattr(v, "jaxpr", v) for v in values if _is_program(v)]


def _is_program(value):
    return isinstance(value, (Jaxpr, ClosedJaxpr))


def _variables(atoms):
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def num_bytes(tree) -> int:
    """Returns the bytes of a tree of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
