"""The folder that reconstructions go to: what an earlier call left there, told from the user's own files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from backsight.core import UserError
from backsight.report.results import PictureRow, Results
from backsight.training import RunFolder

PICTURE = re.compile(r"pictures/[a-z0-9-]*-[0-9a-f]{8}/[a-z0-9-]*-[0-9a-f]{8}\.\d+\.png")
"""The names that :func:`~backsight.report.results.save_pictures` gives."""


def check_output(out: Path, images: Sequence[str | Path] = ()) -> None:
    """Refuse to write where something else than reconstructions lies.

    Args:
        out: the folder to write to; it need not exist.
        images: what is to be reconstructed: files and folders.

    Raises:
        UserError: a file, the folder of a run or a chain, a folder with one of ``images``, or with files that
            would be written over and are not ours.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out names a folder")
    if RunFolder(out).config() or (out / "chain.json").is_file() or any(out.glob("chains/*/chain.json")):
        raise UserError(f"{out} is the folder of a run: choose another --out for what is seen through it")
    for image in map(Path, images):
        if out.resolve() in (image.resolve(), *image.resolve().parents):
            raise UserError(f"{image}, which is to be reconstructed, lies in {out}: choose another --out")
    if foreign := _not_ours(out):
        raise UserError(f"{out} has a '{foreign}' that no reconstruction wrote: choose another --out")


def _not_ours(out: Path) -> str | None:
    """What would be written over, and no earlier call has written."""
    if (out / "results.json").exists():
        try:
            Results.load(out / "results.json")
        except (UserError, ValueError):
            return "results.json"
        return None
    strange = next((name for name in ("report.html", "figure.png") if (out / name).exists()), None)
    pictures = [path for path in (out / "pictures").rglob("*") if not path.is_dir()]
    known = all(_is_picture(path.relative_to(out).as_posix()) for path in pictures)  # by a call that was interrupted
    return strange or (None if known else "pictures")


def pictures_of(out: Path) -> set[str]:
    """The pictures that ``results.json`` in ``out`` names, none where there is none."""
    return _names(Results.load(out).pictures) if (out / "results.json").is_file() else set()


def drop_pictures(out: Path, earlier: Iterable[str], rows: Sequence[PictureRow]) -> None:
    """Remove the ``earlier`` pictures that are none of ``rows``, and the folders that are empty then."""
    for name in set(earlier) - _names(rows):
        (out / name).unlink(missing_ok=True)
        with suppress(OSError):  # it holds other pictures
            (out / name).parent.rmdir()


def _names(rows: Sequence[PictureRow]) -> set[str]:
    """Of the pictures in ``rows``; a name that we do not give leads somewhere else."""
    return {name for row in rows for names in row.images.values() for name in names if _is_picture(name)}


def _is_picture(name: str) -> bool:
    return PICTURE.fullmatch(name) is not None
