"""What stands before every request: which addresses there are at all, how much is taken in, what a browser may do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN = (
    "/assets/",
    "/download/",
    "/gradio_api/heartbeat/",
    "/gradio_api/queue/",
    "/gradio_api/startup-events",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/static/",
    "/svelte/",
)
"""How the addresses that are answered begin, beside those of :data:`PAGES`. Gradio's own uploads, files, proxies and
components' servers are not among them: they would tell where files lie on this machine."""

PAGES = ("/", "/config", "/favicon.ico", "/manifest.json", "/pictures", "/theme.css")
"""The addresses that are answered, as they stand."""

MOST = 1 << 18
"""Bytes of a request that is no picture."""

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
"""What a browser may load for the page: nothing from any other host."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}


class Guard:
    """An ASGI application around ``app`` that answers what is not :data:`OPEN` with 404, and too much with 413."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        if not is_open(scope["path"]):
            await _refuse(send, 404, b"there is nothing here")
        elif scope["path"] != "/pictures" and _length(scope) > MOST:
            await _refuse(send, 413, b"this is too much")
        else:
            await self.app(scope, _counted(receive, scope["path"]), _with_headers(send))


def is_open(path: str) -> bool:
    """Whether an address is answered; none that climbs out of its folder is."""
    return ".." not in path and "\\" not in path and (path in PAGES or path.startswith(OPEN))


def _length(scope: Message) -> int:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0


def _counted(receive: Receive, path: str) -> Receive:
    """Of a request that does not say its length, no more than :data:`MOST` either; pictures are counted as they are
    read."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if path != "/pictures" and received > MOST:
            return {"type": "http.disconnect"}
        return message

    return counted


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message.get("headers", []) if name.lower().decode() not in HEADERS]
            message["headers"] = [*kept, *((name.encode(), value.encode()) for name, value in HEADERS.items())]
        await send(message)

    return sending


async def _refuse(send: Send, status: int, words: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(words)).encode())]
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words})
