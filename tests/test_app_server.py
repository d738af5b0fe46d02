"""The server: what it answers, what it refuses, and that it says nothing about the machine it is on."""

from __future__ import annotations

import gc
import io
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backsight.app.guard import MOST, is_open
from backsight.app.intake import MAX_BYTES
from backsight.app.observatory import Observatory
from backsight.app.serve import listen
from backsight.core import UserError
from small_observatory import SVG, bomb, png, small_observatory

BINARY = {"content-type": "application/octet-stream"}
LINK = "download/look.json?picture="


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    """After all else: servers leave sockets and loops to the garbage collector, which may not complain of it later."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(scope="module")
def observatory() -> Observatory:
    return small_observatory()


@pytest.fixture(scope="module")
def visitor(observatory: Observatory) -> Iterator[Any]:
    """A client of the whole application; what libraries warn of on the way is theirs."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from starlette.testclient import TestClient

        from backsight.app.serve import build_app

        with TestClient(build_app(observatory)) as client:
            yield client


pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_picture_in_and_its_numbers_out(visitor: Any) -> None:
    answer = visitor.post("/pictures", content=png(), headers=BINARY)
    assert answer.status_code == 200
    found = visitor.get(LINK + answer.json()["picture"]).json()
    assert found["picture"] == answer.json()["picture"]
    picture = visitor.get(f"/download/look.png?picture={answer.json()['picture']}")
    with Image.open(io.BytesIO(picture.content)) as image:
        assert image.format == "PNG"


def test_ten_visitors_in_parallel_get_their_own(visitor: Any) -> None:
    def visit(index: int) -> tuple[str, Any]:
        answer = visitor.post("/pictures", content=png((25 * index, 0, 0)), headers=BINARY)
        name = answer.json()["picture"]
        return name, visitor.get(LINK + name).json()

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(visit, range(10)))
    assert len({name for name, _ in found}) == 10
    for name, numbers in found:
        assert numbers["picture"] == name
        assert numbers == visitor.get(LINK + name).json()
    assert len({str(numbers["models"][0]["mse of the mean image"]) for _, numbers in found}) == 10


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (bomb(), "too large"),
        (b"words in a file called cat.png", "no picture that can be read"),
        (SVG, "no picture that can be read"),
        (png()[:60], "cannot read this picture"),
        (bytes(MAX_BYTES + 10), "at most 20 MB"),
    ],
    ids=["bomb", "text", "svg", "truncated", "heavy"],
)
def test_what_is_no_picture_is_refused_and_the_page_lives_on(visitor: Any, content: bytes, says: str) -> None:
    answer = visitor.post("/pictures", content=content, headers=BINARY)
    assert answer.status_code == 400
    assert says in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert visitor.post("/pictures", content=png(), headers=BINARY).status_code == 200


def test_a_form_of_another_site_cannot_send_pictures(visitor: Any) -> None:
    answer = visitor.post("/pictures", files={"file": ("a.png", png())})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=pyproject.toml",
        "/gradio_api/proxy=http://example.org",
        "/gradio_api/component_server",
        "/gradio_api/info",
        "/gradio_api/call/anything",
        "/file=/etc/passwd",
        "/docs",
        "/openapi.json",
        "/download/../pyproject.toml",
        "/download/look.py",
        "/static/../../../../etc/passwd",
        "/assets/..%2f..%2f..%2fetc/passwd",
        "/monitoring",
        "/login",
    ],
)
def test_nothing_else_is_served(visitor: Any, path: str) -> None:
    assert visitor.get(path).status_code == 404
    assert visitor.post(path, content=b"x").status_code in (404, 405)


def test_addresses_that_climb_are_closed() -> None:
    assert is_open("/assets/index.js")
    assert not is_open("/assets/../secret")
    assert not is_open("/assets/..\\secret")
    assert not is_open("/gradio_api/uploads")


def test_too_much_is_refused(visitor: Any) -> None:
    assert visitor.post("/gradio_api/queue/join", content=bytes(MOST + 1)).status_code == 413


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/download/look.json", "/download/look.png?shows=99"])
def test_no_answer_names_a_folder_of_the_machine(visitor: Any, path: str) -> None:
    answer = visitor.get(path)
    for folder in (Path(__file__).parent.parent, Path.home(), Path(tempfile.gettempdir())):
        assert str(folder) not in answer.text.replace("https://", "")
    assert "site-packages" not in answer.text


def test_a_browser_is_told_to_load_from_here_alone(visitor: Any) -> None:
    headers = visitor.get("/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_what_cannot_be_drawn_is_told(visitor: Any) -> None:
    answer = visitor.get("/download/look.json?picture=nowhere/1")
    assert answer.status_code == 400
    assert answer.text == "no pictures of the name 'nowhere' are offered here: take one of the examples"
    assert visitor.get("/download/stare.png").status_code == 404


def test_gradio_reports_to_nobody(visitor: Any) -> None:
    config = visitor.get("/config").json()
    assert config["analytics_enabled"] is False


def test_an_address_that_cannot_be_had_is_one_line() -> None:
    taken = listen("127.0.0.1", 0)
    with (
        taken,
        pytest.raises(UserError, match=r"cannot listen at 127.0.0.1:\d+: address already in use; choose another"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="port must be 0-65535"):
        listen("127.0.0.1", 99_999_999)
    with pytest.raises(UserError, match="choose another port, or host"):
        listen("no such host", 0)
