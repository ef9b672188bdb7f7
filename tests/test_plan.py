"""Plans: counts that are known by hand, and how they grow."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from ddpm_jax import train
from ddpm_jax.cli import command
from ddpm_jax.experiment import build, config, cost, plan
from ddpm_jax.training.loop import TrainOptions

TINY = tiny("network.attention_resolutions=()")
OPTIONS = TrainOptions(num_steps=1000)
PARAMETERS = 35_746_307  # of the CIFAR-10 network of Ho et al. (2020)


def program(function, *shapes):
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.make_jaxpr(function)(*given).jaxpr


def conv(x, kernel, stride=1, padding="SAME"):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers
    )


@functools.cache
def plan_of(*changes, batch_size=16, devices=1, num_microbatches=1):
    settings = config.override(TINY, (*changes, f"data.batch_size={batch_size}"))
    options = OPTIONS._replace(num_microbatches=num_microbatches)
    return plan.plan(build.build(settings)._replace(training=options), devices)


def test_cifar():
    """Four bytes a parameter, and two moments of Adam's; 6.2 G products a call.

    Less those of convolving doubled images, where of 9 taps 4 are taken.
    """
    settings = config.read_config("configs/cifar.py", ["data.batch_size=16"])
    made = plan.plan(build.build(settings)._replace(training=OPTIONS), 8)
    assert made.num_params == PARAMETERS and made.part == 2
    assert made.memory["parameters"] == made.memory["their averages"] == 4 * PARAMETERS
    assert 0 < made.memory["optimizer"] - 8 * PARAMETERS <= 16
    assert made.memory["gradients"] == 4 * PARAMETERS
    doubled = sum(2 * (2 * side) ** 2 * 256**2 for side in (4, 8, 16))
    assert made.call_flops == pytest.approx(12.44e9 - 5 * doubled, rel=1e-3)
    assert made.step_flops == pytest.approx(3 * made.call_flops, rel=1e-3)
    assert made.network_calls == 1000
    assert made.sample_flops == 1000 * made.call_flops


def test_operations_are_counted_as_by_hand():
    dense = program(lambda x, w: x @ w, (5, 7), (7, 3))
    assert cost.flops(dense) == 2 * 5 * 7 * 3
    products = program(
        lambda q, k: jnp.einsum("bqhc,bkhc->bhqk", q, k), *[(2, 9, 4, 8)] * 2
    )
    assert cost.flops(products) == 2 * 2 * 4 * 9 * 9 * 8
    shapes = (2, 8, 8, 5), (3, 3, 5, 6)
    assert cost.flops(program(conv, *shapes)) == 2 * 2 * 64 * 9 * 5 * 6
    halving = program(lambda x, kernel: conv(x, kernel, 2), *shapes)
    assert cost.flops(halving) == 2 * 2 * 16 * 9 * 5 * 6


@pytest.mark.parametrize("stride", [1, 2])
def test_each_gradient_costs_what_its_convolution_does(stride):
    shapes = (2, 8, 8, 5), (3, 3, 5, 6)
    forward = cost.flops(program(lambda x, k: conv(x, k, stride), *shapes))
    loss = lambda x, k: jnp.sum(conv(x, k, stride) ** 2)
    for argnums, times in ((0, 2), (1, 2), ((0, 1), 3)):
        assert cost.flops(program(jax.grad(loss, argnums), *shapes)) == times * forward


def test_xla_counts_the_same_where_nothing_is_padded():
    def function(x, kernel, w):
        return conv(x, kernel, padding="VALID").reshape(2, -1) @ w

    shapes = (2, 8, 8, 5), (3, 3, 5, 6), (6 * 6 * 6, 4)
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    said = jax.jit(function).lower(*given).cost_analysis()
    assert said["flops"] == cost.flops(program(function, *shapes))


def test_what_is_repeated_counts_as_often():
    def function(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    assert cost.flops(program(function, (5, 3), (3, 3))) == 7 * 2 * 5 * 3 * 3

    def branching(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)

    assert cost.flops(program(branching, (5, 3), (3, 3))) == 2 * 2 * 5 * 3 * 3


def chain(length):
    def function(x):
        for _ in range(length):
            x = jnp.tanh(x)
        return x

    return function


def test_what_is_alive_at_once():
    """In a chain two links are, whatever its length; its gradient keeps every link."""

    def alive(function):
        return cost.activations(program(function, (10, 10)))

    def gradient(function):
        return jax.grad(lambda x: jnp.sum(function(x)))

    assert alive(chain(3)) == alive(chain(9)) == 2 * 400
    assert alive(lambda x: jax.jit(chain(9))(x)) == 2 * 400  # within what is called
    three, six, nine = (alive(gradient(chain(length))) for length in (3, 6, 9))
    assert nine - six == six - three >= 3 * 400
    block = jax.checkpoint(chain(3))
    assert alive(gradient(lambda x: block(block(block(x))))) < nine


def test_laws_of_the_batch():
    small, large = plan_of(batch_size=16), plan_of(batch_size=64)
    for name in ("num_params", "step_flops", "call_flops", "sample_flops"):
        assert getattr(small, name) == getattr(large, name)
    activations = [
        plan_of(batch_size=size).memory["activations"] for size in (16, 32, 64)
    ]
    growth = np.diff(activations)  # what is made of kernels does not grow
    assert growth[1] == pytest.approx(2 * growth[0], rel=1e-3)
    assert 0 <= activations[0] - growth[0] < 0.1 * activations[0]
    shared = plan_of(batch_size=64, devices=2, num_microbatches=2)
    assert shared.part == 16 and shared.memory["activations"] == activations[0]
    assert shared.memory["gradients"] == 2 * small.memory["gradients"]


def test_remat_is_memory_for_computation():
    plain, lighter = plan_of(), plan_of("network.remat=True")
    assert lighter.memory["activations"] < 0.7 * plain.memory["activations"]
    assert plain.step_flops < lighter.step_flops < 4 / 3 * plain.step_flops
    assert lighter.sample_flops == plain.sample_flops


def test_the_report_holds_the_numbers():
    made = plan_of(batch_size=64, devices=4, num_microbatches=2)
    lines = plan.report(made, 1_000_000, [("network.remat=True", made)]).splitlines()
    said = {line.strip().split("  ")[0]: line for line in lines}
    assert f"{made.num_params:,}" in said["parameters"]
    assert "4 devices x 2 parts x 8" in said["images in a step"]
    assert "64,000" in said["images in all"]
    together = sum(made.memory.values())
    assert f"{together / 1e6:,.1f} MB" in said["together"]
    assert "MORE than the 1.0 MB" in said["together"]
    assert "with --config.network.remat=True" in "\n".join(lines)
    assert "cannot be shared" not in lines[-1]


def test_batches_that_cannot_be_shared_are_told_of():
    text = plan.report(plan_of(batch_size=20, devices=8))
    assert "batch_size=16 or 24 can" in text and "8 devices x 3" in text
    assert "batch_size=8 can" in plan.report(plan_of(batch_size=5, devices=8))


def test_microbatches_that_fit():
    made = plan_of(batch_size=64)
    memory = made.memory
    of_eight = plan_of(batch_size=64, num_microbatches=8).memory
    assert plan._microbatches(made, None) == 2
    assert plan._microbatches(made, 1.01 * sum(of_eight.values())) == 8
    assert plan._microbatches(plan_of(batch_size=63, devices=2), None) is None
    assert plan._microbatches(plan_of(batch_size=1), None) is None
    assert memory["activations"] > 7 * of_eight["activations"]


@pytest.fixture
def main(monkeypatch, capsys):
    """Runs the command line; returns its exit code, and what it said."""

    def run(*given):
        monkeypatch.setattr(sys, "argv", ["train", *given])
        with pytest.raises(SystemExit) as exit:
            parser = train.add_arguments(command.parser(train.__doc__))
            command.run(train.main, command.parse_config(parser))
        return exit.value.code, "".join(capsys.readouterr())

    return run


def test_a_plan_needs_no_data_and_leaves_nothing(main, tmp_path):
    recipe = tmp_path / "recipe.py"
    settings = {**TINY, "image_shape": [8, 8, 3]}
    settings["data"] = {"name": "tfds", "dataset": "no_such", "batch_size": 100}
    recipe.write_text(f"def get_config():\n    return {settings!r}\n")
    workdir = tmp_path / "run"
    given = ("--config", str(recipe), "--workdir", str(workdir), "--plan")
    code, said = main(*given, "3")
    assert code == 0 and "batch_size=99 or 102 can" in said
    assert "--config.network.remat=True" in said
    code, said = main(*given, "--config.data.batch_size=16")
    assert code == 0 and "8 devices x 2" in said  # those of this machine
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.py"]


@pytest.mark.parametrize("devices", ["0", "-3", "x"])
def test_devices_that_there_cannot_be(main, devices):
    code, said = main("--config", "configs/digits.py", "--plan", devices)
    assert code == 2 and "--plan: must be a whole number from 1" in said


def test_a_batch_that_is_none_is_refused(main):
    override = "--config.data.batch_size=many"
    code, said = main("--config", "configs/digits.py", "--plan", override)
    assert code == 1 and "batch_size must be whole and at least 1" in said


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("max_memory=4", "data key 'max_memory'; did you mean 'max_memory_gb'?"),
        ("splt=test", "data key 'splt'; did you mean 'split'?"),
        ("flip=many", "data.flip must be True or False, got 'many'"),
        ("cache=3", "data.cache must be True or False or text, got 3"),
        ("num_workers=0", "data: num_workers is 0: give 1 or more"),
        ("name=digit", "config.data: "),
    ],
)
def test_a_plan_knows_the_keys_of_the_data(main, override, expected):
    given = ("--config", "configs/digits.py", "--plan", f"--config.data.{override}")
    code, said = main(*given)
    assert code == 1 and expected in said


def test_a_recipe_of_the_package_is_named(main, tmp_path, monkeypatch):
    override = "--config.data.batch_size=many"
    given = ("--config", "configs/digits.py", "--plan", override)
    assert "recipe:" not in main(*given)[1]  # that of this folder
    there = Path("configs/digits.py").resolve()
    monkeypatch.chdir(tmp_path)
    code, said = main(*given)
    assert code == 1 and f"recipe: {there}\n" in said
