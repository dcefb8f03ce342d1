"""A bell: one task waits for it, for no longer than it likes, at the price of a timer."""

import asyncio


class Bell:
    """Wakes the one who waits for it; once it has been rung, nobody waits until it is hushed.

    Make it inside a running event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = False
        self._waiting: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake whoever waits, and let nobody wait from now on."""
        self._rung = True
        self._wake()

    def hush(self) -> None:
        """Let it be waited for again."""
        self._rung = False

    async def wait(self, timeout_s: float) -> None:
        """Return once it has been rung, or after `timeout_s`; one task at a time may wait.

        Made of a timer, because asyncio.wait_for before Python 3.12 can swallow a cancellation.
        """
        if self._rung:
            return
        self._waiting = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, self._wake)
        try:
            await self._waiting
        finally:
            timer.cancel()
            self._waiting = None

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
