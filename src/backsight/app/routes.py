"""What the page's script and its links ask for, beside gradio: uploads, example pictures, files of a view."""

from __future__ import annotations

import asyncio
import json
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from backsight.app.rendering import webp
from backsight.app.state import VIEWS, from_query
from backsight.app.uploads import accept
from backsight.app.views import error_message, render
from backsight.app.workspace import Workspace

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

BINARY = "application/octet-stream"
"""The type in which uploads come: a page of another site cannot send it unasked."""

THUMBNAIL = 120
"""Pixels of the longer side of an example: twice what the page shows, for fine screens."""

WAIT = 10
"""Seconds that an upload waits for its turn to be decoded, one at a time."""

_drawing = threading.Lock()  # matplotlib's settings are the process's, not a thread's


def add_routes(app: FastAPI, workspace: Workspace) -> None:
    """``POST pictures`` takes one and answers with its name, ``GET examples/3`` is a thumbnail, and
    ``GET download/look.png?...`` and ``.json`` are the files of a view."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response

    decoding = asyncio.Semaphore(1)
    thumbnail = lru_cache(lambda index: webp(workspace.example(index).pixels, THUMBNAIL))

    async def upload(request: Request) -> Response:
        if request.headers.get("content-type") != BINARY:
            return JSONResponse({"error": f"send a picture's bytes, as {BINARY}"}, 400)
        content = await request.body()
        try:
            await asyncio.wait_for(decoding.acquire(), WAIT)
        except TimeoutError:
            busy = "many pictures are being uploaded: try again in a minute"
            return JSONResponse({"error": busy}, 503, {"retry-after": str(WAIT)})
        try:
            accepted = await run_in_threadpool(accept, content)
        except Exception as error:
            return JSONResponse({"error": error_message(error)}, 400)
        finally:
            decoding.release()
        workspace.images.uploads.keep(accepted)
        return JSONResponse({"picture": accepted.name})

    async def example(request: Request) -> Response:
        number = request.path_params["number"]
        if number not in map(str, range(len(workspace.examples))):
            return Response("no such example", 404)
        content = await run_in_threadpool(thumbnail, int(number))
        return Response(content, media_type="image/webp", headers={"cache-control": "private, max-age=60"})

    async def download(request: Request) -> Response:
        return await run_in_threadpool(_file, workspace, request.path_params["name"], dict(request.query_params))

    app.add_route("/pictures", upload, ["POST"])
    app.add_route("/examples/{number}", example, ["GET"])
    app.add_route("/download/{name}", download, ["GET"])


def _file(workspace: Workspace, name: str, query: dict[str, Any]) -> Response:
    from starlette.responses import PlainTextResponse, Response

    view, _, kind = name.partition(".")
    if view not in VIEWS or kind not in ("png", "json"):
        return PlainTextResponse("no such file", 404)
    try:
        found = render(workspace, from_query({**query, "view": view}))
        if kind == "png":
            with _drawing:
                return Response(found.png(), media_type="image/png")
        return Response(json.dumps(found.json(), indent=1) + "\n", media_type="application/json")
    except Exception as error:
        return PlainTextResponse(error_message(error), 400)
