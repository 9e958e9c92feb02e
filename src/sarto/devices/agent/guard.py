"""What stands before an agent's service: the token, sizes and times of bodies, one request a connection."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sarto.devices.agent.limits import Limits
from sarto.errors import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

#: Where models are uploaded, in bodies larger than those of other requests.
UPLOADS = "/v1/models"
#: Characters of a token, at least.
LEAST_TOKEN = 16


class _Cut(Exception):
    """The request was ended while its body was read."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Guard:
    """An application that answers only those with the token, and waits for nobody."""

    def __init__(self, app: App, token: str, limits: Limits) -> None:
        """
        Raises:
            RequestError: the token is short, or has characters that a header can't hold.
        """
        check_token(token)
        self.app, self.limits = app, limits
        self._digest = hashlib.sha256(token.encode()).digest()
        self._active = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if not self._knows(headers.get(b"authorization", b"")):
            sent = b"authorization" in headers
            detail = (
                "the token is not the agent's: set SARTO_AGENT_TOKEN to what `sarto agent` showed at its start"
                if sent
                else "send the agent's token in a header, Authorization: Bearer TOKEN"
            )
            await _answer(send, 401, detail, [(b"www-authenticate", b"Bearer")])
        elif self._active >= self.limits.connections:
            await _answer(send, 503, "too many requests at once; try again", [(b"retry-after", b"5")])
        else:
            self._active += 1
            try:
                await self._pass(scope, headers, receive, send)
            finally:
                self._active -= 1

    def _knows(self, given: bytes) -> bool:
        scheme, _, token = given.partition(b" ")
        # Digests have one length, so that nothing tells how much of the token was right.
        same = hmac.compare_digest(hashlib.sha256(token.strip()).digest(), self._digest)
        return same and scheme.lower() == b"bearer"

    async def _pass(self, scope: Message, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        limits = self.limits
        most = limits.upload_bytes if scope["path"] == UPLOADS else limits.request_bytes
        told = headers.get(b"content-length", b"")
        if told.isdigit() and int(told) > most:
            await _answer(send, 413, _too_large(most))
            return
        until, read, done, started = time.monotonic() + limits.body_s, 0, False, False
        cut: _Cut | None = None

        async def reading() -> Message:
            nonlocal read, done, cut
            if done:
                return await receive()
            try:
                message = await asyncio.wait_for(
                    receive(), max(0.0, min(limits.idle_s, until - time.monotonic()))
                )
                read += len(message.get("body", b""))
                if read > most:
                    raise _Cut(413, _too_large(most))
            except TimeoutError:
                cut = _Cut(
                    408,
                    f"the body did not come in time: {limits.idle_s:g} s a part, {limits.body_s:g} s in all",
                )
                raise cut from None
            except _Cut as error:
                cut = error
                raise
            done = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            nonlocal started
            if cut is not None and not started:
                return
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await asyncio.wait_for(send(message), limits.idle_s)

        try:
            await self.app(scope, reading, sending)
        except Exception:
            if cut is None:
                raise
        if cut is not None and not started:
            await _answer(send, cut.status, cut.detail)


def check_token(token: str) -> None:
    """Refuse a token that can be guessed or sent by no header.

    Raises:
        RequestError: it is short or has strange characters.
    """
    if len(token) < LEAST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise RequestError(
            f"an agent's token has at least {LEAST_TOKEN} characters, all of them plain letters, digits or signs; this "
            f"one has {len(token)}",
            where="token",
        )


def _too_large(most: int) -> str:
    return f"the body is larger than {most:,} bytes, which is the limit here"


async def _answer(
    send: Send, status: int, detail: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    text = json.dumps({"type": "RequestError", "detail": detail, "problems": []}).encode()
    given = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(text)).encode()),
        (b"connection", b"close"),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": given})
    await send({"type": "http.response.body", "body": text})
