# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Fair lines: how many calls a client may have waiting, whose turn it is, and which calls nobody waits for anymore."""

import asyncio
import ipaddress
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field


class RefusedCallError(ValueError):
    """A call that is not computed; the message is a sentence for its sender."""


@dataclass(frozen=True)
class CallLimits:
    """
    Bounds of the calls that wait or run.

    Args:
        total, per_client, per_session: Number of calls at most. A session is a page or a gradio_client; all plain HTTP
            calls of a client are one session.
        unread_seconds: Time that a call may wait for somebody to read its result.
        gone_seconds: Time after which a call ends whose reader has disconnected.
    """

    total: int = 120
    per_client: int = 48
    per_session: int = 24
    unread_seconds: float = 20
    gone_seconds: float = 2


@dataclass(eq=False)
class Call:
    """
    A call that was let in.

    Args:
        client: Address of the client.
        session: Its session, within which calls come in order.
        reader: Name of the stream on which the result is read.
        stopped: Set when nobody wants the result anymore.
    """

    client: str
    session: str
    reader: str
    stopped: threading.Event
    since: float = field(default_factory=time.monotonic)
    was_read: bool = False


def client_of(host: str | None) -> str:
    """Return the client that an address belongs to: itself, or its /64 network in IPv6, which is one household."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or ""
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


class Calls:
    """All calls that wait or run, and who reads their results."""

    def __init__(self, limits: CallLimits):
        self.limits = limits
        self.calls: list[Call] = []
        self.readers: Counter[str] = Counter()
        self.on_change: list[Callable[[], None]] = []

    @contextmanager
    def reading(self, reader: str) -> Iterator[None]:
        """Count a stream on which results are read, for as long as it is open."""
        self.readers[reader] += 1
        self._changed()
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
        Let a call in, in place of the oldest one that nobody reads if there are too many.

        Raises:
            RefusedCallError: if there are too many calls.
        """
        for group, most, owner in (
            (
                [c for c in self.calls if (c.client, c.session) == (client, session)],
                self.limits.per_session,
                "You have",
            ),
            ([c for c in self.calls if c.client == client], self.limits.per_client, "Your address has"),
            (self.calls, self.limits.total, "This server has"),
        ):
            group = [call for call in group if not call.stopped.is_set()]
            if len(group) >= most and not self._displace_unread(group):
                raise RefusedCallError(
                    f"{owner} {len(group)} calls in line, and at most {most} may wait: try again soon."
                )
        call = Call(client, session, reader, stopped)
        self.calls.append(call)
        try:
            yield call
        finally:
            self.calls.remove(call)

    def is_read(self, call: Call) -> bool:
        """Return whether somebody waits for the result now."""
        call.was_read = call.was_read or call.reader in self.readers
        return call.reader in self.readers

    def wanted_readers(self) -> set[str]:
        """Return the streams that are open, or that calls in line wait for."""
        return set(self.readers) | {call.reader for call in self.calls}

    def check_wanted(self, call: Call) -> None:
        """Raise RefusedCallError if nobody has waited for the result for some time."""
        patience = self.limits.gone_seconds if call.was_read else self.limits.unread_seconds
        late = not self.is_read(call) and time.monotonic() - call.since > patience
        if call.stopped.is_set() or late:
            raise RefusedCallError("Nobody was waiting for the result of this call.")

    def _displace_unread(self, group: list[Call]) -> bool:
        """End the oldest call that had a second to be read and is not, if there is one."""
        for call in group:
            if not self.is_read(call) and time.monotonic() - call.since > 1:
                call.stopped.set()
                return True
        return False

    def _changed(self) -> None:
        for notify in self.on_change:
            notify()


class FairLine:
    """
    A line before something that few calls can use at once. The next one is of the client that was served longest ago,
    and there of the session that was. Calls whose results nobody waits for are passed over.

    Args:
        calls: All calls.
        slots: Number of calls at once.
        per_client: Number of calls of one client at once.
    """

    POLL_SECONDS = 0.25
    MAX_REMEMBERED = 1000

    def __init__(self, calls: Calls, slots: int, per_client: int):
        self.calls, self.slots, self.per_client = calls, slots, per_client
        self.waiting: dict[Call, tuple[float, asyncio.Event]] = {}
        self.running: list[Call] = []
        self.tick = 0
        self.last_served: dict[tuple[str, ...], int] = {}
        calls.on_change.append(self._start)

    @asynccontextmanager
    async def turn(self, call: Call, show_place: Callable[[int], None] | None = None) -> AsyncIterator[None]:
        """
        Wait for the call's turn, and hold it.

        Args:
            call: The call.
            show_place: Called now and then with the number of calls that wait here too.

        Raises:
            RefusedCallError: if nobody waits for the result.
        """
        turn = asyncio.Event()
        # A newcomer comes before the client that is being served now.
        self.waiting[call] = (self.tick - 0.5, turn)
        try:
            self._start()
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
            self._start()

    def _start(self) -> None:
        """Give free slots to the calls whose turn it is."""
        while len(self.running) < self.slots:
            busy = Counter(call.client for call in self.running)
            ready = [
                call
                for call in self.waiting
                if busy[call.client] < self.per_client and self.calls.is_read(call) and not call.stopped.is_set()
            ]
            if not ready:
                return
            call = min(ready, key=self._order)
            _, turn = self.waiting.pop(call)
            self.tick += 1
            for key in ((call.client,), (call.client, call.session)):
                self.last_served.pop(key, None)
                self.last_served[key] = self.tick
            while len(self.last_served) > self.MAX_REMEMBERED:
                del self.last_served[next(iter(self.last_served))]
            self.running.append(call)
            turn.set()

    def _order(self, call: Call) -> tuple[float, float]:
        """Return when the call's client and session were last served, or else when the call arrived."""
        arrived = self.waiting[call][0]
        client = self.last_served.get((call.client,), arrived)
        return client, self.last_served.get((call.client, call.session), arrived)
