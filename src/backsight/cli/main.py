"""From what a user typed to a command, its mistakes told in one line."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence

import tyro

from backsight.cli.commands import build

QUIET = ("faster_coco_eval", "httpx", "httpx2", "huggingface_hub", "timm", "transformers", "matplotlib", "fontTools")
"""Libraries whose messages are not for our users."""

DESCRIPTION = (
    "See what a vision model still knows about an image, stage by stage. `backsight --version` tells the version."
)

SHORT_WAIT = {"GOMP_SPINCOUNT": "10000"}
"""How many times a thread of GNU OpenMP looks for work before it sleeps.

By itself it is 300,000 times: on cores that others use as well, time in which they, or the thread that is waited for,
could have worked.
"""

PARSING = (tyro.conf.FlagCreatePairsOff,)
"""A flag is `--resume`; there is no `--no-resume` beside it."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Exit status 0; 2 for a mistake that the user can mend, on one line; 130 for Ctrl-C.

    0 too where a scheduler's signal stopped a run that can go on, and 1 where another process of it was lost, or an
    experiment among several broke off.
    """
    _set_up()
    try:
        _parse(sys.argv[1:] if arguments is None else arguments)()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:  # whoever reads this has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.strerror is None:
            raise
        _fail(f"{error.filename or 'a file'}: {error.strerror}; choose another place, or mend this one", 2)
    except Exception as error:
        # By name, since their modules are heavy: whoever raised one has loaded it.
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & {"Interrupted", "WorkerLost", "BrokeOff"}:
            _fail(str(error), getattr(error, "status", 1))
        if "OutOfMemoryError" in names:
            _fail(_without_room(str(error)), 2)
        if "UserError" not in names:
            raise
        _fail(str(error), 2)


def _set_up() -> None:
    """Before torch is imported, which no command has done yet."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.update(SHORT_WAIT | os.environ)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.ERROR)


def _parse(arguments: list[str]) -> Callable[[], None]:
    """The call that the arguments mean; a mistake in them is told in one line instead of a box."""
    if arguments[:1] == ["--version"]:
        return _tell_version
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return build().cli(prog="backsight", description=DESCRIPTION, args=gather(arguments), config=PARSING)
    except SystemExit as stop:
        if stop.code == 2:
            from backsight.cli.mistakes import explain

            _fail(explain(arguments, said.getvalue()), 2)
        raise


def _tell_version() -> None:
    import backsight

    print(f"backsight {backsight.__version__}")


def gather(arguments: Sequence[str]) -> list[str]:
    """An option given twice means both its values: ``--inverse a --inverse b`` is ``--inverse a b``.

    Left as it is, the second would silently replace the first. Positional arguments stay where they are, in front.
    """
    groups: dict[str, list[str]] = {"": []}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            groups.setdefault(name, []).extend([value] if equals else [])
        else:
            groups[name].append(argument)
    return groups.pop("") + [each for option, values in groups.items() for each in (option, *values)]


def _without_room(words: str) -> str:
    """What to do where the device has no memory left, by torch's ``words``."""
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", words)
    more = f" ({asked[1]} more were asked for)" if asked else ""
    return (
        f"the device is out of memory{more}: train with a smaller --batch-size, with --micro-batch or with --memory "
        "(as 8GiB); elsewhere a smaller --size or --device cpu does with less"
    )


def _fail(message: str, status: int) -> None:
    print(f"backsight: {message}", file=sys.stderr)
    sys.exit(status)
