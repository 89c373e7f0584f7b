"""Access control: the guard in front of every page.

A browser authenticates once, by the token in the first URL, and keeps a cookie that scripts and other sites cannot use.
Each request must name a host that this monitor answers to, so that a foreign name that resolves to this machine (DNS
rebinding) gets no data. A change must be a POST from a page of this monitor, with the token of its form.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "ecloud_monitor"
MAX_BODY_BYTES = 64 * 1024
"""Maximum size of a form. A request that declares or sends more is refused."""
TOO_LARGE = "The request is too large.\n"
LOGIN = "/login"
WRONG_S = 1.0
OPEN = ("/static/",)
"""Paths that need no cookie: they contain no data of the cluster."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Secret:
    """The monitor's token, and values derived from it. Lives as long as the process."""

    def __init__(self, token: str = "") -> None:
        self.token = token or secrets.token_urlsafe(32)

    def _derived(self, what: str) -> str:
        return hmac.new(self.token.encode(), what.encode(), hashlib.sha256).hexdigest()

    @property
    def cookie(self) -> str:
        """Value of the cookie: not the token itself, which is visible in a terminal's history."""
        return self._derived("cookie")

    @property
    def csrf(self) -> str:
        """Token in each form."""
        return self._derived("csrf")

    def is_token(self, given: str) -> bool:
        """Whether the given token is correct; runs in constant time."""
        return hmac.compare_digest(given.encode(), self.token.encode())


class Guard:
    """ASGI middleware: checks host, cookie, origin and sizes; adds the security headers to every response. `password`:
    if set, browsers authenticate with it instead of the token in a URL."""

    def __init__(
        self, app: ASGIApp, secret: Secret, hosts: frozenset[str], read_only: bool, password: str = ""
    ) -> None:
        self._app = app
        self._secret = secret
        self._hosts = hosts
        self._read_only = read_only
        self._password = password
        self._trying = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None and self._password and scope["path"] == LOGIN and scope["method"] == "POST":
            refusal = await self._log_in(scope, _bounded(receive))
        if refusal is None:
            await self._app(scope, _bounded(receive), _with_headers(send))
        else:
            await refusal(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if host not in self._hosts:
            return PlainTextResponse("This monitor does not answer to that host name.\n", 421)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return PlainTextResponse(TOO_LARGE, 413)
        if path.startswith(OPEN):
            return None
        if self._password and path == LOGIN:
            return self._of_origin(scope, headers, host) if scope["method"] == "POST" else None
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = query.pop("token", [""])[0]
        if given and not self._password and self._secret.is_token(given):
            return self._welcome(scope, query)
        if not self._is_known(headers):
            if self._password and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                return RedirectResponse(LOGIN, 303)
            text = "Open the address that `admin.py monitor` printed: it holds the key to this monitor.\n"
            return PlainTextResponse(text, 401)
        if scope["method"] not in ("GET", "HEAD"):
            return self._of_change(scope, headers, host)
        return None

    async def _log_in(self, scope: Scope, receive: Receive) -> Response:
        """Handle one login at a time; a wrong password takes a second, to prevent guessing."""
        try:
            form = parse_qs((await Request(scope, receive).body()).decode("utf-8", "replace"), max_num_fields=5)
        except ClientDisconnect:
            return PlainTextResponse(TOO_LARGE, 413)
        given = form.get("password", [""])[0]
        async with self._trying:
            if hmac.compare_digest(given.encode(), self._password.encode()):
                return self._welcome({**scope, "path": "/"}, {})
            await asyncio.sleep(WRONG_S)
        return PlainTextResponse("That is not the password. Go back and try again.\n", 401)

    def _welcome(self, scope: Scope, query: dict[str, list[str]]) -> Response:
        rest = urlencode(query, doseq=True)
        # A path that begins with two slashes would redirect to another host.
        answer = RedirectResponse("/" + scope["path"].lstrip("/\\") + (f"?{rest}" if rest else ""), 303)
        secure = scope["scheme"] == "https"
        answer.set_cookie(COOKIE, self._secret.cookie, httponly=True, samesite="strict", secure=secure, path="/")
        return answer

    def _is_known(self, headers: Headers) -> bool:
        for part in headers.get("cookie", "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == COOKIE and hmac.compare_digest(value.encode(), self._secret.cookie.encode()):
                return True
        # For programs such as Prometheus.
        kind, _, token = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and self._secret.is_token(token)

    def _of_change(self, scope: Scope, headers: Headers, host: str) -> Response | None:
        if scope["method"] != "POST":
            return PlainTextResponse("Only GET and POST are answered.\n", 405)
        if self._read_only:
            return PlainTextResponse("This monitor only shows: it was started with --read_only.\n", 403)
        return self._of_origin(scope, headers, host)

    def _of_origin(self, scope: Scope, headers: Headers, host: str) -> Response | None:
        origin = headers.get("origin", "")
        if urlsplit(origin).netloc != host or urlsplit(origin).scheme != scope["scheme"]:
            return PlainTextResponse("A change must come from a page of this monitor.\n", 403)
        return None


def _bounded(receive: Receive) -> Receive:
    """Limit the body: end the request if its body is longer than allowed, whatever its header declares. Who reads it
    then gets `ClientDisconnect`."""
    left = MAX_BODY_BYTES

    async def receive_bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return receive_bounded


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if "cache-control" not in headers:
                headers["Cache-Control"] = "no-store"
        await send(message)

    return send_with_headers
