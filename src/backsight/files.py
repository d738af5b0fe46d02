"""Files written whole: under a temporary name, flushed to the disk, then renamed; tensors read into aligned memory."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Buffer

if TYPE_CHECKING:
    from torch import Tensor, nn

ALIGNMENT = 64
"""Bytes: torch's own memory begins at multiples of this, tensors of a mapped file anywhere."""


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call ``write`` with a temporary path beside ``path``, then put that file in place of ``path``.

    Whoever reads ``path`` sees the old content or the new one, never a part; a failed ``write`` leaves nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=f".tmp{path.suffix}")
    except OSError as error:  # it names the temporary file, of which nobody knows
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:  # a write to an open file does not say which
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in aligned memory: kernels round otherwise, and some are slower, elsewhere.

    Raises:
        SafetensorError: it is no such file, or cut short.
    """
    from safetensors.torch import load_file

    return {name: _aligned(tensor) for name, tensor in load_file(path).items()}


def align(module: nn.Module) -> None:
    """Copy those parameters and buffers of ``module`` to aligned memory that a library has left in a mapped file."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = _aligned(tensor.data)  # the tensor stays the same object: what is tied stays tied


def _aligned(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


class Remembering(io.FileIO):
    """A file that keeps the error of a failed write, for writers that report it as something else."""

    error: OSError | None = None

    def write(self, data: Buffer, /) -> int:
        """Write all of ``data``."""
        try:
            view = memoryview(data).cast("B")
            written = 0
            while written < len(view):
                written += super().write(view[written:]) or 0
        except OSError as error:
            self.error = error
            raise
        return written


def write_checkpoint(path: str | Path, state: Any) -> Path:
    """Write ``state`` with ``torch.save``, whole. A full disk is an ``OSError``, which torch alone would hide."""
    import torch

    def write(temporary: Path) -> None:
        with Remembering(temporary, "w") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                raise file.error or error from error

    return write_whole(path, write)


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write ``content``, whole."""
    return write_whole(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8, whole."""
    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON, whole. NaN is refused: it is not JSON."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
