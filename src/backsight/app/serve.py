"""The server: gradio's page, our routes and the guard before both, on this machine alone unless told otherwise."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from backsight.app.guard import Guard
from backsight.app.observatory import Observatory, open_observatory
from backsight.app.routes import add_routes
from backsight.core import UserError

HOST, PORT = "127.0.0.1", 7860


def serve(
    models: Sequence[str] = (),
    chains: Sequence[str] = (),
    data: Sequence[str] = (),
    *,
    host: str = HOST,
    port: int = PORT,
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
        device: where to compute.

    Raises:
        UserError: gradio is not installed, the address cannot be had, or something that is named is not there.
    """
    require_gradio()
    import uvicorn

    with listen(host, port) as place:
        port = place.getsockname()[1]
        app = build_app(open_observatory(models, chains, data, device), host, port)
        settings = uvicorn.Config(app, log_level="warning", server_header=False, limit_concurrency=256)
        print(f"http://{host}:{port}", flush=True)
        uvicorn.Server(settings).run(sockets=[place])


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


def require_gradio() -> None:
    """Load gradio, told to report nothing to anybody.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError("the web page needs gradio: pip install 'backsight[app]'") from error


def build_app(observatory: Observatory, host: str = HOST, port: int = PORT) -> Any:
    """The ASGI application for ``observatory``; ``host`` and ``port`` are where it will be."""
    require_gradio()
    import gradio
    from fastapi import FastAPI
    from gradio.themes import Base

    from backsight.app.pages.shell import build_page

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_routes(app, observatory)
    font = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif"]
    gradio.mount_gradio_app(
        app,
        build_page(observatory),
        "/",
        server_name=host,
        server_port=port,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=1,  # gradio's own upload is not reachable either
        theme=Base(font=font, font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"]),
        css=_asset("style.css"),
        head=f"<script>{_asset('page.js')}</script>",
    )
    return Guard(app)


def _asset(name: str) -> str:
    return files("backsight.app").joinpath(name).read_text(encoding="utf-8")
