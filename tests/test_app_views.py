"""Views: what is shown follows from the state, nothing else; text is escaped, and weights are named."""

from __future__ import annotations

import io
import itertools
import json
from html.parser import HTMLParser
from urllib.parse import parse_qsl

import pytest
from PIL import Image

from backsight.app.ahead import work_ahead
from backsight.app.diagnosis import AT_ONCE, Diagnosis
from backsight.app.eyes import Eyes
from backsight.app.markup import tag, text
from backsight.app.observatory import Observatory, open_observatory
from backsight.app.render import OURS, render, render_html
from backsight.app.state import Change, Compare, Diagnose, Look, State, from_query
from backsight.core import UserError
from backsight.metrics import OUTCOMES
from small_observatory import small_observatory

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
def observatory() -> Observatory:
    return small_observatory()


class Reader(HTMLParser):
    """The words of a page, and whether its elements are closed in the order in which they were opened."""

    VOID = ("img", "input", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.open = "", []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            assert dict(attributes).get("alt") is not None
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.view)
def test_every_view_is_a_whole_page_a_picture_and_numbers(observatory: Observatory, state: State) -> None:
    view = render(observatory, state)
    page = Reader(view.html())
    assert page.open == []
    assert "Random weights: nothing here is what a trained model knows." in page.words
    address = json.loads(json.dumps(view.json()))["address"]
    assert from_query(dict(parse_qsl(address[1:]))) == view.state
    if state.view != "diagnose" or state.case or "None so far" not in page.words:
        with Image.open(io.BytesIO(view.plate())) as picture:
            assert picture.format == "PNG"
            assert picture.width > 500


def test_the_numbers_are_those_of_the_model(observatory: Observatory) -> None:
    found = render(observatory, Look(picture="world-prior/1", threshold=0.0)).json()
    (model,) = found["models"]
    assert model["random"] is True
    assert model["mse"]["backbone"] == [0, 0]
    assert len(model["answer"]) == observatory.choose("small detr").model.layout("prediction").tokens


def test_before_and_after_are_measured_from_the_untouched_picture(observatory: Observatory) -> None:
    found = render(observatory, Change(picture="world-prior/1", noise="zero", tokens="0-2")).json()
    assert found["before"]["mse"]["encoder"] == [0, 0]
    assert found["before"]["answer"] is not None
    assert found["changes"] == ["zero at backbone: 3 tokens"]


def test_names_are_escaped() -> None:
    assert text("b", "<script>") == "<b>&lt;script&gt;</b>"
    assert tag("a", href='"><script>') == '<a href="&quot;&gt;&lt;script&gt;"></a>'


def test_a_failure_of_ours_tells_nothing(observatory: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Eyes, *_: object) -> None:
        raise RuntimeError("/srv/secret/model.py broke")

    monkeypatch.setattr(Eyes, "see", fail)
    page = Reader(render_html(observatory, Look()))
    assert OURS[1:] in page.words
    assert "secret" not in page.words


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (Look(model="<b>"), "No model '<b>' is offered here"),
        (Look(picture="/etc/passwd"), "No pictures of the name '/etc' are offered here: take one of the examples."),
        (Look(shows="9"), "No seed '9': there are 0, 1, mean and spread."),
        (Diagnose(model="small vit"), "Small vit detects nothing: errors are told of detectors, as small detr."),
        (Diagnose(kind="odd"), "No type of error 'odd'"),
        (Diagnose(case="99999"), "There is no case 99999"),
    ],
)
def test_what_is_wrong_is_said_on_the_page(observatory: Observatory, state: State, says: str) -> None:
    page = Reader(render_html(observatory, state))
    assert says in page.words
    assert page.open == []


def test_errors_come_part_by_part_and_every_one_is_counted(observatory: Observatory) -> None:
    diagnosis = Diagnosis(observatory.choose("small detr"), num_images=AT_ONCE + 2)
    diagnosis.step()
    assert diagnosis.num_done == AT_ONCE
    diagnosis.step()
    diagnosis.step()
    assert diagnosis.is_done
    assert set(diagnosis.counts) == set(OUTCOMES)
    world = diagnosis.eyes.subject.data
    truths = sum(len(world[index].target.boxes) for index in range(diagnosis.num_done))
    assert diagnosis.counts["missed"] + diagnosis.counts["correct"] <= truths
    assert [each.number for each in diagnosis.cases] == list(range(len(diagnosis.cases)))
    for case in diagnosis.cases:
        assert world[case.place].id == case.labels["image"]
        assert ("input", "input") in case.pictures
    kinds = {each.kind for each in diagnosis.cases}
    assert kinds == {kind for kind in OUTCOMES if diagnosis.counts[kind]}
    assert all(each.kind == "missed" for each in diagnosis.chosen("missed"))


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"models": ["zoo/detr-prior", "zoo/vit-prior"], "chains": ["runs/a"]}, "one chain for 2 models"),
        ({"models": ["zoo/detr-prior"] * 3, "data": ["world"] * 2}, "2 times data for 3 models"),
    ],
)
def test_what_is_named_has_to_fit(named: dict[str, list[str]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        open_observatory(**named)


@pytest.mark.parametrize(
    "state", [Look(also="small vit"), Compare(), Change(colour="blue")], ids=lambda state: state.view
)
def test_long_work_is_told_and_what_is_done_is_kept(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, seconds = small_observatory(), itertools.count()
    told = list(work_ahead(slow, state, clock=lambda: float(next(seconds))))
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(set(done))
    assert set(totals) == {totals[0]}
    assert done[-1] == totals[0] - 1
    assert list(work_ahead(slow, state, clock=lambda: 0.0)) == []  # of quick work nothing is told
    for eyes in slow.eyes.values():
        monkeypatch.setattr(eyes.subject, "invert", None)
    render(slow, state).html()  # nothing is reconstructed again
