"""What compilers say: how it is read, and for libtpu what it is."""

import errno
import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_pieces import CONFIG, STEP

from ddpm_jax import train
from ddpm_jax.cli import command as cli
from ddpm_jax.compiled import breakdown, estimates, peaks, programs, text, topologies
from ddpm_jax.distributed import devices
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import plan

# Cycles and bytes of code by one libtpu: `python tests/compiled_pieces.py` prints them.
LIBTPU = "0.0.42.1"
PINNED = {
    "half a ResBlock": (35_615, 994_304),
    "of four larger images": (81_083, 1_044_992),
    "attention": (87_598, 1_241_088),
    "optimizer": (90_056, 495_616),
    "training step": (549_006, 4_945_920),
    "sampler": (1_305_296, 1_333_248),
    "exported sampler": (1_271_397, 2_002_432),
}
ROOM = 0.05

HERE = Path(__file__).parent
CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
TEXT = f"""HloModule step, is_scheduled=true

%inner (p: f32[8,4]) -> f32[8,4] {{
  %p = f32[8,4]{{1,0:T(8,128)}} parameter(0)
  ROOT %c = f32[8,4]{{1,0}} convolution(%p, %p), metadata={{op_name="a/conv"}}
}}

%fused (q: f32[8,4]) -> f32[8,4] {{
  %q = f32[8,4]{{1,0}} parameter(0)
  %t = u32[8,4]{{1,0}} xor(%q, %q), metadata={{op_name="jit(_threefry_split)/xor"}}
  ROOT %f = f32[8,4]{{1,0}} fusion(%t), kind=kOutput, calls=%inner, {CYCLES % 7}
}}

%body (s: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {{
  %s = (s32[]{{:T(128)}}, f32[8,4]{{1,0:T(8,128)}}) parameter(0)
  %g = f32[8,4]{{1,0}} get-tuple-element(%s), index=1
  %x = f32[8,4]{{1,0}} fusion(%g), kind=kLoop, calls=%fused, {CYCLES % 100}
  %r = (f32[8,4]{{1,0:T(8,128)S(1)}}, /*index=1*/bf16[3]{{0}}) all-reduce(%x, %x), \
to_apply=%sum
  ROOT %b = (s32[], f32[8,4]) tuple(%g, %x)
}}

%condition (u: (s32[], f32[8,4])) -> pred[] {{
  %n = s32[]{{:T(128)}} constant(5)
  ROOT %lt = pred[]{{:T(512)}} compare(%u, %n), direction=LT
}}

%cheap (y: f32[]) -> f32[] {{
  ROOT %y1 = f32[] add(%y, %y), {CYCLES % 1}
}}

%dear (z: f32[]) -> f32[] {{
  ROOT %z1 = f32[] add(%z, %z), {CYCLES % 20}
}}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {{
  %a = f32[8,4]{{1,0}} parameter(0), metadata={{op_name="x"}}
  %w = (s32[], f32[8,4]{{1,0:T(8,128)}}) while(%a), condition=%condition, body=%body
  %k = f32[] conditional(%a, %a), branch_computations={{%cheap, %dear}}
  %o = (f32[8,4], u32[]) send(%a), is_host_transfer=true
  ROOT %e = f32[8,4]{{1,0}} add(%a, %a), metadata={{op_name="end/add"}}, {CYCLES % 3}
}}
"""

# An all-reduce that the other cores of a TPU v7x take over.
ASIDE = """HloModule step

%called (a: f32[2,2]) -> f32[2,2] {
  %a = f32[2,2]{1,0} parameter(0)
  ROOT %r = f32[2,2]{1,0} all-reduce(%a), channel_id=1, to_apply=%sum
}

ENTRY %main (b: f32[2,2]) -> f32[2,2] {
  %b = f32[2,2]{1,0} parameter(0)
  %s = ((f32[2,2]{1,0}), f32[2,2]{1,0}) call-start(%b), \
async_execution_thread="sparsecore", to_apply=%called
  ROOT %d = f32[2,2]{1,0} call-done(%s)
}
"""


