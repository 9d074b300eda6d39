"""What stands around the server's app: who may ask, under which name, how much at once; headers on every answer."""

import asyncio
import ipaddress
import json
from collections.abc import Collection

from fastapi.responses import JSONResponse, Response

MAX_UPLOAD = 32 * 2**20  # bytes
MAX_BODY = MAX_UPLOAD + 2**16  # the form around it
ASKING = 16  # queries at once, those that wait among them
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

    def render(self, content) -> bytes:
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
    """Around the app: whose name is asked, who asks, how many at once and for how long; headers on every answer."""

    def __init__(self, app, allowed: Collection[str] = ()):
        self.app, self.allowed, self.asking = app, {name.lower() for name in allowed}, 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def with_headers(message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name.lower() for name, _ in message["headers"]}
                ours = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message["headers"], *(h for h in ours if h[0] not in present)]
            await send(message)

        if refusal := self.refusal(scope):
            return await refusal(scope, receive, with_headers)
        if scope["method"] != "POST":
            return await self.app(scope, receive, with_headers)
        self.asking += 1
        try:
            async with asyncio.timeout(SECONDS):
                await self.app(scope, receive, with_headers)
        except TimeoutError:
            if not started:
                await failure(503, f"it took longer than {SECONDS} s; send a smaller picture, or try again later")(
                    scope, receive, with_headers
                )
        finally:
            self.asking -= 1

    def refusal(self, scope) -> Response | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not local_name(host, self.allowed):
            return failure(421, f"this server is not called {host[:100]!r}; serve --allow-host lets it be")
        if scope["method"] != "POST":
            return None
        foreign = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
        if foreign or headers.get("origin", f"//{host}").rpartition("//")[2] != host:
            return failure(403, "a page of another site may not ask here")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY:
            return failure(413, TOO_LARGE)
        if self.asking >= ASKING:
            return failure(503, f"busy with {self.asking} queries; try again in a moment", {"Retry-After": "1"})
        return None


def failure(status: int, reason: str, headers: dict | None = None) -> Response:
    return Ascii({"error": reason}, status, headers)
