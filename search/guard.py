"""What stands around the server's app: who may ask, under which name, how much at once; headers on every answer."""

import asyncio
import ipaddress
import json
from collections.abc import Collection, Mapping

from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UPLOAD = 32 * 2**20  # bytes
MAX_BODY = MAX_UPLOAD + 2**16  # the form around it
ASKING = 16  # queries at once; others wait
HELD = 2**30  # bytes of uploads that are held at once
RECEIVING = 30  # seconds in which an upload must have come
SECONDS = 60  # for one query, its upload included
TOO_LARGE = f"larger than {MAX_UPLOAD // 2**20} MiB; make the picture smaller"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Ascii(JSONResponse):
    """JSON of any file name: bytes that are no UTF-8 are escapes in it."""

    def render(self, content: object) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


def local_name(host: str, allowed: Collection[str]) -> bool:
    """Whether a Host header names this machine; a name that another site points here (DNS rebinding) does not."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.removeprefix("[").removesuffix("]").rstrip(".").lower()
    try:
        ipaddress.ip_address(name)  # no page comes from an address that its owner does not hold
        return True
    except ValueError:
        return name == "localhost" or name.endswith(".localhost") or name in allowed


class Guard:
    """Around the app: by whose name and from which page a query comes, how much at once and for how long; headers on
    every answer. An upload is received before it takes one of the places, so that slow clients hold none."""

    def __init__(self, app: ASGIApp, allowed: Collection[str] = ()):
        self.app, self.allowed = app, {name.lower() for name in allowed}
        self.places, self.held = asyncio.Semaphore(ASKING), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, bare = False, scope["method"] == "HEAD"

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name.lower() for name, _ in message["headers"]}
                ours = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message["headers"], *(h for h in ours if h[0] not in present)]
            elif bare:
                message = {**message, "body": b""}
            await send(message)

        async def refuse(status: int, reason: str) -> None:
            if not started:
                headers = {"Retry-After": "1"} if status == 503 else None
                await failure(status, reason, headers)(scope, receive, with_headers)

        if refusal := self.refusal(scope):
            return await refusal(scope, receive, with_headers)
        if scope["method"] != "POST":
            return await self.app({**scope, "method": "GET"} if bare else scope, receive, with_headers)
        size = length_of(scope)
        self.held += size
        try:
            async with asyncio.timeout(RECEIVING):
                body = await received(receive)
            async with asyncio.timeout(SECONDS), self.places:
                await self.app(scope, replayed(body, receive), with_headers)
        except TooLargeError:
            await refuse(413, TOO_LARGE)
        except TimeoutError:
            await refuse(503, f"it took longer than {SECONDS} s; send a smaller picture, or try again later")
        finally:
            self.held -= size

    def refusal(self, scope: Scope) -> Response | None:
        headers = headers_of(scope)
        host = headers.get("host", "")
        if not local_name(host, self.allowed):
            return failure(421, f"this server is not called {host[:100]!r}; serve --allow-host lets it be")
        if scope["method"] != "POST":
            return None
        site, origin = headers.get("sec-fetch-site"), headers.get("origin", f"//{host}").rpartition("//")[2]
        # A browser says itself whether page and server are one, also behind a proxy that speaks TLS; older ones do not.
        same = site in ("same-origin", "none") if site else origin == host or origin.partition(":")[0] in self.allowed
        if not same:
            said = f"a page of another site may not ask here ({origin[:100]!r} asks {host[:100]!r})"
            return failure(403, f"{said}; behind a proxy: serve --allow-host its name")
        if length_of(scope) > MAX_BODY:
            return failure(413, TOO_LARGE)
        if self.held + length_of(scope) > HELD:
            return failure(503, "busy with many uploads; try again in a moment", {"Retry-After": "1"})
        return None


class TooLargeError(Exception):
    """A body of more than ``MAX_BODY`` bytes."""


def headers_of(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def length_of(scope: Scope) -> int:
    """Bytes of a body, as its client says; the most where it does not."""
    length = headers_of(scope).get("content-length", str(MAX_BODY))
    return int(length) if length.isdecimal() else MAX_BODY + 1


async def received(receive: Receive) -> bytes:
    """The whole body; cut where the client has gone."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise TooLargeError
        if not message.get("more_body"):
            return bytes(body)


def replayed(body: bytes, receive: Receive) -> Receive:
    """The body once more, for the app; then whatever comes."""
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return whole.pop() if whole else await receive()

    return again


def failure(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    return Ascii({"error": reason}, status, headers)