def made_of(**changes):
    memory = {"arguments": 60, "outputs": 50, "aliased": 50, "temporary": 30, "code": 9}
    made = {
        "seconds": 2.0,
        "memory": {name: size * 10**6 for name, size in memory.items()},
        "cycles": [["jit(f)/add", "fusion", 3_000_000]],
        "all_reduces": [800_000],
        "traffic": 10**9,
        "host_transfers": 0,
        "lengths_known": True,
    }
    return programs.Compiled(**{**made, **changes})


def test_cycles_are_those_of_what_is_taken():
    """Loops as often as they turn, fusions once, of branches the dearest."""
    module = text.parse(TEXT)
    assert module.entry == "main"
    assert sum(text.cycles_by_name(module).values()) == 5 * 100 + 20 + 3
    assert text.cycles_by_name(module)["end/add", "add"] == 3
    unknown = text.parse(TEXT.replace("direction=LT", "direction=NE"))
    assert sum(text.cycles_by_name(unknown).values()) == 100 + 20 + 3
    assert not all(one.known for one in text.taken(unknown))
    told = TEXT.replace("body=%body", 'body=%body, "known_trip_count":{"n":"9"}')
    assert sum(text.cycles_by_name(text.parse(told)).values()) == 9 * 100 + 20 + 3
    with pytest.raises(ValueError, match="no ENTRY"):
        text.parse("HloModule nothing")


def test_an_estimate_that_is_none_is_left_out_and_counted():
    assert text.unsaid(text.parse(TEXT)) == 0
    none = text.parse(TEXT.replace(CYCLES % 3, CYCLES % (2**63 - 1)))
    assert sum(text.cycles_by_name(none).values()) == 5 * 100 + 20
    assert text.unsaid(none) == 1


def test_bytes_fusions_and_exchanges():
    module = text.parse(TEXT)
    assert text.all_reduces(module) == [8 * 4 * 4 + 3 * 2] * 5
    aside = text.parse(ASIDE)
    assert text.all_reduces(aside) == [2**2 * 4]
    assert [i.opcode for i in text.collectives(module)] == ["all-reduce"]
    assert [i.name for i in text.host_transfers(module)] == ["o"]
    assert [i.name for i in text.fusions_with(module, " convolution(")] == ["x"]
    assert [i.name for i in text.fusions_with(module, "threefry", "a/conv")] == ["x"]
    assert not text.fusions_with(module, "threefry", "dot(")
    few = text.parse(TEXT.replace("constant(5)", "constant(1)"))
    read_and_written = 2 * 128  # by the fusion, and by the addition that reads twice
    loop = 2 * 128 + (128 + 6) + 2 * 128  # a fusion, an all-reduce of two
    once = (4 + 2 * 128) + (4 + 128 + 128) + 3 * 128  # conditional, send, add
    assert text.traffic(few) == loop + once + 4, read_and_written


def test_a_compiled_program_is_read():
    """That of this machine, whose loops and exchanges are known."""

    def function(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(x) @ x, None), x, length=7)[0]

    shape = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    module = text.parse(jax.jit(function).lower(shape).compile().as_text())
    assert 7 in {one.times for one in text.taken(module)}
    assert all(one.known for one in text.taken(module))
    assert not text.collectives(module) and not text.host_transfers(module)

    def step(state, batch, key):
        return state, jax.lax.pmean({"a": batch.sum(0), "b": batch.sum()}, "batch")

    mapped = devices.mapped_step(step, jax.devices()[:4])
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    lowered = mapped.lower(floats(2), floats(4, 8, 3), floats(), floats(4))
    module = text.parse(lowered.compile().as_text())
    assert sum(text.all_reduces(module)) == 4 * (3 + 1 + 1)  # and the votes

    def talking(x):
        jax.debug.callback(lambda x: None, x.sum())
        return 2 * x

    module = text.parse(jax.jit(talking).lower(shape).compile().as_text())
    assert text.host_transfers(module)


