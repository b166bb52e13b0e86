"""A consumer under test: the product's own, with an engine that raises and a clock that jumps.

    python -m tests.faults.worker --bundle … --bootstrap-servers … --instance one …

Ends as `framegate run` does. SIGUSR1 makes its time of day jump.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import signal
import sys
from typing import TYPE_CHECKING

from consumer import app
from consumer.clock import SystemClock
from consumer.config import Settings
from consumer.engine_judge import EngineJudge
from engine.errors import FramegateError
from tests.faults.frames import is_marked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from consumer.ports import Begun, Decoded, Judge
    from engine.prediction import ScoredBatch

log = logging.getLogger("tests.faults.worker")


class RaisingJudge:
    """A judge that raises at marked frames always, and at a batch at random: then not again for its frames' retry."""

    def __init__(self, judge: Judge, rate: float, seed: int) -> None:
        """`rate` is the share of batches at which it raises without a cause, from `start` on."""
        self._judge = judge
        self._rate = rate
        self._begun = False
        self._random = random.Random(seed)
        self._calm = 0
        self.route, self.release, self.routes = judge.route, judge.release, judge.routes
        self.warm, self.decode = judge.warm, judge.decode
        self.begin, self.wait = judge.begin, judge.wait

    @property
    def ahead(self) -> int:
        """See `Judge`."""
        return self._judge.ahead

    def start(self, *_: object) -> None:
        """The engine is warm: from here on it raises."""
        self._begun = True

    def score(self, frames: Sequence[Decoded]) -> ScoredBatch:
        """See `Judge`."""
        return self.finish(self.begin(frames))

    def finish(self, begun: Begun) -> ScoredBatch:
        """See `Judge`. Here and not in `begin`, so that what follows a failure is its frames' retry."""
        self.wait(begun)
        frames = begun.frames
        if self._calm:
            self._calm -= 1
        elif self._begun and self._random.random() < self._rate:
            self._calm = len(frames)
            msg = "the engine raises at random"
            raise RuntimeError(msg)
        if any(is_marked(frame.image) for frame in frames):
            if len(frames) > 1:
                self._calm = len(frames)
            msg = "the engine raises at a marked frame"
            raise RuntimeError(msg)
        return self._judge.finish(begun)


class JumpingClock(SystemClock):
    """The system's clock, whose time of day jumps; its monotonic time never does."""

    shift_s = 0.0
    _jumps_s = itertools.cycle((7_200.0, -86_400.0, 0.0))  # ahead, far behind, right again

    def epoch_s(self) -> float:
        """See `Clock`."""
        return super().epoch_s() + JumpingClock.shift_s

    @classmethod
    def jump(cls, *_: object) -> None:
        """To the next shift: the signal's handler."""
        cls.shift_s = next(cls._jumps_s)
        log.info("the time of day jumps to %+.0f s", cls.shift_s)


def main() -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    for name in ("bundle", "bootstrap-servers", "group", "frames-topic", "verdicts-topic", "dead-topic", "instance"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--session-timeout-s", type=float, default=6.0)
    parser.add_argument("--raise-rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    rate, seed = given.pop("raise_rate"), given.pop("seed")
    app.log_to_stderr("text")
    vars(app)["SystemClock"] = JumpingClock
    signal.signal(signal.SIGUSR1, JumpingClock.jump)
    settings = Settings(**given, http_port=None, backend="onnxruntime", delivery="exactly-once", decode_threads=1)
    try:
        with EngineJudge(app.loader_of(settings).load()) as whole:
            judge = RaisingJudge(whole, rate, seed)
            app.serve(settings, judge, on_ready=judge.start)
    except FramegateError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
