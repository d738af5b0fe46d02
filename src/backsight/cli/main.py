"""The command line: which commands there are, and how a mistake or an interruption ends."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import tyro

from backsight.cli import experiments, inspection, sharing, training
from backsight.validation import UserError

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": training.demo,
    "train": training.train,
    "sweep": training.sweep,
    "merge": training.merge,
    "reconstruct": experiments.reconstruct,
    "experiment": experiments.experiment,
    "reproduce": experiments.reproduce,
    "report": experiments.report,
    "app": sharing.app,
    "models": inspection.models,
    "stages": inspection.stages,
    "verify": inspection.verify,
    "push": sharing.push,
    "cost": inspection.cost,
}
GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "zoo": ("The small trained models that ship with the package.", {"list": inspection.zoo_list}),
    "import": ("What others have published, as runs.", {"authors": sharing.import_authors}),
}

DESCRIPTION = (
    "See what a vision model still knows about an image, stage by stage. `backsight --version` prints the version."
)

QUIET = ("faster_coco_eval", "httpx", "httpx2", "huggingface_hub", "timm", "transformers", "matplotlib", "fontTools")
"""Libraries whose messages are not for our users."""

SHORT_WAIT = {"GOMP_SPINCOUNT": "10000"}
"""How many times a thread of GNU OpenMP looks for work before it sleeps.

By itself it is 300,000 times: on cores that others use as well, time in which they, or the thread that is waited for,
could have worked.
"""


def main(arguments: list[str] | None = None) -> None:
    """Run a command.

    Exit status 0, also where a scheduler's signal stopped a run that can go on; 2 for a mistake of the user, with one
    line that says what would be right (or tyro's own message for an option that there is not); 130 for Ctrl-C; 1 where
    another process of a run was lost, an experiment among several broke off, or the fault is ours.
    """
    _set_up()
    UserError.in_command = True
    try:
        run_command(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:  # whoever reads this has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        _fail(str(error), 2)
    except OSError as error:
        if error.strerror is None:
            raise
        _fail(f"{error.filename or 'a file'}: {error.strerror}; choose another place, or correct this one", 2)
    except Exception as error:
        # By name, since their modules are heavy: whoever raised one has loaded it.
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & {"Interrupted", "WorkerLost", "BrokeOff"}:
            _fail(str(error), getattr(error, "status", 1))
        if names & {"OutOfMemoryError", "MemoryError"} or "DefaultCPUAllocator" in str(error):
            _fail(_out_of_memory(str(error)), 2)
        raise
    finally:
        UserError.in_command = False


def run_command(arguments: Sequence[str]) -> None:
    """Parse the arguments of a command, and run it."""
    if arguments[:1] == ["--version"]:
        import backsight

        print(f"backsight {backsight.__version__}")
        return
    app = _group(COMMANDS)
    for name, (text, commands) in GROUPS.items():
        app.command(_group(commands), name=name, help=text)
    # A flag is `--resume`; there is no `--no-resume` beside it.
    app.cli(
        prog="backsight", description=DESCRIPTION, args=join_repeated(arguments), config=(tyro.conf.FlagCreatePairsOff,)
    )


def _group(commands: dict[str, Callable[..., None]]) -> tyro.extras.SubcommandApp:
    group = tyro.extras.SubcommandApp()
    register: Any = group.command
    for name, function in commands.items():
        register(function, name=name)
    return group


def join_repeated(arguments: Sequence[str]) -> list[str]:
    """``--inverse a --inverse b`` -> ``--inverse a b``: to tyro, the second alone would count.

    An option of one value that is given twice has one too many then, which tyro refuses. Positional arguments in front
    stay there.
    """
    values: dict[str, list[str]] = {"": []}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            values.setdefault(name, []).extend([value] if equals else [])
        else:
            values[name].append(argument)
    return values.pop("") + [each for option, given in values.items() for each in (option, *given)]


def _set_up() -> None:
    """Before torch is imported, which no command has done yet."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as some schedulers do
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.update(SHORT_WAIT | os.environ)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.ERROR)


def _out_of_memory(message: str) -> str:
    """What to do where the device has no memory left, by torch's ``message``."""
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", message)
    more = f" ({wanted[1]} more were asked for)" if wanted else ""
    return (
        f"the device is out of memory{more}: train with a smaller --batch-size, with --micro-batch or with --memory "
        "(as 8GiB); elsewhere a smaller --size or --device cpu does with less"
    )


def _fail(message: str, status: int) -> NoReturn:
    print(f"backsight: {message}", file=sys.stderr)
    sys.exit(status)
