"""A small local server: one page, and answers to prompts typed into it.

Whatever runs in a browser on this machine can send requests to 127.0.0.1. So a request is answered only if it comes
from the page itself: its Host is this machine by its own name (against DNS rebinding) and its Origin is this server.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")
MAX_BYTES = 4096
BUSY = "the model is busy with another prompt; try again in a moment"
_RETRY_AFTER = 2  # seconds
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Answer = Callable[[str, list[str]], Mapping[str, Any]]


def make_app(
    page: str,
    answer: Answer,
    *,
    features: Sequence[str],
    count_tokens: Callable[[str], int],
    max_tokens: int,
    max_bytes: int = MAX_BYTES,
) -> Starlette:
    """The server as an ASGI application.

    GET / gives the page. POST /api/prompt with {"text": ..., "features": [...]} gives what `answer` says, one prompt at
    a time; without features, those of the page. Refusals are {"error": ...}: 400 for a bad prompt, 403 for another
    origin, 413 for too much of it, 415 for anything but JSON, 503 while another prompt is worked on.

    Args:
        page: HTML of the page.
        answer: Runs the model on a text and some of the features; called in a thread, never twice at once. A
            ValueError of it is what the reader did wrong.
        features: Features that may be asked for, such as "4/143".
        count_tokens: Tokens of a text.
        max_tokens: Most tokens of a prompt.
        max_bytes: Most bytes of a request's body.

    Raises:
        ValueError: If a limit is not positive.
    """
    for name, value in (("max_tokens", max_tokens), ("max_bytes", max_bytes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    prompts = _Prompts(answer, tuple(features), count_tokens, max_tokens, max_bytes)

    async def show(request: Request) -> Response:
        return HTMLResponse(page)

    async def no_icon(request: Request) -> Response:
        return Response(status_code=204)

    return Starlette(
        routes=[
            Route("/", show),
            Route("/api/prompt", prompts.reply, methods=["POST"]),
            Route("/favicon.ico", no_icon),
        ],
        middleware=[
            Middleware(_SafeHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False),
            Middleware(_OwnOrigin),
        ],
        exception_handlers={HTTPException: _refusal, ClientDisconnect: _gone, Exception: _failure},
    )


@dataclass(frozen=True, eq=False)
class _Prompts:
    """Answers prompts one at a time: the page and refusals go on while the model works in its thread."""

    answer: Answer
    features: tuple[str, ...]
    count_tokens: Callable[[str], int]
    max_tokens: int
    max_bytes: int
    working: threading.Lock = field(default_factory=threading.Lock)

    async def reply(self, request: Request) -> Response:
        text, chosen = _asked(await _body(request, self.max_bytes), self.features)
        if not self.working.acquire(blocking=False):
            raise HTTPException(503, BUSY, {"Retry-After": str(_RETRY_AFTER)})
        try:
            # Should the reader leave, this still waits for the thread: the model is free only then.
            return JSONResponse(await run_in_threadpool(self._checked, text, chosen))
        finally:
            self.working.release()

    def _checked(self, text: str, chosen: list[str]) -> Mapping[str, Any]:
        n = self.count_tokens(text)
        if not 1 <= n <= self.max_tokens:
            raise HTTPException(413 if n else 400, f"text must be of 1 to {self.max_tokens} tokens, got {n}.")
        try:
            return self.answer(text, chosen)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error


class _SafeHeaders:
    """Every answer says that it is not to be kept, framed, guessed at or embedded elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        await self._app(scope, receive, with_headers)


class _OwnOrigin:
    """Refuses what a page of another site sends; links to the page may come from anywhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (reason := _foreign(Request(scope))) is not None:
            await JSONResponse({"error": reason}, 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _foreign(request: Request) -> str | None:
    """Why a request is not one of this page's own; None where it is."""
    headers = request.headers
    own = f"http://{headers.get('host', '')}".lower()
    origin = headers.get("origin")
    if origin is not None and origin.lower() != own:
        return f"prompts must come from {own}, not from another origin"
    is_link = request.method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_link:
        return f"prompts must come from {own}, not from another site"
    return None


async def _body(request: Request, most: int) -> bytes:
    """The body of a request, given up as soon as it is too long, whatever its headers say."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "a prompt must be sent as application/json")
    too_long = HTTPException(413, f"a prompt must be at most {most} bytes long", {"Connection": "close"})
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:12]) > most:
        raise too_long
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_long
    return body


def _asked(body: bytes, features: Sequence[str]) -> tuple[str, list[str]]:
    """Text and features of a prompt, checked."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "a prompt must be JSON") from error
    if not isinstance(asked, dict) or not {"text"} <= set(asked) <= {"text", "features"}:
        raise HTTPException(400, 'a prompt must be {"text": ..., "features": [...]}')
    text, chosen = asked["text"], asked.get("features", list(features))
    if not isinstance(text, str) or not text.strip() or not _is_unicode(text):
        raise HTTPException(400, "text must be a text that is not empty")
    if not isinstance(chosen, list) or not chosen or not all(isinstance(feature, str) for feature in chosen):
        raise HTTPException(400, 'features must be a list of names such as "4/143"')
    if unknown := [one for one in dict.fromkeys(chosen) if one not in features]:
        shown = ", ".join(f"{feature:.20}" for feature in unknown[:5])
        raise HTTPException(400, f"features must be among {', '.join(features)}, got {shown}")
    return text, list(dict.fromkeys(chosen))


def _is_unicode(text: str) -> bool:
    r"""JSON can hold half of a surrogate pair, \ud800, which is no text."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # which nobody is there to read


async def _failure(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the model failed on this prompt; the terminal says how"}, 500)
