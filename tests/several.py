"""Several mains, one after another, in processes that are joined once.

  python several.py FOLDER HOST:PORT NUM_PROCESSES PROCESS_ID

FOLDER/commands.json holds a list of [for each process the folder to start in, main,
arguments]. What they wrote, and their exit codes, go to FOLDER/said_PROCESS_ID.json.
"""

import contextlib
import importlib
import io
import json
import os
import sys
from pathlib import Path

from ddpm_jax.cli import command as cli
from ddpm_jax.distributed import multihost


def run(place, main, arguments):
    """Runs a main as its command would; returns what it wrote, and its code."""
    os.chdir(place)
    sys.argv = [main, *arguments]
    module, said = importlib.import_module(f"ddpm_jax.{main}"), io.StringIO()
    parse = cli.parse_config if main == "train" else cli.parse
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.run(module.main, parse(module.add_arguments(cli.parser(""))))
        except SystemExit as end:
            return [said.getvalue(), end.code or 0]


if __name__ == "__main__":
    folder, coordinator, num, index = Path(sys.argv[1]), *sys.argv[2:]
    multihost.initialize(coordinator, int(num), int(index))
    cli._join = lambda args: None
    multihost.exit_now = sys.exit  # the next command is for all of them, too
    commands = json.loads((folder / "commands.json").read_text())
    said = [run(places[int(index)], *command) for places, *command in commands]
    (folder / f"said_{index}.json").write_text(json.dumps(said))
