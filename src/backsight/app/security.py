"""What stands before every request: who may ask, for which addresses, how much and how slowly he may send, and what a
browser may do with the answer."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_FOLDERS = (
    "/assets/",
    "/download/",
    "/examples/",
    "/gradio_api/heartbeat/",
    "/gradio_api/queue/",
    "/gradio_api/startup-events",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/static/",
    "/svelte/",
)
"""How the addresses that are answered begin, beside those of :data:`OPEN_PAGES`. Gradio's own uploads, files, proxies
and components' servers are not among them: they would reveal where files lie on this machine."""

OPEN_PAGES = ("/", "/config", "/favicon.ico", "/manifest.json", "/pictures", "/status", "/theme.css")
"""The addresses that are answered, as they stand."""

MAX_EVENT = 1 << 18
"""Bytes of a request that is no picture."""
MAX_UPLOAD = 20 << 20
"""Bytes of a picture."""
MAX_RECEIVED = 96 << 20
"""Bytes of all requests together that are being received or worked on: beyond that, come back later."""
STEP_BYTES, STEP_SECONDS = 80_000, 5
"""The least rate: so many bytes, or the end, have to arrive in so many seconds."""
MAX_SECONDS = 60
"""In which a whole request has to arrive."""

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
    """An ASGI application before ``app``, which gets only requests that may be answered, each with its whole body.

    Args:
        app: the application.
        host: the address that the server listens at.
        allowed_hosts: names by which others reach it, through a proxy.
        root_path: where the page is at such a name, as ``/backsight``; a proxy may leave it in the address or not.
    """

    def __init__(
        self, app: ASGIApp, host: str = "127.0.0.1", allowed_hosts: Sequence[str] = (), root_path: str = ""
    ) -> None:
        self.app: ASGIApp = app
        self.root_path: str = root_path.rstrip("/")
        self.allowed_hosts: set[str] = {each.lower() for each in allowed_hosts}
        self.own_hosts: set[str] = {host.lower(), "localhost", "127.0.0.1", "::1"}
        self.everywhere: bool = host in ("0.0.0.0", "::")
        if self.everywhere:
            self.own_hosts.add(socket.gethostname().lower())
        self.received: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send_with_headers)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        content = bytearray()
        try:
            self._check_origin(scope)
            if self.root_path and scope["path"] == self.root_path:
                # Relative addresses begin at the folder.
                await RedirectResponse(self.root_path + "/")(scope, receive, send)
                return
            path = scope["path"].removeprefix(self.root_path)
            if not is_open(path):
                raise HTTPException(404, "there is nothing here")
            if not await self._read(content, MAX_UPLOAD if path == "/pictures" else MAX_EVENT, receive):
                return
            inner = {**scope, "path": self.root_path + path, "root_path": self.root_path}
            await self.app(inner, replay(bytes(content), receive), send)
        except HTTPException as error:  # in JSON, as the page's script reads it; nothing more of the request is read
            headers = {"connection": "close", **(error.headers or {})}
            await JSONResponse({"error": error.detail}, error.status_code, headers)(scope, receive, send)
        finally:
            self._forget(content)

    def _check_origin(self, scope: Scope) -> None:
        """Only pages of our own ask: a name that another site points at this machine is no name of ours."""
        headers = Headers(scope=scope)
        host, origin = (headers.get(name, "").lower() for name in ("host", "origin"))
        name = _host_name(f"//{host}")
        if name not in self.own_hosts | self.allowed_hosts and not (self.everywhere and _is_address(name)):
            raise HTTPException(421, "this host is not served here: the option --allow-host names others")
        if origin and origin.partition("//")[2] != host and _host_name(origin) not in self.allowed_hosts:
            raise HTTPException(403, "requests of other sites are not answered: the option --allow-host names others")

    async def _read(self, content: bytearray, limit: int, receive: Receive) -> bool:
        """The body into ``content``; False if the sender went away.

        Raises:
            HTTPException: it is too long or too slow, or too many send at the same time.
        """
        clock = asyncio.get_running_loop().time
        end, arrived, step_start = clock() + MAX_SECONDS, 0, 0
        refusal = None
        try:
            async with asyncio.timeout(STEP_SECONDS) as timeout:
                while (message := await receive())["type"] == "http.request":
                    part, is_last = message.get("body", b""), not message.get("more_body", False)
                    arrived += len(part)
                    refusal = refusal or self._too_much(arrived, limit, len(part))
                    if refusal is None:
                        content += part
                        self.received += len(part)
                    else:  # what still comes is thrown away: a sender that is cut off reads no answer
                        self._forget(content)
                        if is_last or arrived > 2 * limit:
                            raise refusal
                    if is_last:
                        return True
                    if arrived - step_start >= STEP_BYTES:
                        step_start = arrived
                        timeout.reschedule(min(end, clock() + STEP_SECONDS))
        except TimeoutError:
            raise HTTPException(408, "this took too long to arrive: make it smaller, or try again") from None
        return False

    def _too_much(self, arrived: int, limit: int, more: int) -> HTTPException | None:
        if arrived > limit:
            return HTTPException(413, f"this is too large: at most {limit >> 10} kB are accepted here")
        if self.received + more > MAX_RECEIVED:
            busy = "many pictures are being uploaded: try again in a minute"
            return HTTPException(503, busy, {"retry-after": "60"})
        return None

    def _forget(self, content: bytearray) -> None:
        self.received -= len(content)
        content.clear()


def is_open(path: str) -> bool:
    """Whether an address is answered; none that climbs out of its folder is."""
    return ".." not in path and "\\" not in path and (path in OPEN_PAGES or path.startswith(OPEN_FOLDERS))


def _host_name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    """Whether a host is named by its number, which no other site can point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def replay(content: bytes, receive: Receive) -> Receive:
    """The body that was read, once; then whatever comes."""
    messages: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