def test_operations_stand_in_modules():
    name = "jit(_fun)/while/body/transpose(jvp(UNet))/down_0_0_block/conv1/reduce_sum"
    assert breakdown.place_of(name) == ("down_0_0_block", True)
    assert breakdown.place_of("jit(f)/jvp(UNet)/UNet.embed/cos") == ("embed", False)
    for inner in ("add", "vmap()/threefry"):
        assert breakdown.place_of(f"jit(f)/UNet/{inner}") == ("UNet", False)
    assert breakdown.place_of("jit(_fun)/shard_map/add").module == breakdown.OUTSIDE
    kind = breakdown.kind_of
    assert kind("f/UNet/mid_attn/norm/reduce_sum", "fusion") == "normalisation"
    assert kind("f/UNet/b/vmap(jit(_bernoulli))/x", "fusion") == "random numbers"
    assert kind("f/UNet/b/conv1/conv_general_dilated", "fusion") == "convolution"
    assert kind("f/UNet/b/q/dot_general", "fusion") == "matrix product"
    assert kind("", "convert") == "copies and conversions"
    assert kind("f/shard_map/sqrt", "fusion") == "optimizer, average, loss"
    rows = [["f/UNet/a/conv_general_dilated", "fusion", 300]]
    rows.append(["f/transpose(jvp(UNet))/a/norm/mul", "fusion", 600])
    said = breakdown.by_module(made_of(cycles=[*rows, ["f/sqrt", "fusion", 100]]))
    assert said.splitlines()[1].split() == [
        "a",
        "900",
        "90.0",
        "%",
        "30.0",
        "%",
        "60.0",
        "%",
    ]


@pytest.mark.parametrize(
    "name, num_devices, links",
    [
        ("v3:4x4", 32, 4),
        ("v4:2x2x1", 4, 2),
        ("V5E:4x4", 16, 4),
        ("v5e:1x1", 1, 0),
        ("v5p:2x2x2", 8, 3),
        ("tpu7x:2x2x1", 8, 2),
        ("h100:8", 8, 1),
    ],
)
def test_names_of_topologies(name, num_devices, links):
    topology = topologies.parse(name)
    assert (topology.num_devices, topology.links) == (num_devices, links)


def test_peaks_of_the_data_sheets():
    """By what JAX calls devices; where it is not known, none is told."""
    peaks_of = {
        ("TPU v5 lite", "float32"): 197e12,
        ("TPU v5", "bfloat16"): 459e12,
        ("TPU v6 lite", "bfloat16"): 918e12,
        ("NVIDIA H100 80GB HBM3", "bfloat16"): 989e12,
        ("NVIDIA H100 PCIe", "float32"): 378e12,
        ("NVIDIA A100-SXM4-40GB", "float32"): 156e12,
        ("NVIDIA L40S", "bfloat16"): 362e12,
        ("NVIDIA L4", "bfloat16"): 121e12,
        ("cpu", "float32"): None,
    }
    found = {given: peaks.peak_flops(*given) for given in peaks_of}
    assert found == peaks_of


def test_the_share_of_the_peak_by_hand(monkeypatch):
    """64 images in half a second, a tenth of a TFLOP each, on eight devices."""
    monkeypatch.setitem(peaks.GPUS, jax.devices()[0].device_kind, 100e12)
    told = peaks.speeds(64, int(1e11), "bfloat16")(0.5)
    assert told == {"images_per_sec": 128, "mfu": 128 * 1e11 / (8 * 100e12)}
    monkeypatch.undo()
    assert peaks.speeds(64, int(1e11), "bfloat16")(0.5) == {"images_per_sec": 128}


def test_times_by_hand():
    """Each chip of a ring sends 2 (n - 1) / n of the sum, over all links at once."""
    topology = topologies.parse("v5e:2x2")
    times = estimates.times(topology, made_of(), flops=1)
    assert times.operations == pytest.approx(3e6 / 1.5e9)
    assert times.exchange == pytest.approx(1.5 * 8e5 / (2 * 50e9))
    assert estimates.times(topologies.parse("v5e:1x1"), made_of(), 1).exchange == 0
    h100, few = topologies.parse("h100:8"), made_of(cycles=[])
    assert estimates.times(h100, few, 989e12).operations == pytest.approx(1)
    assert estimates.times(h100, few, 1).operations == pytest.approx(1e9 / 3352e9)


