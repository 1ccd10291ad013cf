"""Who may see the board: on this machine's own address whoever is on it, elsewhere who has the token.

A page on another site can make a browser ask for an address of this machine, under a name of its own; so without a
token only the machine's own names are answered. The token comes once with an address, and is a cookie from then on.
"""

import hashlib
import ipaddress
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""No page makes a request but to the board; figures set styles."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
OWN_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Access:
    """Lets in who may see the board, and sets what every answer says about itself.

    Args:
        app: the board.
        token: that is asked for; None: no one is, and only this machine's own names are answered.

    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token
        self._cookie = hashlib.sha256(f"board {token}".encode()).hexdigest()
        self._name = f"fedpft_board_{self._cookie[:8]}"  # ports share their cookies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await (self._refusal(scope) or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self._token is None:
            name = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
            if name.strip("[]") in OWN_NAMES or is_loopback(name.strip("[]")):
                return None
            return PlainTextResponse("the board answers to localhost and 127.0.0.1 alone\n", 400)
        if secrets.compare_digest(self._sent(headers), self._cookie):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = next((value for name, value in query if name == "token"), "")
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            return PlainTextResponse("open the address that `fedpft board` printed: it has the token\n", 401)
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        path = "/" + scope["path"].lstrip("/")  # of this server: two slashes would name another one
        answer = RedirectResponse(path + f"?{rest}" * bool(rest), 303)
        answer.set_cookie(self._name, self._cookie, httponly=True, samesite="lax")
        return answer

    def _sent(self, headers: Headers) -> str:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._name)
        except CookieError:
            return ""
        return found.value if found and found.value.isascii() else ""
