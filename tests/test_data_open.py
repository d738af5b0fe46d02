"""What a new user types, and what is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from backsight.core import Pixels, UserError
from backsight.data import open_data

PIXELS = Pixels((16, 24))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("floder:photos", "did you mean 'folder:photos'?"),
        ("COCO:/data", "did you mean 'coco:/data'?"),
        ("huggingface", "data is one of coco:DIR"),
        ("pics/a.parquet", "say 'parquet:pics/a.parquet'"),
        ("", "data is one of coco:DIR"),
        ("folder:", "does not say where the data is"),
        ("coco", "does not say where the data is"),
        ("world:nowhere", "'nowhere' in 'world:nowhere' is no world"),
    ],
)
def test_specifications_that_are_none(spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        open_data(spec, PIXELS)
    assert message in str(caught.value)


def test_a_bare_folder_gets_its_word(tmp_path: Path) -> None:
    for inside, word in {"a.png": "folder", "b.parquet": "parquet", "annotations/c.json": "coco"}.items():
        (tmp_path / inside).parent.mkdir(exist_ok=True)
        (tmp_path / inside).touch()
        with pytest.raises(UserError, match=f"say '{word}:{tmp_path}'"):
            open_data(str(tmp_path), PIXELS)
