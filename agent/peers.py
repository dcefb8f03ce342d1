"""The data plane of a board: one listener, and one connection to each peer that it sends to.

One thread reads all connections, whoever opened them; whoever has something to send opens one if it has
none.  A frame belongs to an *attempt* at a request.  The first frame of an unknown attempt
is handed to `on_attempt`, which opens an `Inbox` for it or refuses; frames that nobody waits for are
dropped and counted (`admission`).  Whatever is not our protocol closes that connection, and is counted and
logged.
"""

import logging
import math
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import numpy as np

from shoal import frames
from shoal.agent.admission import Admission, Starter
from shoal.agent.coming import Coming, heard, told
from shoal.agent.connection import Buffers, Connection, CrowdedError, Purpose, tuned
from shoal.agent.inbox import Arrived, Inboxes
from shoal.agent.reading import Reader, Reading, accepting
from shoal.encoding import from_json, to_json
from shoal.errors import BoardError, ModelError, WireError
from shoal.frames import Header, Hello, Kind
from shoal.profiler import tcp_info
from shoal.profiler.goodput import Transfer
from shoal.profiler.tcp_info import TcpInfo
from shoal.records import LEAST_S, Address, BoardId

log = logging.getLogger(__name__)

CONNECT_S: Final = 2.0
AGAIN_S: Final = 0.5
"""An address that was not reached is not tried again for so long: others wait for the same."""
HELLO_S: Final = 5.0
MAX_CONNECTIONS: Final = 256


class ExchangeError(BoardError):
    """An exchange with `peer` failed: this attempt is over, another may succeed."""

    def __init__(self, peer: BoardId, why: str) -> None:
        super().__init__(f"exchange with {peer}: {why}")
        self.peer = peer
        self.why = why


