"""The system's clock behind the port."""

from __future__ import annotations

import time


class SystemClock:
    """Monotonic and epoch time as the operating system has them."""

    def monotonic_s(self) -> float:
        """Seconds that never step back."""
        return time.monotonic()

    def epoch_s(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return time.time()
