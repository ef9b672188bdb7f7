"""Eight fake CPU devices, strict shapes, and types that are checked while testing."""

import os
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        # Tiny programs, run once: compiling them is what costs.
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        # 80 -> 50 s for the networks' tests; jaxlib 0.12 has no such choice.
        "--xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
        # As the mains have it, see `command.tell_compilers`.
        "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution",
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ.setdefault("NPROC", "32")  # jax 0.10: too few threads for 8 fake devices
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(".cache/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook(["ddpm_jax.diffusion", "ddpm_jax.networks"], "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")

from stores import address, faults, store  # noqa: E402, F401

from ddpm_jax.cli import command  # noqa: E402

command._join = lambda args: (
    None
)  # JAX is in use here: it is too late to join processes
command.collect_rarely()

# Of the files that take longest, by their CPU seconds: with two workers nobody waits at
# the end for one of them.
SLOWEST = (
    "uploads multihost faults main tutorial samplers evaluate init_from load tasks "
    "build unets compiled loop run remote portable demo card"
)


def pytest_collection_modifyitems(items):
    """The slowest files first; a file's own order stays."""
    order = {f"test_{name}": i for i, name in enumerate(SLOWEST.split())}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """References and feature networks of tests stay among them."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Those of one file are not kept in memory for the next."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield
