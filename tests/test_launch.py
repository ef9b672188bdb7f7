"""The launchers, against stubs of what they call.

The stubs record each call and answer as the real ones would. That of gcloud keeps a
queued resource and two workers, folders in which it runs what is sent to them; a main
is a few lines of bash, which see $ME (which process), $N (its runs so far) and $FAKE.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path("launch").resolve()
SCRIPTS = sorted(
    path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch")
)
STARTED_BY_HAND = [name for name in SCRIPTS if name != "contract.sh"]
# In the background Ctrl-C may be ignored, and what is begun there could not trap it.
HEARD = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
MAIN = ("ddpm_jax.train", "--config", "a b.py", "--workdir", "/runs/it's")

RECORD = """
echo "$(basename "$0")" "$@" >>"$FAKE/calls"
count=$FAKE/count.$ME
N=$(($(cat "$count" 2>/dev/null || echo 0) + 1))
echo $N >"$count"
"""
STUBS = {
    # A main, as `python -m ...`; process I of local.sh is told by its last argument.
    "python": """
[ "$1" != -c ] || exec PYTHON "$@"
ME=${ME:-${!#}}
echo "$@" >>"$FAKE/mains"
"""
    + RECORD
    + '. "$FAKE/main"',
    "uv": """
if [ "$1" = venv ]; then mkdir -p .venv/bin; fi
cp "$(dirname "$0")/python" .venv/bin/python
""",
    "nvidia-smi": 'cat "$FAKE/gpus" 2>/dev/null',
    "srun": "ME=0\n" + RECORD + 'echo $$ >"$FAKE/pid"\n. "$FAKE/main"',
    "squeue": 'cat "$FAKE/job" 2>/dev/null || echo RUNNING',
    "scontrol": "ME=scontrol\n" + RECORD,
    "kubectl": "ME=kubectl\n" + RECORD + 'case $1 in create) cat >"$FAKE/sent" ;; esac',
}
GCLOUD = """
import json, os, shutil, subprocess, sys
from pathlib import Path

fake = Path(os.environ["FAKE"])
states = fake / "states"
args = [arg for arg in sys.argv[1:] if arg != "--quiet"]
if "describe" not in args:
    with (fake / "calls").open("a") as file:
        file.write("gcloud " + json.dumps(args) + "\\n")
options = dict(arg.split("=", 1) for arg in args if "=" in arg)
words = [arg for arg in args if not arg.startswith("--")]

def fail(text, code=1):
    print(text, file=sys.stderr)
    sys.exit(code)

if words[:2] == ["config", "get-value"]:
    print((fake / "zone").read_text() if (fake / "zone").exists() else "")
    sys.exit()
assert words[:2] == ["compute", "tpus"] and options["--zone"]
group, verb = words[2:4]
now = states.read_text().split() if states.exists() else []
if (group, verb) == ("queued-resources", "describe"):
    if not now:
        fail("ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found")
    if len(now) > 1:
        states.write_text("\\n".join(now[1:]))
    print(now[0] if "--format" in options else f"state:\\n  state: {now[0]}")
elif (group, verb) == ("queued-resources", "create"):
    if now:
        fail("ERROR: (gcloud.compute.tpus) ALREADY_EXISTS")
    states.write_text("CREATING\\nWAITING_FOR_RESOURCES\\nACTIVE")
    for me in "01":
        (fake / "worker" / me).mkdir(parents=True)
elif (group, verb) == ("queued-resources", "delete"):
    assert now and "--force" in args
    states.unlink()
    shutil.rmtree(fake / "worker", ignore_errors=True)
elif (group, verb) == ("tpu-vm", "describe"):
    print("READY")
elif now != ["ACTIVE"]:
    fail("ERROR: cannot connect", 255)
else:
    which = options.get("--worker", "0")
    codes = []
    for home in sorted((fake / "worker").iterdir()):
        if which not in ("all", home.name):
            continue
        if verb == "scp":
            source, target = words[4:6]
            shutil.copy(source, home / target.split(":")[1])
        else:
            env = {**os.environ, "HOME": str(home), "ME": home.name}
            command = ["bash", "-c", options["--command"]]
            codes.append(subprocess.run(command, cwd=home, env=env).returncode)
    sys.exit(max(codes, default=0))
"""


class Fake:
    """A machine with stubs on its PATH, and a clone of the repository."""

    def __init__(self, root):
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        for name, text in STUBS.items():
            self.stub(name, "#!/usr/bin/env bash\n" + text)
        self.stub("gcloud", f"#!{sys.executable} -IS\n{GCLOUD}")
        self.main("exit 0")
        self.clone = root / "clone"
        shutil.copytree(LAUNCH, self.clone / "launch")
        (self.clone / "tracked.txt").write_text("as committed")
        git = ("git", "-c", "user.name=a", "-c", "user.email=a@b")
        git += ("-c", "commit.gpgsign=false")
        for args in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
            subprocess.run([*git, *args], cwd=self.clone, check=True)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "FAKE": str(root),
            "POLL": "0.05",
            "ZONE": "somewhere",
            "ACCELERATOR": "v6e-8",
        }

    def stub(self, name, text):
        text = text.replace("PYTHON", shlex.quote(sys.executable))
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def main(self, text):
        (self.root / "main").write_text(text)

    def states(self, *states):
        (self.root / "states").write_text("\n".join(states))

    def _how(self, script, args, env):
        env = {**self.env, **{key: str(value) for key, value in env.items()}}
        env = {key: value for key, value in env.items() if value != "None"}
        return {
            "args": ["bash", f"launch/{script}", *map(str, args)],
            "cwd": self.clone,
            "env": env,
            "stdin": subprocess.DEVNULL,
            "text": True,
        }

    def run(self, script, *args, **env):
        return subprocess.run(
            **self._how(script, args, env), capture_output=True, timeout=60
        )

    @contextlib.contextmanager
    def start(self, script, *args, **env):
        """A script that runs until the end of the block, at most."""
        how = self._how(script, args, env)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        how["args"] = [sys.executable, "-c", HEARD, *how["args"]]
        with subprocess.Popen(**how, **streams, start_new_session=True) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def calls(self, *words):
        """The calls that were recorded and have these words in them."""
        path = self.root / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if all(word in line for word in words)]

    def runs(self, me):
        path = self.root / f"count.{me}"
        return int(path.read_text()) if path.exists() else 0

    def wait(self, condition):
        deadline = time.time() + 30
        while not condition():
            assert time.time() < deadline
            time.sleep(0.02)


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path)


def assert_one_line(result, *words):
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr


SAVES = """
trap 'echo TERM >>"$FAKE/told.$ME"; sleep 0.5; touch "$FAKE/saved.$ME"; exit 143' TERM
trap 'echo INT >>"$FAKE/told.$ME"; sleep 0.5; touch "$FAKE/saved.$ME"; exit 130' INT
touch "$FAKE/ready.$ME"
for ((i = 0; i < 1000; i++)); do sleep 0.02; done
"""


def both(fake, what):
    return lambda: all((fake.root / f"{what}.{me}").exists() for me in "01")


def test_shellcheck():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    files = [*(f"launch/{name}" for name in SCRIPTS), ".ci/run"]
    # SC1091: a virtual environment's script, which is not there to be read.
    options = ("--shell=bash", "--external-sources", "--exclude=SC1091")
    subprocess.run([shellcheck, *options, *files], check=True)


# Usage, errors, dry runs.

SETTINGS = {"IMAGE": "here/image:1", "CLAIM": "runs", "ACCELERATOR": None}
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


@pytest.mark.parametrize("verb", ["create", "run", "delete", "stop"])
def test_a_dry_run_prints_what_is_run(fake, verb):
    if verb != "create":
        fake.run("tpu_pod.sh", "create")
        fake.run("tpu_pod.sh", "setup")
        if verb == "stop":
            fake.main(SAVES)
            fake.run("tpu_pod.sh", "run", *MAIN)
            fake.wait(both(fake, "ready"))
        (fake.root / "calls").unlink()
    args = ("tpu_pod.sh", verb, *(MAIN if verb == "run" else ()))
    printed = fake.run(*args, DRY_RUN=1).stdout.splitlines()
    fake.run(*args)
    calls = [json.loads(line.removeprefix("gcloud ")) for line in fake.calls("gcloud")]
    looks = [call for call in calls if "tpu_worker.sh state" not in str(call)]
    assert [["gcloud", "--quiet", *call] for call in looks] == [
        shlex.split(line) for line in printed
    ]


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


def test_the_zone(fake):
    assert_one_line(fake.run("tpu_pod.sh", "create", ZONE=None), "ZONE")
    (fake.root / "zone").write_text("configured")
    assert fake.run("tpu_pod.sh", "create", ZONE=None).returncode == 0
    assert fake.calls("create", "--zone=configured")


# Which ends are worth another run.


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


# Several processes on one machine.


def test_local_processes_share_a_free_port_and_all_else_differs(fake):
    fake.main('echo "$JAX_PLATFORMS $XLA_FLAGS" >"$FAKE/env.$ME"')
    ports = []
    for _ in range(2):
        assert fake.run("local.sh", 3, *MAIN, DEVICES=4).returncode == 0
        lines = (fake.root / "mains").read_text().splitlines()
        (fake.root / "mains").unlink()
        assert all(line.startswith("-m " + " ".join(MAIN)) for line in lines)
        assert sorted(line.split("--process_id ")[1] for line in lines) == [*"012"]
        (port,) = {re.search(r"localhost:(\d+) --num_processes 3", x)[1] for x in lines}
        ports.append(port)
    assert ports[0] != ports[1]
    platform, *flags = (fake.root / "env.1").read_text().split()
    assert platform == "cpu" and "--xla_force_host_platform_device_count=4" in flags
    printed = fake.run("local.sh", 2, *MAIN, PORT=4711, DRY_RUN=1).stdout
    assert "localhost:4711" in printed


@pytest.mark.parametrize("number", [(), (1,)])
def test_local_is_one_process_that_joins_none(fake, number):
    fake.main(
        'echo "$XLA_FLAGS" >"$FAKE/flags"; echo "$CUDA_VISIBLE_DEVICES" >"$FAKE/s"'
    )
    given = {"ME": 0, "CUDA_VISIBLE_DEVICES": "all"}
    assert fake.run("local.sh", *number, *MAIN, DEVICES=4, **given).returncode == 0
    assert (fake.root / "mains").read_text() == "-m " + " ".join(MAIN) + "\n"
    assert "device_count=4" in (fake.root / "flags").read_text()
    (fake.root / "gpus").write_text("GPU 0\nGPU 1\n")
    assert fake.run("local.sh", *number, *MAIN, XLA_FLAGS="", **given).returncode == 0
    assert (fake.root / "flags").read_text() == "\n", "no fake devices"
    assert (fake.root / "s").read_text() == "all\n", "it sees what there is to see"


@pytest.mark.parametrize("gpus, seen", [(2, ["0", "1"]), (5, ["0,1", "2,3"])])
def test_local_processes_have_an_equal_share_of_the_gpus(fake, gpus, seen):
    fake.main('echo "$CUDA_VISIBLE_DEVICES" >"$FAKE/gpu.$ME"')
    (fake.root / "gpus").write_text("".join(f"GPU {i}\n" for i in range(gpus)))
    assert fake.run("local.sh", 2, *MAIN).returncode == 0
    assert [(fake.root / f"gpu.{i}").read_text().strip() for i in "01"] == seen
    if gpus == 2:
        assert_one_line(fake.run("local.sh", 3, *MAIN), "3 processes need 3 GPUs")


def test_local_one_that_fails_stops_the_others(fake):
    fake.main(f'[ "$ME" = 0 ] || {{ sleep 0.2; exit 77; }}\n{SAVES}')
    result = fake.run("local.sh", 2, *MAIN)
    assert result.returncode == 77 and "code 77" in result.stderr
    assert (fake.root / "saved.0").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_a_signal_on_once_and_waits(fake, number):
    fake.main(SAVES)
    with fake.start("local.sh", 2, *MAIN, MAX_RESTARTS=3) as process:
        fake.wait(both(fake, "ready"))
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert both(fake, "saved")() and fake.runs(0) == fake.runs(1) == 1
    told = {(fake.root / f"told.{me}").read_text() for me in "01"}
    assert told == {signal.Signals(number).name.removeprefix("SIG") + "\n"}


def test_local_kills_what_does_not_answer(fake):
    deaf = 'trap "" TERM; touch "$FAKE/deaf"; for i in {1..1000}; do sleep 0.02; done'
    wait = 'until [ -e "$FAKE/deaf" ]; do sleep 0.02; done'
    fake.main(f'[ "$ME" = 0 ] && {{ {wait}; exit 9; }}; {deaf}')
    began = time.time()
    assert fake.run("local.sh", 2, *MAIN, GRACE=1).returncode == 9
    assert 1 <= time.time() - began < 20


@pytest.mark.parametrize(
    "code, most, runs", [(75, 2, 2), (134, 1, 2), (134, 0, 1), (1, 2, 1), (143, 2, 1)]
)
def test_local_restarts_what_is_worth_it(fake, code, most, runs):
    fake.main(f"[ $N -gt 1 ] || exit {code}")
    result = fake.run("local.sh", *MAIN, MAX_RESTARTS=most, ME=0)
    assert result.returncode == (code if runs == 1 else 0)
    assert fake.runs(0) == runs


# TPUs by queued resources.


def test_create_waits_and_is_not_asked_twice(fake):
    result = fake.run("tpu_pod.sh", "create", SPOT=1, NAME="mine")
    assert result.returncode == 0, result.stderr
    assert "CREATING" in result.stderr and "WAITING_FOR_RESOURCES" in result.stderr
    (call,) = fake.calls("queued-resources", "create")
    options = ("--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e")
    assert all(word in call for word in ("mine", "--spot", *options))
    assert fake.run("tpu_pod.sh", "create").returncode == 0
    assert len(fake.calls("create")) == 1


def test_create_says_what_is_missing_or_failed(fake):
    assert_one_line(fake.run("tpu_pod.sh", "create", ACCELERATOR=None), "ACCELERATOR")
    assert_one_line(fake.run("tpu_pod.sh", "create", ACCELERATOR="v99-8"), "RUNTIME")
    assert not fake.calls("create")
    for state, word in [("FAILED", "failed"), ("SUSPENDED", "preempted")]:
        fake.states("PROVISIONING", state)
        result = fake.run("tpu_pod.sh", "create")
        assert result.returncode == 1 and not fake.calls("create")
        assert result.stderr.splitlines()[-1].startswith("error: ")
        assert word in result.stderr.splitlines()[-1]


def test_gcloud_that_fails_is_quoted(fake):
    fake.stub("gcloud", "#!/bin/sh\necho 'ERROR: not logged in' >&2; exit 1")
    assert_one_line(fake.run("tpu_pod.sh", "create"), "not logged in")


def test_tpu_vm_is_a_single_host_by_default(fake):
    printed = fake.run("tpu_vm.sh", "create", ACCELERATOR=None, DRY_RUN=1).stdout
    assert "v5litepod-8" in printed and "v2-alpha-tpuv5-lite" in printed
    assert "v6e-8" in fake.run("tpu_vm.sh", "create", DRY_RUN=1).stdout


def test_setup_copies_tracked_files_as_they_are_and_mounts_first(fake):
    fake.run("tpu_pod.sh", "create")
    (fake.clone / "tracked.txt").write_text("as edited")
    (fake.clone / "untracked.txt").write_text("secret")
    result = fake.run("tpu_pod.sh", "setup", MOUNT='ls -a >"$HOME/mounted"')
    assert result.returncode == 0, result.stderr
    for me in "01":
        worker = fake.root / "worker" / me
        assert (worker / "ddpm_jax" / "tracked.txt").read_text() == "as edited"
        assert not (worker / "ddpm_jax" / "untracked.txt").exists()
        assert (worker / "ddpm_jax" / ".venv" / "bin" / "python").exists()
        assert ".venv" not in (worker / "mounted").read_text()
        with tarfile.open(worker / "ddpm_jax.tar.gz") as files:
            assert not any(".git/" in name for name in files.getnames())
    status = subprocess.run(
        ["git", "status", "--short"], cwd=fake.clone, capture_output=True, text=True
    )
    assert status.stdout == " M tracked.txt\n?? untracked.txt\n"
    failed = fake.run("tpu_pod.sh", "setup", MOUNT="false")
    assert failed.returncode != 0 and "MOUNT failed" in failed.stderr


def test_up_does_all_of_it(fake):
    result = fake.run("tpu_pod.sh", "up", *MAIN)
    assert result.returncode == 0, result.stderr
    assert len(fake.calls("create")) == 1 and fake.runs(0) == fake.runs(1) == 1
    lines = (fake.root / "mains").read_text().splitlines()
    assert lines == ["-m " + " ".join(MAIN)] * 2
    assert not fake.calls("delete")  # what was asked for by hand is given back so


def test_up_wants_storage_that_outlives_the_tpu(fake):
    for args in (MAIN[:3], (*MAIN[:3], "--workdir", "runs/it")):
        assert_one_line(fake.run("tpu_pod.sh", "up", *args), "--workdir")
    assert not fake.calls()


@pytest.mark.parametrize("code", [143, 137])
def test_up_after_a_preemption(fake, code):
    fake.main(
        "[ $N -gt 1 ] || {\n"
        '[ $ME = 1 ] || printf "SUSPENDING\nSUSPENDING\nSUSPENDED" >"$FAKE/states"\n'
        f"exit {code}\n}}"
    )
    (fake.clone / "tracked.txt").write_text("as it began")
    with fake.start("tpu_pod.sh", "up", *MAIN, MAX_RESTARTS=0) as process:
        fake.wait(both(fake, "count"))
        (fake.clone / "tracked.txt").write_text("edited since")
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "was preempted" in said
    assert [len(fake.calls(verb)) for verb in ("create", "delete")] == [2, 1]
    assert fake.runs(0) == fake.runs(1) == 2
    copied = fake.root / "worker" / "1" / "ddpm_jax" / "tracked.txt"
    assert copied.read_text() == "as it began"


def test_up_after_a_preemption_while_it_waits(fake):
    fake.states("PROVISIONING", "PROVISIONING", "SUSPENDING", "SUSPENDED")
    result = fake.run("tpu_pod.sh", "up", *MAIN)
    assert result.returncode == 0, result.stderr
    assert [len(fake.calls(verb)) for verb in ("create", "delete")] == [1, 1]


@pytest.mark.parametrize("code", [75, 134, 137, 143])
def test_up_runs_again_on_the_same_tpu(fake, code):
    fake.main(f"[ $N -gt 1 ] || exit {code}")
    result = fake.run("tpu_pod.sh", "up", *MAIN)
    assert result.returncode == 0 and "restarting" in result.stderr
    assert len(fake.calls("create")) == 1 and fake.runs(0) == fake.runs(1) == 2


@pytest.mark.parametrize("me, code", [(0, 1), (1, 1), (0, 2), (0, 130)])
def test_up_does_not_repeat_a_mistake(fake, me, code):
    """Though the other worker, which was left alone, ends otherwise."""
    fake.main(f"[ $ME = {me} ] && exit {code}; exit 75")
    result = fake.run("tpu_pod.sh", "up", *MAIN)
    assert result.returncode == code and fake.runs(0) == fake.runs(1) == 1


def test_up_gives_up_in_the_end(fake):
    fake.main("exit 134")
    result = fake.run("tpu_pod.sh", "up", *MAIN, MAX_RESTARTS=2)
    assert result.returncode == 134 and fake.runs(0) == 3
    assert "MAX_RESTARTS" in result.stderr


def test_up_does_not_take_a_failed_request_for_a_preemption(fake):
    fake.states("FAILED")
    assert_one_line(fake.run("tpu_pod.sh", "up", *MAIN), "failed")
    assert not fake.calls()


def test_a_main_outlives_ssh_and_up_finds_it(fake):
    fake.main('for i in {1..3000}; do sleep 0.02; [ ! -e "$FAKE/end" ] || exit 0; done')
    for verb in ("create", "setup"):
        assert fake.run("tpu_pod.sh", verb).returncode == 0
    assert fake.run("tpu_pod.sh", "run", *MAIN).returncode == 0
    for me in "01":
        pid = fake.root / "worker" / me / "ddpm_jax" / ".launch" / "pid"
        os.kill(int(pid.read_text()), signal.SIGHUP)
    again = fake.run("tpu_pod.sh", "run", *MAIN)
    assert again.returncode != 0 and "running already" in again.stderr
    assert fake.run("tpu_pod.sh", "status").stdout.count("main: running\n") == 2
    with fake.start("tpu_pod.sh", "up", *MAIN) as process:
        assert "running: " in process.stderr.readline()
        (fake.root / "end").touch()
        process.communicate(timeout=60)
    assert process.returncode == 0 and fake.runs(0) == fake.runs(1) == 1


def test_stop_saves_and_up_does_not_start_again(fake):
    fake.main(SAVES)
    with fake.start("tpu_pod.sh", "up", *MAIN) as process:
        fake.wait(both(fake, "ready"))
        result = fake.run("tpu_pod.sh", "stop")
        assert result.returncode == 0 and both(fake, "saved")()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped by hand" in said
    assert fake.runs(0) == fake.runs(1) == 1


def test_stop_of_nothing(fake):
    assert_one_line(fake.run("tpu_pod.sh", "stop"), "no main is running")
    assert not fake.calls("stop")


def test_logs_are_of_one_worker(fake):
    printed = fake.run("tpu_pod.sh", "logs", WORKER=1, DRY_RUN=1).stdout
    assert "--worker=1" in printed
    fake.main('echo "step 1 of $ME"')
    fake.run("tpu_pod.sh", "up", *MAIN)
    log = fake.root / "worker" / "1" / "ddpm_jax" / ".launch" / "log"
    assert "step 1 of 1" in log.read_text()


# SLURM.

JOB = {"SLURM_JOB_ID": 7, "SLURM_JOB_NUM_NODES": 2, "SLURM_GPUS_ON_NODE": 4}


def slurm_options():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    first = next(i for i, x in enumerate(lines) if x and not x.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])  # unread there
    options = [x.split(maxsplit=1)[1] for x in lines if x.startswith("#SBATCH")]
    return dict(option.removeprefix("--").partition("=")[::2] for option in options)


def test_slurm_tells_the_processes_in_time():
    options = slurm_options()
    what, seconds = options["signal"].split("@")
    assert what == "TERM" and int(seconds) >= 120  # not "B:", which is this shell only
    assert "requeue" in options and options["open-mode"] == "append"


@pytest.mark.parametrize(
    "given, gpus, tasks, devices",
    [
        ({}, 4, (2, 1), "0,1,2,3"),
        ({"PER_GPU": 1}, 4, (8, 4), ""),
        ({}, None, (2, 1), ""),
    ],
)
def test_slurm_runs_a_process_on_each_node(fake, given, gpus, tasks, devices):
    """Which has all its GPUs, where JAX by itself would take the first alone."""
    fake.main('echo "${JAX_LOCAL_DEVICE_IDS:-}" >"$FAKE/devices"')
    job = {**JOB, "SLURM_GPUS_ON_NODE": gpus, **given}
    assert fake.run("slurm.sbatch", *MAIN, **job).returncode == 0
    (call,) = fake.calls("srun")
    assert "--ntasks={} --ntasks-per-node={}".format(*tasks) in call
    assert "--gpu-bind=none" in call and call.endswith("python -m " + " ".join(MAIN))
    assert (fake.root / "devices").read_text() == devices + "\n"
    assert not fake.calls("scontrol")


@pytest.mark.parametrize(
    "code, before, again",
    [(143, 0, 1), (143, 99, 1), (75, 0, 1), (137, 9, 1), (137, 10, 0)]
    + [(code, 0, 0) for code in (0, 1, 2, 130)],
)
def test_slurm_queues_again(fake, code, before, again):
    fake.main(f"exit {code}")
    result = fake.run("slurm.sbatch", *MAIN, **JOB, SLURM_RESTART_COUNT=before)
    assert result.returncode == code
    assert fake.calls("scontrol") == ["scontrol requeue 7"] * again


def test_slurm_leaves_a_cancelled_job_alone(fake):
    fake.main(SAVES)
    with fake.start("slurm.sbatch", *MAIN, **JOB) as process:
        fake.wait((fake.root / "ready.0").exists)
        process.terminate()  # scancel tells the script and the processes
        time.sleep(0.2)
        assert process.poll() is None
        os.kill(int((fake.root / "pid").read_text()), signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 143 and (fake.root / "saved.0").exists()
    assert not fake.calls("scontrol")


def test_slurm_leaves_a_cancelled_job_alone_that_was_not_told(fake):
    fake.main('echo COMPLETING >"$FAKE/job"; exit 143')
    assert fake.run("slurm.sbatch", *MAIN, **JOB).returncode == 143
    assert not fake.calls("scontrol")


def test_slurm_from_another_folder(fake):
    (fake.clone / "launch" / "contract.sh").unlink()
    assert_one_line(fake.run("slurm.sbatch", *MAIN, **JOB), "root of the repository")


# GKE.


def jobset(fake, *args, **env):
    result = fake.run("gke.sh", "show", *args, **SETTINGS, **env)
    assert result.returncode == 0, result.stderr
    assert "${" not in result.stdout and not fake.calls()
    return yaml.safe_load(result.stdout)["spec"]


@pytest.mark.parametrize(
    "topology, chips, hosts", [("4x4", 4, 4), ("2x2x4", 4, 4), ("2x4", 8, 1)]
)
def test_gke_has_a_pod_for_each_host(fake, topology, chips, hosts):
    spec = jobset(fake, *MAIN, TOPOLOGY=topology, CHIPS=chips)
    (job,) = spec["replicatedJobs"]
    job = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == hosts
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_gke_runs_what_it_is_told_where_it_is_kept(fake):
    odd = ("--name", 'a "b" \\ c', "${NAME}&")
    spec = jobset(fake, *MAIN, *odd[:2], GRACE=33, MAX_RESTARTS=3)
    pod = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", *MAIN, *odd[:2]]
    (mount,) = container["volumeMounts"]
    assert MAIN[-1].startswith(mount["mountPath"])
    (volume,) = pod["volumes"]
    assert volume["name"] == mount["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == "runs"
    assert pod["terminationGracePeriodSeconds"] == 33
    assert spec["failurePolicy"]["maxRestarts"] == 3


def test_gke_fails_at_once_on_what_would_come_again(fake):
    spec = jobset(fake, *MAIN)
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (policy,) = job["podFailurePolicy"]["rules"]
    assert policy["action"] == "FailJob" and policy["onExitCodes"]["values"] == [1, 2]
    pod = job["template"]["spec"]
    assert policy["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0


def test_gke_sends_what_it_shows(fake):
    shown = fake.run("gke.sh", "show", *MAIN, **SETTINGS).stdout
    assert fake.run("gke.sh", "run", *MAIN, **SETTINGS).returncode == 0
    assert fake.calls("kubectl create") and (fake.root / "sent").read_text() == shown
    for verb in ("logs", "status", "delete"):
        assert fake.run("gke.sh", verb, NAME="mine").returncode == 0
    assert fake.calls("logs", "jobset-name=mine") and fake.calls("get jobset mine")
    assert fake.calls("delete jobset mine")


@pytest.mark.parametrize(
    "change, word",
    [
        ({"IMAGE": None}, "IMAGE"),
        ({"CLAIM": None}, "CLAIM"),
        ({"TOPOLOGY": "16"}, "TOPOLOGY"),
        ({"TOPOLOGY": "2x3", "CHIPS": 4}, "CHIPS"),
        ({"RUNS": "/elsewhere"}, "--workdir /elsewhere"),
        ({"ACCELERATOR": "v5litepod-16"}, "ACCELERATOR"),
    ],
)
def test_gke_mistakes(fake, change, word):
    assert_one_line(fake.run("gke.sh", "run", *MAIN, **{**SETTINGS, **change}), word)
    assert not fake.calls()