class Peers:
    """All connections of a board."""

    def __init__(
        self,
        cluster: str,
        board: BoardId,
        on_attempt: Starter,
        connected: Callable[[socket.socket, BoardId | None], Connection] = Connection,
    ) -> None:
        """`connected` makes a connection of a socket and the peer at its other end, if that is known."""
        self.inboxes = Inboxes(board)
        """Of the attempts that this board takes part in."""
        self.admission = Admission(self.inboxes, on_attempt)
        """Of the frames that come."""
        self._connected = connected
        self._cluster = cluster
        self._board = board
        self._lock = threading.Lock()
        self._addresses: Mapping[BoardId, Address] = {}
        self._outgoing: dict[BoardId, Connection] = {}
        self._opening: dict[BoardId, threading.Lock] = {}
        self._unreached_s: dict[Address, float] = {}
        self._all: set[Connection] = set()
        self._pongs: dict[bytes, queue.SimpleQueue[float]] = {}
        self._closing = False
        self.refused = 0
        """Connections that did not keep to the protocol."""
        self.on_heard: Callable[[BoardId, Transfer], None] = lambda _peer, _transfer: None
        """Hears how fast what we send comes to a peer."""
        self.on_came: Callable[[BoardId, Transfer], None] = lambda _peer, _transfer: None
        """Hears how fast what a peer sends comes here."""
        self.on_notes: Callable[[bytes, BoardId, bytes], None] = lambda _attempt, _peer, _notes: None
        """Hears what a peer did when in an attempt."""
        self._coming: list[Coming] = []
        """Tensors that are coming in just now."""
        self._reader = Reader(f"reads for {board}")

    def listen(self, host: str, port: int) -> int:
        """Begin to accept connections and return the port (the one asked for, or for 0 any free one)."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=64)
        except OSError as error:
            raise BoardError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        port = int(self._listener.getsockname()[1])
        self._reader.add(self._listener, accepting(self._listener, self._admit))
        return port

    def know(self, addresses: Mapping[BoardId, Address]) -> None:
        """Learn where the peers are; a connection to where a peer no longer is, is closed."""
        with self._lock:
            moved = [b for b in self._outgoing if b in addresses and addresses[b] != self._addresses.get(b)]
            stale = [self._outgoing.pop(board) for board in moved]
            self._addresses = dict(addresses)
        for connection in stale:
            connection.close()

    def send(self, peer: BoardId, buffers: Buffers, purpose: Purpose | None = None) -> None:
        """Send frames to `peer`, as `Connection.send` does with a purpose and without.

        Raises ExchangeError, or CrowdedError, which is no proof against the link, or why `purpose` is over.
        """
        if purpose is not None:
            purpose.check()  # before a connection is opened
        try:
            self._connection(peer).send(buffers, purpose)
        except (OSError, ValueError) as error:  # ValueError: an address that is none
            raise ExchangeError(peer, f"cannot send: {error}") from error

    def connected(self, peer: BoardId) -> bool:
        """Say whether there is a connection to send to `peer` on."""
        with self._lock:
            return peer in self._outgoing

    def abort(self, attempt: bytes, peers: frozenset[BoardId], kind: Kind, why: str) -> None:
        """Drop what waits to be sent for an attempt that is over, and tell `peers` if they can be reached."""
        with self._lock:
            connections = list(self._outgoing.values())
        for connection in connections:
            connection.drop(attempt)
        for peer in peers:
            try:
                self.send(peer, frames.text(kind, why, attempt=attempt))
            except ExchangeError as error:
                log.debug("not told: %s", error)

    def ping(self, peer: BoardId, size_bytes: int, timeout_s: float) -> float:
        """Return the seconds from sending `size_bytes` until `peer` says that it has them."""
        begun_s = time.perf_counter()
        return self._answered(peer, Kind.PING, size_bytes, 1, timeout_s)[0] - begun_s

    def flow(self, peer: BoardId, size_bytes: int, count: int, timeout_s: float, *, both_ways: bool) -> float:
        """Send `count` messages of `size_bytes` on end, and return the bytes a second from first to last.

        With `both_ways`, `peer` sends as much back at the same time.  Raises ExchangeError.
        """
        kind = Kind.ECHO if both_ways else Kind.PING
        first_s, *_, last_s = self._answered(peer, kind, size_bytes, count, timeout_s)
        return (count - 1) * size_bytes / max(last_s - first_s, LEAST_S)

    def _answered(
        self, peer: BoardId, kind: Kind, size_bytes: int, count: int, timeout_s: float
    ) -> list[float]:
        """Return when, by `perf_counter`, each of `count` messages was answered."""
        token = secrets.token_bytes(16)
        answers = self._pongs[token] = queue.SimpleQueue[float]()
        header = frames.pack(Header(kind=kind, attempt=token, length=size_bytes))
        payload = bytes(size_bytes)
        purpose = Purpose(attempt=token, until_s=time.monotonic() + timeout_s, check=lambda: None)
        try:
            for _ in range(count):
                self.send(peer, [header, payload], purpose)
            return [answers.get(timeout=timeout_s) for _ in range(count)]
        except (queue.Empty, CrowdedError) as error:
            with self._lock:
                connection = self._outgoing.get(peer)
            if connection is not None:
                connection.drop(token)
            raise ExchangeError(peer, f"no answer to a ping within {timeout_s:.0f} s") from error
        finally:
            del self._pongs[token]

    def info(self, peer: BoardId) -> TcpInfo | None:
        """Return what the kernel knows of the connection to `peer`; None if there is none."""
        with self._lock:
            found = self._outgoing.get(peer)
        return tcp_info.read(found.sock) if found is not None else None

    def stop(self) -> None:
        """Close everything; attempts under way fail."""
        self._closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._reader.end()
        with self._lock:
            connections = list(self._all)
        for connection in connections:
            connection.close()
        self.inboxes.end_all(partial(BoardError, f"{self._board} is stopping"))

    def _connection(self, peer: BoardId) -> Connection:
        """Return the connection to `peer`, opened if need be, by one thread only."""
        if (there := self._outgoing.get(peer)) is not None:
            return there
        with self._lock:
            opening = self._opening.setdefault(peer, threading.Lock())
        with opening:
            with self._lock:
                found = self._outgoing.get(peer)
                address = self._addresses.get(peer)
            if found is not None:
                return found
            if address is None:
                raise ExchangeError(peer, "its address is not known")
            if time.monotonic() - self._unreached_s.get(address, -math.inf) < AGAIN_S:
                raise ExchangeError(peer, "it was not reached a moment ago")
            try:
                connection = self._opened(peer, address)
            except OSError:
                self._unreached_s[address] = time.monotonic()
                raise
            with self._lock:
                self._outgoing[peer] = connection
                self._all.add(connection)
            self._read_on(connection)
        return connection

    def _opened(self, peer: BoardId, address: Address) -> Connection:
        """Return a new connection to `peer`, on which we have said who we are."""
        sock = socket.create_connection((address.host, address.data_port), CONNECT_S)
        hello = Hello(cluster=self._cluster, sender=self._board, receiver=peer)
        try:
            connection = self._connected(tuned(sock), peer)
            connection.send(frames.text(Kind.HELLO, to_json(hello).decode()))
        except OSError:  # reset at once: it is going just now
            sock.close()
            raise
        return connection

    def _read_on(self, connection: Connection, within_s: float = math.inf) -> None:
        """Have a new connection read; the other end has so long to say who it is."""
        try:
            self._reader.add(connection.sock, self._read(connection), within_s)
        except ConnectionError:
            connection.close()
            connection.sock.close()
            raise
        if self._closing:  # it was opened when the others had been closed
            connection.close()

    def _admit(self, sock: socket.socket) -> None:
        """Have a connection read that somebody has opened, unless there are too many."""
        connection = self._connected(tuned(sock), None)
        with self._lock:
            full = len(self._all) >= MAX_CONNECTIONS
            if not full:
                self._all.add(connection)
        if full:
            log.warning("refused a connection: there are %d already", MAX_CONNECTIONS)
            sock.close()
            return
        with suppress(ConnectionError):  # we are closing
            self._read_on(connection, HELLO_S)

    def _read(self, connection: Connection) -> Reading:
        """Read frames until the connection ends, and say so to whoever waits for that peer."""
        why = "closed"
        try:
            if connection.peer is None:
                connection.peer = yield from self._greeted(connection)
                self._reader.trust(connection.sock)
            while True:
                yield from self._take(connection, connection.peer)
        except WireError as error:
            self.refused += 1
            self.admission.refuse(connection.peer)
            why = str(error)
            log.warning("refused a connection from %s: %s", connection.peer or "a stranger", error)
        except OSError as error:
            why = connection.broken or str(error)
        finally:
            self._lost(connection, why)

    def _greeted(self, connection: Connection) -> Generator[None, None, BoardId]:
        """Return who opened the connection.  Raises WireError if it is not of this cluster."""
        header = frames.unpack((yield from connection.receive(frames.HEADER.size)))
        if header.kind is not Kind.HELLO:
            raise WireError(f"expected HELLO first, got {header.kind.name}")
        hello = from_json(Hello, (yield from connection.receive(header.length)), "hello")
        if (hello.cluster, hello.receiver) != (self._cluster, self._board):
            raise WireError(
                f"expected a connection to {self._board} of cluster {self._cluster}, got one to "
                f"{hello.receiver!r:.80} of {hello.cluster!r:.80}"
            )
        return hello.sender

    def _take(self, connection: Connection, peer: BoardId) -> Reading:
        """Receive one frame and act on it."""
        header = frames.unpack((yield from connection.receive(frames.HEADER.size)))
        if header.kind is Kind.TENSORS:
            laid = frames.layout(header, (yield from connection.receive(header.table)))
            inbox = None
            try:
                inbox = self.admission.admit(header, peer)
            except BoardError as error:
                connection.send(frames.text(Kind.ABORT, str(error), attempt=header.attempt))
            if inbox is None:
                yield from connection.discard(header.length)
                return
            payload = np.empty(header.length, np.uint8)
            begun_s = time.monotonic()
            if header.length:
                yield from self._receive(connection, peer, payload.data)
            arrived = Arrived(
                arrays=frames.arrays(laid, payload),
                size_bytes=header.length,
                begun_s=begun_s,
                ended_s=time.monotonic(),
            )
            if not inbox.put((header.tag, peer, header.chunk), arrived):
                self.admission.drop_late(header, peer, "nobody waits for them any more")
        elif header.kind in (Kind.PING, Kind.ECHO):
            yield from connection.discard(header.length)
            size_bytes = header.length if header.kind is Kind.ECHO else 0
            pong = Header(kind=Kind.PONG, attempt=header.attempt, length=size_bytes)
            connection.send([frames.pack(pong), bytes(size_bytes)])
        elif header.kind is Kind.PONG:
            yield from connection.discard(header.length)
            waiting = self._pongs.get(header.attempt)
            if waiting is not None:
                waiting.put(time.perf_counter())
        elif header.kind is Kind.HEARD:
            self.on_heard(peer, heard((yield from connection.receive(header.length))))
        elif header.kind is Kind.NOTES:
            self.on_notes(header.attempt, peer, (yield from connection.receive(header.length)))
        else:
            said = (yield from connection.receive(header.length)).decode(errors="replace")
            kind = ModelError if header.kind is Kind.REFUSE else BoardError
            why = partial(kind, f"{peer}: {said}")
            self.admission.end(header, peer, why)
            with self._lock:
                back = self._outgoing.get(peer)
            if back is not None:  # it needs nothing of ours for that any more
                back.drop(header.attempt)

    def _receive(self, connection: Connection, peer: BoardId, view: memoryview) -> Reading:
        """Receive tensors, and now and then tell their sender how fast they come."""
        own = Coming()
        self._coming.append(own)
        for each in self._coming:
            each.flows = max(each.flows, len(self._coming))

        def passed(size_bytes: int, seconds: float) -> None:
            transfer = Transfer(size_bytes=size_bytes, seconds=seconds, flows=own.flows)
            own.flows = len(self._coming)
            if not transfer.telling:
                return
            fastest = connection.came.of(transfer, time.monotonic())
            if fastest is not None:
                self.on_came(peer, fastest)
                connection.send(told(fastest))

        try:
            yield from connection.receive_into(view, passed)
        finally:
            self._coming.remove(own)

    def _lost(self, connection: Connection, why: str) -> None:
        """Close, and end the attempts that the peer has part in, here and, if we sent on this, there."""
        peer = connection.peer
        if peer is None or self._closing:
            connection.close()
            with self._lock:
                self._all.discard(connection)
            return
        with self._lock:
            self._all.discard(connection)
            sending = self._outgoing.get(peer) is connection
            if sending:
                del self._outgoing[peer]
        # Only now: an attempt that has sent on this connection is among them.
        attempts = self.inboxes.end_with(peer, partial(ExchangeError, peer, why))
        connection.close()
        if sending and attempts:
            told = (peer, attempts, f"what was sent to {peer} is lost: {why}")
            threading.Thread(target=self._tell_lost, args=told, name="tells", daemon=True).start()

    def _tell_lost(self, peer: BoardId, attempts: Sequence[bytes], why: str) -> None:
        """Tell a peer of attempts whose tensors it may not have got; this may take a new connection.

        It may never have heard of them, so whoever waits for what it was to make of them is told too.
        """
        with self._lock:
            others = self._addresses.keys() - {peer, self._board}
        for each in (peer, *others):
            with suppress(ExchangeError):
                for attempt in attempts:
                    self.send(each, frames.text(Kind.ABORT, why, attempt=attempt))
