"""A machine for the launchers, with stubs of what they call.

The stubs record each call and answer as the real ones would. That of gcloud keeps a
queued resource and two workers, folders in which it runs what is sent to them; a main
is a few lines of bash, which see $ME (which process), $N (its runs so far) and $FAKE.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

LAUNCH = Path("launch").resolve()
# In the background Ctrl-C may be ignored, and what is begun there could not trap it.
HEARD = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
MAIN = ("ddpm_jax.train", "--config", "a b.py", "--workdir", "/runs/it's")
# What gke.sh must be given.
SETTINGS = {"IMAGE": "here/image:1", "CLAIM": "runs", "ACCELERATOR": None}
# A main that saves when it is told to stop.
SAVES = """
trap 'echo TERM >>"$FAKE/told.$ME"; sleep 0.5; touch "$FAKE/saved.$ME"; exit 143' TERM
trap 'echo INT >>"$FAKE/told.$ME"; sleep 0.5; touch "$FAKE/saved.$ME"; exit 130' INT
touch "$FAKE/ready.$ME"
for ((i = 0; i < 1000; i++)); do sleep 0.02; done
"""
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


def make_fake(tmp_path):
    """A machine in a folder of its own: a fixture of tests."""
    return Fake(tmp_path)


def assert_one_line(result, *words):
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr


def both(fake, what):
    return lambda: all((fake.root / f"{what}.{me}").exists() for me in "01")
