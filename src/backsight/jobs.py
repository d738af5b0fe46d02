"""Calls as jobs of their own, by submitit: on Slurm where that is, else as processes of this machine."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from backsight.core import UserError

logger: logging.Logger = logging.getLogger(__name__)

MINUTES = 24 * 60
"""The most that a job may take, unless ``SBATCH_TIMELIMIT`` says otherwise."""

POLL = 1.0
"""Seconds between two looks at the jobs."""


def run_jobs(calls: Mapping[str, Callable[[], object]], folder: Path, at_once: int = 2) -> None:
    """Run all ``calls``, which can be sent to another process, and wait for them; their logs go to ``folder``.

    Slurm decides how many run at the same time, and reads what they need (a partition, GPUs, hours) from its own
    variables ``SBATCH_...``; on this machine ``at_once`` do.

    Raises:
        UserError: submitit is not installed, or jobs failed: the others are done, and the same command does the rest.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--jobs submitit needs a package that is missing: pip install 'backsight[jobs]'") from error
    executor = submitit.AutoExecutor(folder)
    executor.update_parameters(timeout_min=MINUTES)
    waiting, running, failed = dict(calls), dict[str, Any](), dict[str, str]()
    while waiting or running:
        while waiting and (executor.cluster == "slurm" or len(running) < at_once):
            name = next(iter(waiting))
            running[name] = executor.submit(waiting.pop(name))
            logger.info("%s: job %s, %s", name, running[name].job_id, running[name].paths.stderr)
        for name in [name for name, job in running.items() if job.done()]:
            error = running.pop(name).exception()
            if error is not None:
                lines = [line for line in str(error).splitlines() if re.match(r"\w+(\.\w+)*: ", line)]
                failed[name] = lines[-1] if lines else type(error).__name__
        time.sleep(POLL)
    if failed:
        raise UserError("; ".join(f"{name} failed ({reason})" for name, reason in failed.items()))
