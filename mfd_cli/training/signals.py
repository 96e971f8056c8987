"""Stop requests: Ctrl-C and SIGTERM end a run at the next border between two updates, after a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

#: exit codes of the contract
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class StopRequest:
    """Remembers the first SIGINT or SIGTERM while the block runs; a second Ctrl-C interrupts at once.

    Handlers can only be installed in the main thread; elsewhere the block changes nothing.

    Attributes:
        received: the signal that asked to stop.
        at_once: whether the first signal too interrupts at once (as KeyboardInterrupt), since nothing waits for it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.at_once = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None and number == signal.SIGINT
        self.received = signal.Signals(number)
        if again or self.at_once:
            raise KeyboardInterrupt
