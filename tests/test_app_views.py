"""Views: what is shown follows from the state, which is its address; text is escaped, and weights are named."""

from __future__ import annotations

import io
import itertools
import json
from html.parser import HTMLParser
from urllib.parse import parse_qsl

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backsight.app.error_cases import AT_ONCE, Diagnosis
from backsight.app.model_view import Answer, ModelView
from backsight.app.rendering import part, templates
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
from backsight.app.views import OUR_FAILURE, reconstruct_ahead, render, render_html, without_paths
from backsight.app.workspace import Workspace, open_workspace
from backsight.core import UserError
from backsight.metrics import OUTCOMES
from small_app import small_workspace

# ---- addresses

WORDS = st.text(max_size=30)
ANY_STATE = st.one_of(
    st.builds(Look, model=WORDS, shows=WORDS, picture=WORDS, also=WORDS, at=WORDS, threshold=st.floats(0, 1)),
    st.builds(Change, model=WORDS, picture=WORDS, colour=WORDS, where=WORDS, brush=WORDS, tokens=WORDS, other=WORDS),
    st.builds(Compare, model=WORDS, picture=WORDS, other=WORDS, also=WORDS),
    st.builds(Diagnose, model=WORDS, kind=WORDS, label=WORDS, case=WORDS),
)


def state_of(query: str) -> State:
    return from_query(dict(parse_qsl(query, keep_blank_values=True)))


@given(ANY_STATE)
def test_an_address_gives_its_state_back(state: State) -> None:
    assert state_of(to_query(state)) == state


def test_an_address_is_short_and_readable() -> None:
    assert to_query(Look()) == "view=look"
    assert to_query(Look(picture="world-prior/3", at="encoder.2")) == "view=look&picture=world-prior/3&at=encoder.2"
    assert to_query(Change(tokens="3-6,12")) == "view=change&tokens=3-6,12"


def test_an_address_without_a_view_is_look() -> None:
    assert from_query({"picture": "a/1", "utm_source": "mail"}) == Look(picture="a/1")
    assert list(VIEWS) == ["look", "change", "compare", "diagnose"]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"view": "stare"}, "no view 'stare'"),
        ({"threshold": "nan"}, "'nan': it is to be a number from 0 to 1"),
        ({"threshold": "2"}, "'2': it is to be a number from 0 to 1"),
        ({"threshold": "much"}, "'much': it is to be a number from 0 to 1"),
        ({"picture": "x" * 3000}, "'picture' in the address is too long"),
    ],
)
def test_a_wrong_address_is_refused(query: dict[str, str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        from_query(query)


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_cells_are_read_as_they_were_written(rows: int, columns: int, data: st.DataObject) -> None:
    cells = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)))
    assert torch.equal(read_cells(write_cells(cells), (rows, columns)), cells.view(rows, columns))


@pytest.mark.parametrize("text", ["8", "3-9", "5-3", "-1", "a", "1--2", "²"])
def test_cells_outside_the_grid_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="no cell of a grid of 2 x 4"):
        read_cells(text, (2, 4))


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("cannot read /srv/data/coco/a.jpg: broken", "cannot read a.jpg: broken"),
        ("see view=look&picture=world-prior/3", "see view=look&picture=world-prior/3"),
        ("zoo/detr-prior has 1/2", "zoo/detr-prior has 1/2"),
        ("'/srv/me/runs/detr' has no chains", "'detr' has no chains"),
    ],
)
def test_messages_reveal_no_folders(message: str, shown: str) -> None:
    assert without_paths(message) == shown


# ---- pages, numbers, files

STATES = [
    Look(),
    Look(picture="world-prior/2", also="small vit", shows="1", at="encoder.0"),
    Look(picture="world-prior-single/1", shows="spread"),
    Change(),
    Change(colour="green", tokens="1,3-4", noise="zero"),
    Compare(),
    Compare(also="small vit"),
    Diagnose(),
    Diagnose(case="0"),
]


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return small_workspace()


