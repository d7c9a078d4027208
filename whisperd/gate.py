"""A gate with a few places: whoever wants in waits in line, the most urgent first; while it is shut, nobody passes."""

from __future__ import annotations

import asyncio
import heapq


class Gate:
    """`enter(rank)` waits for a place; a lower rank goes first. Every `enter` that returned is owed a `leave`."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._shut = False
        self._line: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = 0

    async def enter(self, rank: int) -> None:
        """Cancelled in line, a waiter leaves nothing behind."""
        if self._free and not self._shut and not self._line:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        heapq.heappush(self._line, (rank, self._arrivals, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the place had just been given
            raise

    def leave(self) -> None:
        self._free += 1
        self._admit()

    def shut(self, shut: bool) -> None:
        """While shut, nobody enters; who is inside stays."""
        self._shut = shut
        self._admit()

    def _admit(self) -> None:
        while self._line and self._free and not self._shut:
            _, _, turn = heapq.heappop(self._line)
            if not turn.done():
                self._free -= 1
                turn.set_result(None)