def test_the_report_holds_the_numbers():
    topology = topologies.parse("v5e:2x2")
    made = plan.Plan(
        devices=4,
        batch_size=64,
        num_microbatches=1,
        part=16,
        num_steps=2500,
        num_params=1000,
        memory={"activations": 100},
        step_flops=3 * 10**9,
        call_flops=10**9,
        sample_flops=50 * 10**9,
        network_calls=50,
    )
    lighter = [("network.remat=True", made._replace(memory={"activations": 40}))]
    report = lambda training: estimates.report(
        topology, made, training, made_of(all_reduces=[], cached=True), lighter
    )
    said = {
        line[:28].strip(): " ".join(line[28:].split())
        for line in report(made_of()).splitlines()
    }
    assert said["together"] == "99.0 MB fits into 16 GiB"
    seconds = 3e6 / 1.5e9 + 1.5 * 8e5 / 100e9
    assert said["images a second"] == f"{64 / seconds:,.0f}"
    share = 16 * made.step_flops / seconds / 197e12
    assert said["share of the peak"].startswith(f"{100 * share:.1f} %")
    assert said["50,000 samples"] == f"{-(-50000 // 64) * 3e6 / 1.5e9:,.0f} s"
    assert said["sampling"] == "2 s cached"
    refused = report(made_of(refused="Used 20G of 15.75G hbm", memory={}))
    assert "does NOT fit: Used 20G" in refused and "network.remat=True: 0.40" in refused
    large = {**made_of().memory, "temporary": 2**35}
    assert "does NOT fit into 16 GiB" in report(made_of(memory=large))
    assert "counts as one turn" in report(made_of(lengths_known=False))
    assert "no estimate of 1 of" in " ".join(report(made_of(unsaid=1)).split())
    assert "no estimate" not in report(made_of())
    few = made._replace(batch_size=28)
    warned = estimates.report(topology, few, made_of(), made_of(), lighter)
    assert "fewer than 8 images on a device" in " ".join(warned.split())
    assert "fewer than" not in report(made_of())


class Lowered:
    def __init__(self, said):
        self.said, self.compiled = said, 0

    def as_text(self):
        return self.said

    def compile(self):
        self.compiled += 1
        return jax.jit(lambda x: x + 1).lower(1.0).compile()


def test_what_was_compiled_is_not_compiled_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(programs.metadata, "version", lambda name: "1.0")
    v5e, v4 = topologies.parse("v5e:2x2"), topologies.parse("v4:2x2x1")
    told, one, other = [], Lowered("one"), Lowered("other")
    first = programs.compile_program(one, v5e, told.append)
    again = programs.compile_program(one, v5e, told.append)
    assert again == first._replace(cached=True) and one.compiled == len(told) == 1
    programs.compile_program(other, v5e)
    programs.compile_program(one, v4)
    monkeypatch.setattr(programs.metadata, "version", lambda name: "1.1")
    programs.compile_program(one, v5e)
    assert (one.compiled, other.compiled) == (3, 1)


@pytest.mark.parametrize(
    "given, said",
    [
        ("--plan v5f:4x4", "did you mean 'v5p'"),
        ("--plan v5e", "no size: there are v3:4x4"),
        ("--plan v5e:4", "two numbers"),
        ("--plan v5e:2x2 --config.data.batch_size=6", "batch_size=4 or 8 can"),
        ("--by module", "--by needs --plan"),
        ("--plan h100:8", "pip install 'ddpm_jax[plan-gpu]'"),
    ],
)
def test_mistakes_are_named(monkeypatch, given, said):
    """Before anything is compiled, and where the compilers are not installed."""
    here, absent = ("json", "plan-tpu"), ("no_such_plugin", "plan-gpu")
    monkeypatch.setattr(topologies, "PLUGINS", {"tpu": here, "cuda": absent})
    monkeypatch.setattr(sys, "argv", ["train", "--config", CONFIG, *given.split()])
    args = cli.parse_config(train.add_arguments(cli.parser("")))
    with pytest.raises(ConfigError) as error:
        train.main(args)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (MemoryError(), MemoryError),
        (OSError(errno.EMFILE, "too many open files"), OSError),
        (ValueError("no such bounds"), ConfigError),
    ],
)
def test_what_fails_for_the_machine_is_not_said_of_the_topology(
    monkeypatch, raised, told
):
    def fail(**given):
        raise raised

    monkeypatch.setattr(topologies.topologies, "get_topology_desc", fail)
    with pytest.raises(told):
        topologies.devices(topologies.parse("v5e:2x2"))


