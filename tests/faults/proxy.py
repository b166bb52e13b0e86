"""A network that can be broken: one TCP proxy before each broker, which reads Kafka's framing and nothing else.

All proxies of a network run on one thread of their own. What a proxy does to the bytes may be changed from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

HOST = "127.0.0.1"
END_TXN = 26
"""The number of the request that ends a transaction: https://kafka.apache.org/protocol#protocol_api_keys"""

_SIZE = struct.Struct(">i")
_REQUEST = struct.Struct(">hhi")  # api key, its version, correlation id


class Proxy:
    """Between clients and one broker."""

    def __init__(self) -> None:
        """Take a port; connections are accepted once the network runs."""
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((HOST, 0))
        self._listener.listen(64)
        self._listener.setblocking(False)  # noqa: FBT003 - the socket's own signature
        self.port: int = self._listener.getsockname()[1]
        self.target = 0
        """The broker's port."""
        self.delay_s = 0.0
        """How long each message is held, in both directions."""
        self.lost_commits = 0
        """Answers to the end of a transaction that were dropped."""
        self.halved = 0
        """Answers of which only the first half was passed on."""
        self._is_cut = False
        self._open = asyncio.Event()
        self._open.set()
        self._lose_commits = 0
        self._halve = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def cut(self) -> None:
        """End every connection and refuse new ones, as a cable that is pulled and found out about."""
        self._is_cut = True
        self._soon(self._hang_up)

    def stall(self) -> None:
        """Pass nothing on, and let nobody know: as packets that are dropped."""
        self._soon(self._open.clear)

    def heal(self) -> None:
        """Pass everything on again, at once."""
        self._is_cut = False
        self.delay_s = 0.0
        self._halve = 0
        self._lose_commits = 0
        self._soon(self._open.set)

    def lose_commits(self, count: int = 1) -> None:
        """Drop the next so many answers to the end of a transaction, each with its connection."""
        self._lose_commits = count

    def halve(self, count: int = 1) -> None:
        """Of the next so many answers pass on the first half, and end their connections."""
        self._halve = count

    async def serve(self, stop: asyncio.Event) -> None:
        """Accept connections until `stop`."""
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._accept, sock=self._listener)
        await stop.wait()
        server.close()
        self._hang_up()

    def close(self) -> None:
        """Give the port back where the network never ran."""
        self._listener.close()

    def _soon(self, call: Callable[[], object]) -> None:
        """On the network's thread; at once where that does not run yet."""
        if self._loop is None:
            call()
        else:
            self._loop.call_soon_threadsafe(call)

    def _hang_up(self) -> None:
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, from its beginning to its end."""
        waiting: set[int] = set()  # correlation ids of ends of transactions
        writers = [writer]
        self._writers.add(writer)
        try:
            await self._open.wait()
            if self._is_cut:
                return
            up_reader, up_writer = await asyncio.open_connection(HOST, self.target)
            writers.append(up_writer)
            self._writers.add(up_writer)
            up = self._pump(reader, up_writer, lambda body, out: self._request(body, out, waiting))
            down = self._pump(up_reader, writer, lambda body, out: self._answer(body, out, waiting))
            tasks = [asyncio.ensure_future(up), asyncio.ensure_future(down)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        except OSError:  # the broker is not there: the client sees its connection end
            pass
        finally:
            for each in writers:
                self._writers.discard(each)
                each.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        passed: Callable[[bytes, asyncio.StreamWriter], Awaitable[bool]],
    ) -> None:
        """Carry messages one way until either side ends, or a message is not passed on whole."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                size = await reader.readexactly(_SIZE.size)
                body = await reader.readexactly(_SIZE.unpack(size)[0])
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._open.wait()
                if not await passed(body, writer):
                    return
                await writer.drain()

    async def _request(self, body: bytes, writer: asyncio.StreamWriter, waiting: set[int]) -> bool:
        api_key, _, correlation = _REQUEST.unpack_from(body)
        if api_key == END_TXN:
            waiting.add(correlation)
        writer.write(_SIZE.pack(len(body)) + body)
        return True

    async def _answer(self, body: bytes, writer: asyncio.StreamWriter, waiting: set[int]) -> bool:
        correlation = _SIZE.unpack_from(body)[0]
        if correlation in waiting:
            waiting.discard(correlation)
            if self._lose_commits:
                self._lose_commits -= 1
                self.lost_commits += 1
                return False
        if self._halve:
            self._halve -= 1
            self.halved += 1
            writer.write(_SIZE.pack(len(body)) + body[: len(body) // 2])
            await writer.drain()
            await asyncio.sleep(0.01)  # or the abort of the connection takes it along
            return False
        writer.write(_SIZE.pack(len(body)) + body)
        return True


class Network:
    """A proxy for each node, running. A context manager."""

    def __init__(self, nodes: Iterable[int]) -> None:
        """Take the ports."""
        self.proxies = {node: Proxy() for node in nodes}
        self._stop = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)

    @property
    def addresses(self) -> str:
        """What a client bootstraps from."""
        return ",".join(f"{HOST}:{proxy.port}" for proxy in self.proxies.values())

    def __getitem__(self, node: int) -> Proxy:
        """The proxy before one node."""
        return self.proxies[node]

    def heal(self) -> None:
        """All of it."""
        for proxy in self.proxies.values():
            proxy.heal()

    def __enter__(self) -> Self:
        """Begin to accept."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End every connection and the thread."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        async def serve() -> None:
            await asyncio.gather(*(proxy.serve(self._stop) for proxy in self.proxies.values()))
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(serve())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
