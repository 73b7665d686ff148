# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Fair queues: limits of waiting calls, turns between clients, and the removal of calls without a reader."""

import asyncio
import ipaddress
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field


class RefusedCallError(ValueError):
    """Call that is not computed. The message is meant for its sender."""


@dataclass(frozen=True)
class CallLimits:
    """
    Limits of the calls that wait or run.

    Args:
        total, per_client, per_session: Maximum number of calls. A session is a page or a gradio_client. All plain HTTP
            calls of a client form one session.
        unread_seconds: Maximum wait of a call that nobody reads.
        gone_seconds: Time after which a call ends once its reader has disconnected.
    """

    total: int = 120
    per_client: int = 48
    per_session: int = 24
    unread_seconds: float = 20
    gone_seconds: float = 2


@dataclass(eq=False)
class Call:
    """
    Admitted call.

    Args:
        client, session: Address of the client, and its session, whose calls run in order.
        reader: Name of the stream that delivers the result.
        stopped: Event that is set when the result is no longer wanted.
        since: Time of admission, or of the reader's departure, on the monotonic clock.
        was_read: Whether there has been a reader.
    """

    client: str
    session: str
    reader: str
    stopped: threading.Event
    since: float = field(default_factory=time.monotonic)
    was_read: bool = False


def client_of(host: str | None) -> str:
    """Return the client of an address: the address itself, or its /64 network in IPv6, which is one household."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or ""
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


class Calls:
    """Register of all calls that wait or run, and of the readers of their results."""

    def __init__(self, limits: CallLimits):
        self.limits = limits
        self.calls: list[Call] = []
        self.readers: Counter[str] = Counter()
        self.on_reader: list[Callable[[], None]] = []

    @contextmanager
    def reading(self, reader: str) -> Iterator[None]:
        """Register a stream of results as long as it is open."""
        self.readers[reader] += 1
        for notify in self.on_reader:
            notify()
        try:
            yield
        finally:
            self.readers[reader] -= 1
            if not self.readers[reader]:
                del self.readers[reader]
                for call in self.calls:
                    if call.reader == reader:
                        call.since = time.monotonic()

    @contextmanager
    def admit(self, client: str, session: str, reader: str, stopped: threading.Event) -> Iterator[Call]:
        """
        Admit a call. If there are too many, it replaces the oldest one without a reader.

        Raises:
            RefusedCallError: If there are too many calls, and all have readers.
        """
        own = [call for call in self.calls if call.client == client]
        for group, limit, owner in (
            ([call for call in own if call.session == session], self.limits.per_session, "You have"),
            (own, self.limits.per_client, "Your address has"),
            (self.calls, self.limits.total, "This server has"),
        ):
            wanted = [call for call in group if not call.stopped.is_set()]
            if len(wanted) >= limit and not self._displace_unread(wanted):
                raise RefusedCallError(
                    f"{owner} {len(wanted)} calls in line, and at most {limit} may wait: try again soon."
                )
        call = Call(client, session, reader, stopped)
        self.calls.append(call)
        try:
            yield call
        finally:
            self.calls.remove(call)

    def is_read(self, call: Call) -> bool:
        """Return whether the result has a reader at the moment."""
        is_read = call.reader in self.readers
        call.was_read |= is_read
        return is_read

    def wanted_readers(self) -> set[str]:
        """Return the streams that are open, and those that waiting calls will write to."""
        return set(self.readers) | {call.reader for call in self.calls}

    def check_wanted(self, call: Call) -> None:
        """Raise RefusedCallError if the call was stopped, or has had no reader for too long."""
        patience = self.limits.gone_seconds if call.was_read else self.limits.unread_seconds
        is_late = not self.is_read(call) and time.monotonic() - call.since > patience
        if call.stopped.is_set() or is_late:
            raise RefusedCallError("Nobody was waiting for the result of this call.")

    def _displace_unread(self, group: list[Call]) -> bool:
        """Stop the oldest call that has had no reader for a second, and return whether there is one."""
        for call in group:
            if not self.is_read(call) and time.monotonic() - call.since > 1:
                call.stopped.set()
                return True
        return False


class FairQueue:
    """
    Queue before a resource with few slots.

    The next call is of the client that was served least recently, and of the session of this client that was served
    least recently. Calls without a reader are skipped.

    Args:
        calls: Register of all calls.
        slots: Maximum number of calls that hold the resource.
        per_client: Maximum number of these calls of one client.
    """

    POLL_SECONDS = 0.25
    MAX_REMEMBERED = 1000

    def __init__(self, calls: Calls, slots: int, per_client: int):
        self.calls, self.slots, self.per_client = calls, slots, per_client
        self.waiting: dict[Call, tuple[float, asyncio.Event]] = {}
        self.running: list[Call] = []
        self.tick = 0
        self.last_served: dict[tuple[str, ...], int] = {}
        calls.on_reader.append(self._fill_slots)

    @asynccontextmanager
    async def turn(self, call: Call, show_place: Callable[[int], None] | None = None) -> AsyncIterator[None]:
        """
        Wait for the call's turn, and hold a slot in the context.

        While the call waits, `show_place` is called regularly with the number of other waiting calls.

        Raises:
            RefusedCallError: If nobody waits for the result.
        """
        turn = asyncio.Event()
        # A new client comes before the client that was served last.
        self.waiting[call] = (self.tick - 0.5, turn)
        try:
            self._fill_slots()
            while not turn.is_set():
                try:
                    await asyncio.wait_for(turn.wait(), self.POLL_SECONDS)
                except TimeoutError:
                    self.calls.check_wanted(call)
                    if show_place is not None:
                        show_place(len(self.waiting) - 1)
            yield
        finally:
            self.waiting.pop(call, None)
            if call in self.running:
                self.running.remove(call)
            self._fill_slots()

    def _fill_slots(self) -> None:
        while len(self.running) < self.slots:
            busy = Counter(call.client for call in self.running)
            ready = [
                call
                for call in self.waiting
                if busy[call.client] < self.per_client and self.calls.is_read(call) and not call.stopped.is_set()
            ]
            if not ready:
                return
            call = min(ready, key=self._priority)
            _, turn = self.waiting.pop(call)
            self.tick += 1
            for key in ((call.client,), (call.client, call.session)):
                self.last_served.pop(key, None)  # moves the key to the end
                self.last_served[key] = self.tick
            while len(self.last_served) > self.MAX_REMEMBERED:
                del self.last_served[next(iter(self.last_served))]
            self.running.append(call)
            turn.set()

    def _priority(self, call: Call) -> tuple[float, float]:
        """Return when the client and the session were last served, or else when the call arrived."""
        arrived = self.waiting[call][0]
        client = self.last_served.get((call.client,), arrived)
        return client, self.last_served.get((call.client, call.session), arrived)
