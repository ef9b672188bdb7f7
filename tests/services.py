"""Stand-ins for the packages of services that show runs; they keep what is told."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock


class CommError(Exception):
    """The service does not answer."""


def wandb(**settings):
    """That of Weights & Biases; `runs` are those begun, in order."""
    given = dict(mode="online", project=None, run_name=None, finish_timeout=0.0)
    module = Mock(runs=[], errors=Mock(CommError=CommError))
    module.setup.return_value.settings = SimpleNamespace(**(given | settings))

    def init(**begin):
        folder = Path(begin["dir"], "wandb")
        folder.mkdir(exist_ok=True)
        (folder / "run.wandb").touch()
        resumed = begin["id"] in [run.begin["id"] for run in module.runs]
        module.runs.append(Mock(begin=begin, resumed=resumed))
        module.runs[-1].name = "sunny-sky-1"
        return module.runs[-1]

    module.init.side_effect = init
    return module


def told(run):
    """What a run of it was told by steps, in order."""
    return [call.args[0] for call in run.log.call_args_list if not call.kwargs]


def trackio():
    """That of Trackio; `runs` are those begun, in order."""
    module = Mock(runs=[])

    def init(project, name, **begin):
        module.runs.append(Mock(project=project, begin=begin, config={"_Group": None}))
        module.runs[-1].name = name
        return module.runs[-1]

    module.init.side_effect = init
    return module