class Reader(HTMLParser):
    """The words of a page, and whether its elements are closed in the order in which they were opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.open = "", []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            assert dict(attrs).get("alt") is not None
        if tag not in ("img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.view)
def test_every_view_is_a_page_a_picture_and_numbers(workspace: Workspace, state: State) -> None:
    view = render(workspace, state)
    page = Reader(view.html())
    assert page.open == []
    assert "Random weights" in page.words
    assert state_of(json.loads(json.dumps(view.json()))["address"][1:]) == view.state
    if state.view != "diagnose" or state.case or "None so far" not in page.words:
        with Image.open(io.BytesIO(view.png())) as picture:
            assert picture.format == "PNG"
            assert picture.width > 500


def test_the_numbers_are_those_of_the_model(workspace: Workspace) -> None:
    (model,) = render(workspace, Look(picture="world-prior/1", threshold=0.0)).json()["models"]
    assert model["random"] is True
    assert model["mse"]["backbone"] == [0, 0]
    assert len(model["answer"]) == workspace.model("small detr").model.layout("prediction").tokens


def test_errors_after_a_change_are_from_the_unchanged_picture(workspace: Workspace) -> None:
    found = render(workspace, Change(picture="world-prior/1", colour="red", noise="zero", tokens="0-2")).json()
    assert found["before"]["mse"]["encoder"] == [0, 0]
    assert min(found["after"]["mse"]["encoder"]) > 0
    assert found["changes"] == ["red: the whole picture", "zero at backbone: 3 tokens"]


def test_names_are_escaped(workspace: Workspace) -> None:
    answers = templates().get_template("macros.html").module.answer_list([Answer("<script>", 0.5)])
    chooser = part("chooser", ['"><script>'], "picture", "Picture")
    for page in (str(answers), chooser, render_html(workspace, Look(model="<script>"))):
        assert "<script>" not in page
        assert "&lt;script&gt;" in page


def test_a_failure_of_ours_reveals_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ModelView, *_: object) -> None:
        raise RuntimeError("/srv/secret/model.py broke")

    monkeypatch.setattr(ModelView, "run", fail)
    page = Reader(render_html(workspace, Look()))
    assert OUR_FAILURE[1:] in page.words
    assert "secret" not in page.words


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (Look(model="<b>"), "No model '<b>' is offered here"),
        (Look(picture="/etc/passwd"), "No pictures of the name '/etc' are offered here"),
        (Look(shows="9"), "No seed '9': there are 0, 1, mean and spread."),
        (Diagnose(model="small vit"), "Small vit detects nothing"),
        (Diagnose(kind="odd"), "No type of error 'odd'"),
        (Diagnose(case="99999"), "There is no case 99999"),
    ],
)
def test_what_is_wrong_stands_on_the_page(workspace: Workspace, state: State, reason: str) -> None:
    page = Reader(render_html(workspace, state))
    assert reason in page.words
    assert page.open == []


# ---- long work


def test_errors_are_found_step_by_step_and_every_one_is_counted(workspace: Workspace) -> None:
    diagnosis = Diagnosis(workspace.model("small detr"), num_images=AT_ONCE + 2)
    diagnosis.step()
    assert diagnosis.num_done == AT_ONCE
    diagnosis.step()
    diagnosis.step()
    assert diagnosis.is_done
    world = diagnosis.model.subject.data
    truths = sum(len(world[index].target.boxes) for index in range(diagnosis.num_done))
    assert diagnosis.counts["missed"] + diagnosis.counts["correct"] <= truths
    assert [each.number for each in diagnosis.cases] == list(range(len(diagnosis.cases)))
    for case in diagnosis.cases:
        assert world[case.index].id == case.labels["image"]
        assert ("input", "input") in case.crops
    assert {each.kind for each in diagnosis.cases} == {kind for kind in OUTCOMES if diagnosis.counts[kind]}
    assert all(each.kind == "missed" for each in diagnosis.select("missed"))


@pytest.mark.parametrize(
    "state", [Look(also="small vit"), Compare(), Change(colour="blue")], ids=lambda state: state.view
)
def test_long_work_reports_progress_and_is_kept(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, seconds = small_workspace(), itertools.count()
    reports = list(reconstruct_ahead(workspace, state, clock=lambda: float(next(seconds))))
    done, totals = zip(*reports, strict=True)
    assert list(done) == sorted(set(done))
    assert set(totals) == {done[-1] + 1}
    assert list(reconstruct_ahead(workspace, state, clock=lambda: 0.0)) == []  # nothing is reported of quick work
    for model in workspace.models.values():
        monkeypatch.setattr(model.subject, "invert", None)
    render(workspace, state).html()  # nothing is reconstructed again


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ({"models": ["zoo/detr-prior", "zoo/vit-prior"], "chains": ["runs/a"]}, "1 times chain for 2 models"),
        ({"models": ["zoo/detr-prior"] * 3, "data": ["world"] * 2}, "2 times data for 3 models"),
    ],
)
def test_options_are_given_for_each_model(named: dict[str, list[str]], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        open_workspace(**named)
