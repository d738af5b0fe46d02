"""The commands. Each is one public function, imported when it is called, so that ``--help`` is quick."""

from backsight.cli.main import main

__all__ = ["main"]
