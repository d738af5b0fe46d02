"""The server, on this machine alone by default: first a page that states what is loaded, then gradio's page."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from backsight.validation import UserError

if TYPE_CHECKING:  # models and gradio take seconds to import, and are when the server listens already
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

    from backsight.app.workspace import Workspace

Load = Callable[[Callable[[str], None]], "FastAPI"]
"""Loads the application, and calls its argument with what comes next."""

HOST, PORT = "127.0.0.1", 7860

GRACE = 2
"""Seconds that open requests have when the server is interrupted."""

MAX_CONNECTIONS = 256


def serve(
    models: Sequence[str] = (),
    chains: Sequence[str] = (),
    data: Sequence[str] = (),
    *,
    host: str = HOST,
    port: int = PORT,
    allow_host: Sequence[str] = (),
    root_path: str = "",
    device: str = "auto",
) -> None:
    """Serve the web page until it is interrupted.

    Args:
        models: forward models; those that the chains were trained on by default, the zoo's if there are no chains.
        chains: for each model a run, one chain, or a name; those that ship with the model by default.
        data: where example pictures and the errors come from, one for all models or one for each; what the chains were
            trained on by default.
        host: the address to listen at; 127.0.0.1 lets nobody in from outside.
        port: the port; 0 for any that is free.
        allow_host: names under which the page may be asked for, beside this machine's own: those of a proxy.
        root_path: where a proxy has the page, as ``/backsight``; at the root by default.
        device: where to compute.

    Raises:
        UserError: gradio is not installed, the address cannot be had, or something that is named is not there.
    """
    if find_spec("gradio") is None:
        raise UserError("the web page needs gradio: run `make app` in a checkout, or pip install 'gradio>=6.24,<7'")
    if root_path and not root_path.startswith("/"):
        raise UserError(f"--root-path is {root_path}: it has to begin with /, as /backsight")

    def load(report: Callable[[str], None]) -> FastAPI:
        report("the libraries")
        from backsight.app.workspace import open_workspace

        workspace = open_workspace(models, chains, data, device, report)
        report("the page")
        return build_app(workspace, host, port, root_path)

    with listen(host, port) as place:
        port = place.getsockname()[1]
        print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        _run(load, place, host, allow_host, root_path)


def _run(load: Load, place: socket.socket, host: str, allow_host: Sequence[str], root_path: str) -> None:
    """Answer at ``place`` from now on, while ``load`` loads the application and with it afterwards."""
    import uvicorn

    from backsight.app.security import Guard

    def stop() -> None:
        server.should_exit = True

    def interrupt(sig: int, frame: Any) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # requests that are cut off now are no news
        uvicorn.Server.handle_exit(server, sig, frame)

    loader = Loader(load, on_failure=stop)
    settings = uvicorn.Config(
        Guard(loader, host, allow_host, root_path),
        log_level="warning",
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )
    server = uvicorn.Server(settings)
    server.handle_exit = interrupt
    server.run(sockets=[place])
    if loader.failure is not None:
        raise loader.failure


def listen(host: str, port: int) -> socket.socket:
    """The address, taken before anything is loaded.

    Raises:
        UserError: it is in use, or there is no such address or port.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        cause = os.strerror(number).lower() if number and number > 0 else str(error).removeprefix("bind(): ")
        raise UserError(f"cannot listen at {host}:{port}: {cause}; choose another --port, or --host") from error


class Loader:
    """An ASGI application that states what is loaded, and is the one that was loaded from then on.

    Args:
        load: loads it, in a thread of its own.
        on_failure: is called when that fails; :attr:`failure` is why.
    """

    def __init__(self, load: Load, on_failure: Callable[[], None]) -> None:
        from starlette.applications import Starlette
        from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
        from starlette.routing import Route

        self._load, self._on_failure = load, on_failure
        self.loading: str = ""
        self.failure: BaseException | None = None
        self.app: ASGIApp | None = None

        async def page(_: Any) -> HTMLResponse:
            return HTMLResponse(_loading_page(self.loading))

        async def status(_: Any) -> JSONResponse:
            return JSONResponse({"ready": False, "loading": self.loading})

        async def other(_: Any) -> PlainTextResponse:
            return PlainTextResponse(f"loading {self.loading}", 503, {"retry-after": "2"})

        routes = [Route("/", page), Route("/status", status), Route("/{path:path}", other, methods=["GET", "POST"])]
        self._waiting = Starlette(routes=routes, lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the life of the server."""
        ready = self.app if scope["type"] == "http" else None
        await (ready or self._waiting)(scope, receive, send)

    def _report(self, what: str) -> None:
        self.loading = what

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        loaded: asyncio.Future[FastAPI] = loop.create_future()

        def work() -> None:
            try:
                app = self._load(self._report)
            except BaseException as error:
                self.failure = error
                self._on_failure()
            else:
                loop.call_soon_threadsafe(loaded.set_result, app)

        async def live() -> None:
            app = await loaded
            async with app.router.lifespan_context(app):
                self.app = app
                await stopping.wait()

        threading.Thread(target=work, daemon=True, name="loading").start()
        task = asyncio.create_task(live())
        yield
        stopping.set()
        if self.app is None:
            task.cancel()
        await asyncio.wait([task])


def _loading_page(what: str) -> str:
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("backsight", "app/templates")
    return Environment(loader=loader, autoescape=True).get_template("loading.html").render(what=what)


def build_app(workspace: Workspace, host: str = HOST, port: int = PORT, root_path: str = "") -> FastAPI:
    """The application for ``workspace``, without its guard; ``host`` and ``port`` are where it will be."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is reported to anybody
    import gradio
    from fastapi import FastAPI
    from gradio.themes import Base
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.responses import JSONResponse

    from backsight.app.events import EventCheck, build_page
    from backsight.app.routes import add_routes

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_routes(app, workspace)
    app.add_route("/status", lambda _: JSONResponse({"ready": True}), ["GET"])
    font = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif"]
    blocks = build_page(workspace)
    gradio.mount_gradio_app(
        app,
        blocks,
        "/",
        server_name=host,
        server_port=port,
        root_path=root_path or None,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=1,  # gradio's own upload is not reachable either
        theme=Base(font=font, font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"]),
        css=_template("style.css"),
        head=f"<script>{_template('page.js')}</script>",
    )
    app.add_middleware(EventCheck, blocks=blocks)
    app.add_middleware(GZipMiddleware, minimum_size=2000)
    return app


def _template(name: str) -> str:
    return files("backsight.app").joinpath("templates", name).read_text(encoding="utf-8")
