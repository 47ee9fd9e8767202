"""Makes the judge that --judge names, and says what its verdicts depend on."""

from pathlib import Path
from typing import Any

from launch.answers import origins
from launch.judging.replies import Judge
from launch.judging.server import ServerJudge
from launch.judging.workdir import WorkdirJudge
from launch.program.checking import ConfigError
from launch.run.workdirs import Workdir

SERVERS = ("http://", "https://")  # how the URL of a server begins; anything else is a workdir


def workdir_judge(place: str, step: str = "", dtype: str | None = None) -> tuple[Judge, dict[str, Any]]:
    """Returns the model of a workdir as a judge, and the settings that its verdicts depend on.

    Raises:
      ConfigError: there is no checkpoint, or the model can't judge.
    """
    workdir = Workdir(Path(place).absolute())
    step, content = origins.checkpoint(workdir, step)
    facts = {"judge": str(workdir.path), "step": step, "checkpoint": content, "dtype": dtype}
    return WorkdirJudge(workdir, step, dtype), facts


def server_judge(place: str, model: str | None, **options: int) -> tuple[Judge, dict[str, Any]]:
    """Returns a model behind a server as a judge, and the settings that its verdicts depend on.

    Args:
      place: the URL.
      model: its name there.
      options: of ServerJudge.

    Raises:
      ConfigError: the model is not named, or the server gives no reply.
    """
    if not model:
        raise ConfigError(f"--judge {place} is a server; name its model with --judge_model")
    judge = ServerJudge(place, model, **options)
    return judge, {"judge": place, "judge_model": model, "max_new_tokens": options["max_tokens"]}