@pytest.mark.parametrize(
    "does, said",
    [("kill -SEGV $$", "crashed with signal 11"), ("echo why >&2; exit 3", "why")],
)
def test_a_compiler_that_ends_is_named(monkeypatch, tmp_path, does, said):
    worker = tmp_path / "worker"
    worker.write_text(f"#!/bin/sh\ncat > /dev/null\n{does}\n")
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    with pytest.raises(ConfigError, match=said):
        programs.ask({}, topologies.parse("v5e:2x2"), print)


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="asks the compiler for TPUs: pip install 'ddpm_jax[plan-tpu]'",
)


def run(*command, check=True, **environment):
    """In a process that finds nothing set but what a user's shell has."""
    unset = ("XLA_FLAGS", "JAX_PLATFORMS", *topologies.ENVIRONMENT)
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=kept | environment,
        check=check,
        capture_output=True,
        text=True,
        cwd=HERE.parent,
    )


@pytest.fixture(scope="module")
def pieces():
    made = run(HERE / "compiled_pieces.py", "--json").stdout
    return json.loads(made.splitlines()[-1])


@needs_libtpu
@pytest.mark.timeout(900)
def test_what_the_compiler_for_tpus_makes_of_the_pieces(pieces, capsys):
    """What holds of any libtpu; seconds are printed, not judged."""
    for name, made in pieces["pieces"].items():
        with capsys.disabled():
            print(
                f"\n{name}: {made['cycles']:,} cycles, {made['seconds']} s to compile"
            )
        assert made["collectives"] == (1 if name == "training step" else 0), name
        assert made["host_transfers"] == 0, name
        assert made["convolutions_with_threefry"] == 0, name
        assert made["lengths_known"], name
    assert pieces["talking"], "what does talk to the host must be seen"
    assert "HBM" in pieces["refused"], "what does not fit must be refused"


@needs_libtpu
@pytest.mark.timeout(900)
def test_the_pieces_are_as_fast_and_as_small_as_before(pieces):
    """Pinned to one libtpu."""
    if metadata.version("libtpu") != LIBTPU:
        pytest.skip(f"figures are of libtpu {LIBTPU}: python tests/compiled_pieces.py")
    for name, pinned in PINNED.items():
        made = pieces["pieces"][name]["cycles"], pieces["pieces"][name]["code"]
        assert np.all(np.array(made) <= (1 + ROOM) * np.array(pinned)), (name, made)


FLAGS = topologies.LIBTPU_FLAGS.split()


def test_each_of_our_flags_may_be_left_out():
    *names, last = [flag.removeprefix("--").split("=")[0] for flag in FLAGS]
    assert FLAGS[-1] == f"--{last}={','.join(names)}" and last == "undefok"


TELL = "from ddpm_jax.compiled.topologies import *; devices(parse('v5e:2x2'))"


@needs_libtpu
@pytest.mark.parametrize(
    "flags, fails",
    [
        ([flag for flag in FLAGS if "undefok" not in flag], False),
        ([*FLAGS, "--unknown=1"], True),
        ([*FLAGS[:-1], "--unknown=1", f"{FLAGS[-1]},unknown"], False),
    ],
    ids=["known", "of others", "of ours"],
)
def test_the_compiler_knows_our_flags_and_an_older_one_would_go_on(flags, fails):
    given = {"LIBTPU_INIT_ARGS": " ".join(flags), **topologies.ENVIRONMENT}
    made = run("-c", TELL, check=False, **given)
    assert bool(made.returncode) == fails, made.stderr[-500:]
    assert ("unknown" in made.stderr) == fails


@needs_libtpu
@pytest.mark.timeout(900)
def test_the_command_with_nothing_set(pieces):
    """It finds what another process compiled."""
    changes = [f"--config.{change}" for change in STEP]
    given = ("--config", CONFIG, "--plan", "v5e:2x2", "--by", "module")
    done = run("-m", "ddpm_jax.train", *given, *changes)
    assert done.stdout.count("cached") == 2
    cycles = pieces["pieces"]["training step"]["cycles"] / 1e6
    assert f"{cycles:,.2f} M cycles at 1.50 GHz" in done.stdout
    assert "fits into 16 GiB" in done.stdout and "down_0_0_block" in done.stdout
