"""A view's state and its address say the same."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backsight.app.observatory import without_paths
from backsight.app.state import (
    VIEWS,
    Change,
    Compare,
    Diagnose,
    Look,
    State,
    from_query,
    read_cells,
    to_query,
    write_cells,
)
from backsight.core import UserError

WORDS = st.text(max_size=30)
STATES = st.one_of(
    st.builds(Look, model=WORDS, shows=WORDS, picture=WORDS, also=WORDS, at=WORDS, threshold=st.floats(0, 1)),
    st.builds(Change, model=WORDS, picture=WORDS, colour=WORDS, where=WORDS, brush=WORDS, tokens=WORDS, other=WORDS),
    st.builds(Compare, model=WORDS, picture=WORDS, other=WORDS, also=WORDS),
    st.builds(Diagnose, model=WORDS, kind=WORDS, label=WORDS, case=WORDS),
)


@given(STATES)
def test_an_address_gives_its_state_back(state: State) -> None:
    assert from_query(dict(parse_qsl(to_query(state), keep_blank_values=True))) == state


def test_an_address_is_short_and_readable() -> None:
    assert to_query(Look()) == "view=look"
    assert to_query(Look(picture="world-prior/3", at="encoder.2")) == "view=look&picture=world-prior/3&at=encoder.2"
    assert to_query(Change(tokens="3-6,12")) == "view=change&tokens=3-6,12"


def test_no_view_named_is_look_and_what_is_unknown_is_left_alone() -> None:
    assert from_query({"picture": "a/1", "utm_source": "mail"}) == Look(picture="a/1")
    assert list(VIEWS) == ["look", "change", "compare", "diagnose"]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"view": "stare"}, "there is no view 'stare': there are look, change, compare, diagnose"),
        ({"threshold": "nan"}, "'threshold' in the address is 'nan': it is to be a number from 0 to 1"),
        ({"threshold": "2"}, "'threshold' in the address is '2'"),
        ({"threshold": "much"}, "'threshold' in the address is 'much'"),
        ({"picture": "x" * 3000}, "'picture' in the address is too long: 3000 letters"),
    ],
)
def test_a_wrong_address_is_refused_in_one_line(query: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as error:
        from_query(query)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_cells_are_read_as_they_were_written(rows: int, columns: int, data: st.DataObject) -> None:
    cells = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)))
    cells = cells.view(rows, columns)
    assert torch.equal(read_cells(write_cells(cells), (rows, columns)), cells)


def test_cells_are_written_in_runs() -> None:
    cells = torch.zeros(2, 4, dtype=torch.bool)
    cells[0, 1:4] = cells[1, 2] = True
    assert write_cells(cells) == "1-3,6"


@pytest.mark.parametrize("text", ["8", "3-9", "5-3", "-1", "a", "1--2", "²"])
def test_cells_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no cell of a grid of 2 x 4"):
        read_cells(text, (2, 4))


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("cannot read /srv/data/coco/a.jpg: broken", "cannot read a.jpg: broken"),
        ("see view=look&picture=world-prior/3", "see view=look&picture=world-prior/3"),
        ("zoo/detr-prior has 1/2", "zoo/detr-prior has 1/2"),
        ("'/srv/me/runs/detr' has no chains", "'detr' has no chains"),
    ],
)
def test_folders_of_the_machine_are_not_told(said: str, shown: str) -> None:
    assert without_paths(said) == shown
