"""The server: what it answers, what it refuses, and that strangers learn nothing and hold nothing."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backsight.app import security
from backsight.app.security import MAX_EVENT, MAX_UPLOAD, Guard, is_open
from backsight.app.serve import Loader, listen
from backsight.app.workspace import Workspace
from backsight.core import UserError
from small_app import grey_png, png, small_workspace

pytestmark = pytest.mark.filterwarnings("ignore")  # what libraries warn of is theirs

BINARY = {"content-type": "application/octet-stream"}
LINK = "download/look.json?picture="
JOIN = "/gradio_api/queue/join"


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """After all else: servers leave sockets and loops to the garbage collector, which may not complain of it later."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return small_workspace()


@pytest.fixture(scope="module")
def client(workspace: Workspace) -> Iterator[Any]:
    """A client of the whole application."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from starlette.testclient import TestClient

        from backsight.app.serve import build_app

        guard = Guard(build_app(workspace), allowed_hosts=["looking.example.org"], root_path="/sub")
        with TestClient(guard, base_url="http://localhost") as client:
            yield client


# ---- pictures in, pages and files out


def test_a_picture_in_and_its_files_out(client: Any) -> None:
    answer = client.post("/pictures", content=png(), headers=BINARY)
    assert answer.status_code == 200
    name = answer.json()["picture"]
    assert client.get(LINK + name).json()["picture"] == name
    with Image.open(io.BytesIO(client.get(f"/download/look.png?picture={name}").content)) as image:
        assert image.format == "PNG"


def test_visitors_in_parallel_get_their_own(client: Any) -> None:
    def visit(index: int) -> tuple[str, Any]:
        name = client.post("/pictures", content=png((25 * index, 0, 0)), headers=BINARY).json()["picture"]
        return name, client.get(LINK + name).json()

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(visit, range(10)))
    assert len({name for name, _ in found}) == 10
    assert all(numbers["picture"] == name for name, numbers in found)
    assert len({str(numbers["models"][0]["mse of the mean image"]) for _, numbers in found}) == 10


def test_the_first_page_is_small_and_examples_come_on_their_own(client: Any, workspace: Workspace) -> None:
    page = client.get("/")
    assert len(page.content) < 300_000
    with Image.open(io.BytesIO(client.get("/examples/1").content)) as image:
        assert max(image.size) <= 120
    assert client.get(f"/examples/{len(workspace.examples)}").status_code == 404
    assert client.get("/examples/" + "9" * 5000).status_code == 404


def test_the_page_is_at_a_subpath_whether_the_proxy_cuts_it_or_not(client: Any) -> None:
    for path in ("/config", "/sub/config"):
        assert client.get(path).json()["root"].startswith("http://localhost")
    assert client.get("/sub/examples/0").status_code == client.get("/sub/").status_code == 200
    assert client.get("/sub", follow_redirects=False).headers["location"] == "/sub/"
    assert client.get("/sub/login").status_code == 404


def test_what_is_no_picture_is_refused_and_the_page_lives_on(client: Any) -> None:
    for content, reason in ((grey_png(), "too large"), (b"words", "no picture that can be read")):
        answer = client.post("/pictures", content=content, headers=BINARY)
        assert answer.status_code == 400
        assert reason in answer.json()["error"]
    assert client.post("/pictures", content=png(), headers=BINARY).status_code == 200


def test_too_much_is_refused(client: Any) -> None:
    assert client.post("/pictures", content=bytes(MAX_UPLOAD + 1), headers=BINARY).status_code == 413
    assert client.post(JOIN, content=bytes(MAX_EVENT + 1)).status_code == 413


def test_a_form_of_another_site_cannot_send_pictures(client: Any) -> None:
    assert client.post("/pictures", files={"file": ("a.png", png())}).status_code == 400


# ---- hosts and addresses


@pytest.mark.parametrize("host", ["localhost", "localhost:7860", "127.0.0.1", "[::1]:80", "Looking.Example.org"])
def test_own_hosts_are_answered(client: Any, host: str) -> None:
    assert client.get("/status", headers={"host": host}).status_code == 200
    assert client.get("/status", headers={"host": host, "origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize("host", ["rebound.example.com", "localhost.example.com", "10.0.0.7", "", "[", "evil:7860"])
def test_other_hosts_are_not(client: Any, host: str) -> None:
    assert client.get("/status", headers={"host": host}).status_code == 421


def test_any_number_of_the_machine_is_its_own_where_it_listens_everywhere() -> None:
    assert ask(Guard(answer_ok, "0.0.0.0"), host=b"10.0.0.7:7860") == 200
    assert ask(Guard(answer_ok, "0.0.0.0"), host=b"rebound.example.com") == 421


@pytest.mark.parametrize("origin", ["http://evil.example.com", "http://localhost:3000", "null", "http://["])
def test_other_sites_are_not_answered(client: Any, origin: str) -> None:
    assert client.post("/pictures", content=png(), headers={**BINARY, "origin": origin}).status_code == 403


def test_a_proxy_may_hand_on_another_host(client: Any) -> None:
    headers = {"host": "127.0.0.1:7860", "origin": "https://looking.example.org"}
    assert client.get("/status", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *(f"/gradio_api/{name}" for name in ("upload", "component_server", "info", "call/anything")),
        *("/gradio_api/file=/etc/passwd", "/gradio_api/file=pyproject.toml", "/gradio_api/proxy=http://example.org"),
        *("/file=/etc/passwd", "/docs", "/openapi.json", "/monitoring", "/login", "/download/look.py"),
        *("/download/../pyproject.toml", "/static/../../../../etc/passwd", "/assets/..%2f..%2f..%2fetc/passwd"),
    ],
)
def test_nothing_else_is_served(client: Any, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.post(path, content=b"x").status_code in (404, 405)


def test_addresses_that_climb_are_closed() -> None:
    assert is_open("/assets/index.js")
    assert not is_open("/assets/../secret")
    assert not is_open("/assets/..\\secret")
    assert not is_open("/gradio_api/uploads")


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/download/look.json", "/download/look.png?shows=99"])
def test_no_answer_names_a_folder_of_the_machine(client: Any, path: str) -> None:
    answer = client.get(path)
    for folder in (Path(__file__).parent.parent, Path.home(), Path(tempfile.gettempdir())):
        assert str(folder) not in answer.text.replace("https://", "")
    assert "site-packages" not in answer.text


def test_a_browser_loads_from_here_alone_and_gradio_reports_to_nobody(client: Any) -> None:
    headers = client.get("/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert client.get("/config").json()["analytics_enabled"] is False


def test_a_file_that_cannot_be_drawn_is_refused(client: Any) -> None:
    answer = client.get("/download/look.json?picture=nowhere/1")
    assert answer.status_code == 400
    assert answer.text.startswith("no pictures of the name 'nowhere'")
    assert client.get("/download/stare.png").status_code == 404


# ---- events


def look_event(client: Any) -> dict[str, Any]:
    """An event as the page sends it: the view Look is rendered again."""
    config = client.get("/config").json()
    labels = {each["id"]: each["props"].get("label") for each in config["components"]}
    found = next(
        each
        for each in config["dependencies"]
        if "Least score of a detection" in [labels[part] for part in each["inputs"]]
    )
    values = ["world-prior/1", "small detr", "", "mean", 0.5, ""]
    return {"data": values, "fn_index": found["id"], "session_hash": "abc", "event_data": None, "trigger_id": None}


def test_an_event_of_the_page_is_taken(client: Any) -> None:
    assert client.post(JOIN, json=look_event(client)).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        *({"fn_index": each} for each in (9999, "1", None, True)),
        *({"data": each} for each in (None, [], "words")),
        *({"data": [each, "small detr", "", "mean", 0.5, ""]} for each in ({"a": 1}, "x" * 5000)),
        {"data": ["", "gpt", "", "mean", 0.5, ""]},
        {"data": ["", "small detr", 7, "mean", 0.5, ""]},
        *({"data": ["", "small detr", "", "mean", each, ""]} for each in ("much", 1e308, -1, True)),
        *({"session_hash": each} for each in (None, {"a": 1})),
    ],
    ids=str,
)
def test_wrong_events_are_refused_and_leave_no_traceback(client: Any, wrong: Any, capfd: Any) -> None:
    answer = client.post(JOIN, json={**look_event(client), **wrong})
    assert 400 <= answer.status_code < 500
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"fn_index": NaN}'])
def test_events_that_are_no_json_are_refused(client: Any, content: bytes) -> None:
    assert client.post(JOIN, content=content).status_code == 422


# ---- slow and many senders, without a server: the guard alone


async def answer_ok(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def request(guard: Guard, parts: list[bytes], pause: float = 0, host: bytes = b"localhost") -> int:
    """The status of the answer to a request whose body comes in parts, with pauses."""
    coming = [*parts]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": coming.pop(0), "more_body": bool(coming)}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/pictures", "headers": [(b"host", host)]}
    await guard(scope, receive, send)
    return sent[0]["status"]


def ask(guard: Guard, parts: list[bytes] | None = None, **options: Any) -> int:
    return asyncio.run(request(guard, parts or [b""], **options))


def test_slow_senders_are_sent_away_and_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "STEP_SECONDS", 0.2)
    guard = Guard(answer_ok)

    async def meet() -> tuple[list[int], int]:
        slow = [asyncio.create_task(request(guard, [b"x"] * 1000, pause=0.01)) for _ in range(40)]
        await asyncio.sleep(0.05)
        honest = await request(guard, [bytes(60_000)] * 4, pause=0.01)
        assert not any(each.done() for each in slow)
        return await asyncio.gather(*slow), honest

    slow, honest = asyncio.run(meet())
    assert set(slow) == {408}
    assert honest == 200
    assert guard.received == 0


def test_memory_for_what_arrives_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "MAX_RECEIVED", 130_000)
    guard = Guard(answer_ok)

    async def meet() -> list[int]:
        return await asyncio.gather(*(request(guard, [bytes(50_000), b"end"], pause=0.01) for _ in range(4)))

    assert sorted(asyncio.run(meet())) == [200, 200, 503, 503]
    assert guard.received == 0
    assert ask(guard, [bytes(100_000)]) == 200


# ---- start and end


def test_an_address_that_cannot_be_had_is_one_line() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="address already in use; choose another"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="port must be 0-65535"):
        listen("127.0.0.1", 99_999_999)
    with pytest.raises(UserError, match="choose another port, or host"):
        listen("no such host", 0)


def test_while_it_loads_the_page_states_what() -> None:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    loaded = FastAPI()
    loaded.add_api_route("/status", lambda: {"ready": True})

    def load(report: Callable[[str], None]) -> FastAPI:
        report("<a model>")
        time.sleep(0.3)
        return loaded

    with TestClient(Loader(load, on_failure=lambda: None)) as client:
        time.sleep(0.1)
        assert "Loading &lt;a model&gt;" in client.get("/").text
        assert client.get("/status").json() == {"ready": False, "loading": "<a model>"}
        assert client.get("/download/look.json").status_code == 503
        time.sleep(0.5)
        assert client.get("/status").json() == {"ready": True}


def test_what_cannot_be_loaded_ends_the_server() -> None:
    from starlette.testclient import TestClient

    stopped = []
    loader = Loader(lambda _: open_nothing(), on_failure=lambda: stopped.append(True))
    with TestClient(loader):
        time.sleep(0.1)
    assert stopped == [True]
    assert isinstance(loader.failure, UserError)


def open_nothing() -> Any:
    raise UserError("there is no such model")


@pytest.mark.slow
def test_an_interrupt_ends_the_server_with_a_page_open() -> None:
    command = [sys.executable, "-m", "backsight", "app", "--model", "zoo/vit-prior", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        address = re.match("http.*", server.stdout.readline())[0]
        for _ in range(600):
            if json.load(urllib.request.urlopen(f"{address}/status"))["ready"]:
                break
            time.sleep(0.1)
        page = urllib.request.urlopen(f"{address}/gradio_api/heartbeat/abc")
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 130
        assert "Traceback" not in server.stderr.read()
        page.close()
