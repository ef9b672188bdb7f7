"""What all launchers share: help, errors, dry runs, and when a run is begun again."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stubs import LAUNCH, MAIN, SETTINGS, assert_one_line, make_fake

fake = pytest.fixture(make_fake)

SCRIPTS = sorted(
    path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch")
)
STARTED_BY_HAND = [name for name in SCRIPTS if name != "contract.sh"]
COMMANDS = [
    ("local.sh", *MAIN),
    ("local.sh", "2", *MAIN),
    ("slurm.sbatch", *MAIN),
    *(("tpu_pod.sh", verb) for verb in ("create", "setup", "logs", "status")),
    *(("tpu_pod.sh", verb) for verb in ("stop", "delete")),
    ("tpu_pod.sh", "run", *MAIN),
    ("tpu_pod.sh", "up", *MAIN),
    ("tpu_vm.sh", "up", *MAIN),
    ("gke.sh", "run", *MAIN),
    *(("gke.sh", verb) for verb in ("logs", "status", "delete")),
]


def test_shellcheck():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    files = [*(f"launch/{name}" for name in SCRIPTS), ".ci/run"]
    # SC1091: a virtual environment's script, which is not there to be read.
    options = ("--shell=bash", "--external-sources", "--exclude=SC1091")
    subprocess.run([shellcheck, *options, *files], check=True)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_a_dry_run_prints_commands_and_runs_none(fake, command):
    env = {**SETTINGS, "SLURM_JOB_ID": 7} if "tpu" not in command[0] else {}
    result = fake.run(*command, DRY_RUN=1, **env)
    assert result.returncode == 0, result.stderr
    assert not fake.calls() and not (fake.root / "states").exists()
    printed = [shlex.split(line) for line in result.stdout.splitlines()]
    programs = {"gcloud", "git", "kubectl", "srun", "scontrol", "env"}
    assert printed and {words[0] for words in printed} <= programs
    if MAIN[0] in command and command[0] != "gke.sh":
        sent = " ".join(word for words in printed for word in words)
        assert " ".join(MAIN) in sent or shlex.join(MAIN[:1]) in sent


@pytest.mark.parametrize("script", STARTED_BY_HAND)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(fake, script, option):
    result = fake.run(script, option)
    assert result.returncode == 0 and not result.stderr and not fake.calls()
    assert f"launch/{script}" in result.stdout
    assert "shellcheck" not in result.stdout and "SBATCH" not in result.stdout


@pytest.mark.parametrize("script", STARTED_BY_HAND)
def test_help_tells_every_setting(fake, script):
    said = fake.run(script, "--help").stdout
    used = re.findall(r"\$\{([A-Z_]+):?[-=]", (LAUNCH / script).read_text())
    known = {"XLA_FLAGS", "SLURM_JOB_ID", "SLURM_GPUS_ON_NODE", "SLURM_RESTART_COUNT"}
    for name in {*used} - known - {"SLURM_JOB_NUM_NODES"}:
        assert name in said, name


@pytest.mark.parametrize(
    "command",
    [
        *([name] for name in STARTED_BY_HAND),
        ["local.sh", "0", "ddpm_jax.train"],
        ["local.sh", "two", "ddpm_jax.train"],
        ["local.sh", "2"],
        ["slurm.sbatch", "ddpm_jax.train"],  # not submitted
        *([name, "nope"] for name in ("tpu_pod.sh", "tpu_vm.sh", "gke.sh")),
        *([name, "run"] for name in ("tpu_pod.sh", "tpu_vm.sh", "gke.sh")),
        ["tpu_pod.sh", "up"],
        ["tpu_pod.sh", "create", "it"],
        ["gke.sh", "delete", "it"],
        ["tpu_worker.sh", "nope"],
    ],
    ids=" ".join,
)
def test_wrong_use(fake, command):
    result = fake.run(*command)
    assert result.returncode == 2 and not fake.calls()
    assert result.stderr.startswith("error: ") and not result.stdout
    assert f"launch/{command[0]}" in result.stderr


def test_a_tool_that_is_not_there(fake):
    bare = fake.root / "bare"
    bare.mkdir()
    for tool in ("bash", "env", "dirname", "sed"):
        (bare / tool).symlink_to(shutil.which(tool))
    assert_one_line(fake.run("tpu_pod.sh", "status", PATH=bare), "gcloud", "install")
    assert_one_line(fake.run("gke.sh", "status", PATH=bare), "kubectl", "install")


def test_when_to_run_again():
    script = """
    . launch/contract.sh
    for code in $(seq 0 255); do for before in 0 2 3; do
      if (MAX_RESTARTS=3; again $code $before) 2>/dev/null; then
        echo $code $before
      fi
    done; done
    """
    told = subprocess.run(["bash", "-ec", script], capture_output=True, text=True)
    again = {tuple(map(int, line.split())) for line in told.stdout.splitlines()}
    for code in range(256):
        first, last, after = ((code, before) in again for before in (0, 2, 3))
        assert first == last == (code not in (0, 1, 2, 130))
        assert after == (code == 143)  # the only one without a bound
