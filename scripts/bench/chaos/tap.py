"""TCP proxies on loopback that show what passes through them, before it passes, to whoever wants to read it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import msgpack

_CHUNK = 1 << 18
_POLL_S = 0.1
_GREETING = 64  # bytes with which a ZMTP connection begins, in each direction
_LONG, _COMMAND = 2, 4  # bits of the flags of a ZMTP frame


class Reader(Protocol):
    """Reads one direction of a connection."""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes, which have not passed yet. Runs on the thread of the proxies."""


class Proxies:
    """Proxies on a thread of their own, which is a daemon.

    Attributes:
        problem: what a reader has raised, which is a mistake of it; the proxies go on without. None as a rule.
    """

    def __init__(self) -> None:
        self.problem: Exception | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def add(self, port: int, upstream: int, make_readers: Callable[[], tuple[Reader, Reader]]) -> None:
        """Forwards what connects to ``port`` to ``upstream``.

        Args:
            make_readers: is called for every connection, and gives the readers of what the client and the server send.
        """
        asyncio.run_coroutine_threadsafe(self._serve(port, upstream, make_readers), self._loop)

    def stop(self) -> None:
        """Cuts all connections and ends the thread. Blocks for a moment."""
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _serve(self, port: int, upstream: int, make_readers: Callable[[], tuple[Reader, Reader]]) -> None:
        """Listens only while something listens upstream: a client of a dead server is refused, as without a proxy."""
        while True:
            gone = asyncio.Event()
            join = partial(self._join, upstream, make_readers, gone)
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", upstream)
                writer.close()
                server = await asyncio.start_server(join, "127.0.0.1", port)
            except OSError:  # nothing listens upstream, or the port is not free again yet
                await asyncio.sleep(_POLL_S)
                continue
            try:
                await gone.wait()
            finally:
                server.close()

    async def _join(
        self, upstream: int, make_readers: Callable[[], tuple[Reader, Reader]], gone: asyncio.Event,
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", upstream)
        except OSError:
            gone.set()
            writer.close()
            return
        there, back = make_readers()
        pumps = [
            asyncio.create_task(self._pump(reader, far_writer, there)),
            asyncio.create_task(self._pump(far_reader, writer, back)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            writer.close()
            far_writer.close()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, reader: Reader) -> None:
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                if self.problem is None:
                    try:
                        reader.feed(data)
                    except Exception as problem:  # whatever it is, the run must not be disturbed by it
                        self.problem = problem
                target.write(data)
                await target.drain()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class ZmtpReader:
    """Reads the messages of one direction of an unencrypted ZeroMQ connection; each of them is one MessagePack map."""

    def __init__(self, on_message: Callable[[dict[str, Any]], None]) -> None:
        self._on_message = on_message
        self._buffer = bytearray()
        self._greeted = False

    def feed(self, data: bytes) -> None:
        self._buffer += data
        if not self._greeted:
            if len(self._buffer) < _GREETING:
                return
            del self._buffer[:_GREETING]
            self._greeted = True
        while (frame := self._next_frame()) is not None:
            flags, body = frame
            if not flags & _COMMAND:
                self._on_message(msgpack.unpackb(body))

    def _next_frame(self) -> tuple[int, bytes] | None:
        if len(self._buffer) < 2:
            return None
        flags = self._buffer[0]
        head = 9 if flags & _LONG else 2
        if len(self._buffer) < head:
            return None
        end = head + int.from_bytes(self._buffer[1:head], "big")
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[head:end])
        del self._buffer[:end]
        return flags, body


class HttpReader:
    """Reads the requests or the replies of one HTTP/1.1 connection: ``on_message`` gets the first line and the body."""

    def __init__(self, on_message: Callable[[str, bytes], None]) -> None:
        self._on_message = on_message
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while (message := self._next_message()) is not None:
            self._on_message(*message)

    def _next_message(self) -> tuple[str, bytes] | None:
        head, found, _ = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        start = len(head) + 4
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunked(first, start)
        end = start + int(headers.get("content-length", 0))
        return self._cut(first, bytes(self._buffer[start:end]), end) if len(self._buffer) >= end else None

    def _chunked(self, first: str, start: int) -> tuple[str, bytes] | None:
        body: deque[bytes] = deque()
        while (line := self._buffer.find(b"\r\n", start)) >= 0:
            size = int(self._buffer[start:line].split(b";")[0], 16)
            begin, start = line + 2, line + 2 + size + 2
            if len(self._buffer) < start:
                return None
            if size == 0:
                return self._cut(first, b"".join(body), start)
            body.append(bytes(self._buffer[begin : begin + size]))
        return None

    def _cut(self, first: str, body: bytes, end: int) -> tuple[str, bytes]:
        del self._buffer[:end]
        return first, body
