"""What the page's script and its links ask for, beside gradio: pictures in, files out."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

from backsight.app.intake import admit, check_bytes
from backsight.app.observatory import Observatory
from backsight.app.render import message_of, render
from backsight.app.state import VIEWS, from_query
from backsight.core import UserError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

BINARY = "application/octet-stream"
"""The type in which pictures come: a page of another site cannot send it unasked."""

AT_ONCE = 4
"""Pictures that are received at the same time: a bound on memory."""

PATIENCE = 60
"""Seconds in which a picture has to arrive, so that nobody keeps others waiting."""

_drawing = threading.Lock()  # matplotlib's settings are the process's, not a thread's


def add_routes(app: FastAPI, observatory: Observatory) -> None:
    """``POST pictures`` takes one in and says its name; ``GET download/look.png?...`` and ``.json`` give a view."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    places = asyncio.Semaphore(AT_ONCE)

    async def hand_in(request: Request) -> Response:
        try:
            if request.headers.get("content-type") != BINARY:
                raise UserError(f"send a picture's bytes, as {BINARY}")
            async with places, asyncio.timeout(PATIENCE):
                upload = await run_in_threadpool(admit, await _read(request))
            observatory.pictures.uploads.keep(upload)
        except TimeoutError:
            return JSONResponse({"error": "the picture took too long to arrive: make it smaller, or try again"}, 408)
        except Exception as error:
            return JSONResponse({"error": message_of(error)}, 400)
        return JSONResponse({"picture": upload.name})

    async def download(request: Request) -> Response:
        return await run_in_threadpool(_file, observatory, request.path_params["name"], dict(request.query_params))

    app.add_route("/pictures", hand_in, ["POST"])
    app.add_route("/download/{name}", download, ["GET"])


async def _read(request: Request) -> bytes:
    """The body, as long as it is not too long: what comes after that is not even received."""
    content = bytearray()
    async for part in request.stream():
        content += part
        check_bytes(len(content))
    return bytes(content)


def _file(observatory: Observatory, name: str, query: dict[str, Any]) -> Response:
    from starlette.responses import PlainTextResponse, Response

    view, _, kind = name.partition(".")
    if view not in VIEWS or kind not in ("png", "json"):
        return PlainTextResponse("no such file", 404)
    try:
        found = render(observatory, from_query({**query, "view": view}))
        if kind == "png":
            with _drawing:
                return Response(found.plate(), media_type="image/png")
        return Response(json.dumps(found.json(), indent=1) + "\n", media_type="application/json")
    except Exception as error:
        return PlainTextResponse(message_of(error), 400)
