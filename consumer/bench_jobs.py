"""What `framegate bench stream` measures, each in a process of its own: `python -m consumer.bench_jobs KIND JOB`."""

from __future__ import annotations

import json
import logging
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer.memory_io import BrightnessJudge
from consumer.ports import Decoded
from consumer.worker import main as worker_main
from engine.preprocess import preprocess
from engine.specs import ImageSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from consumer.app import Instruments
    from consumer.config import Settings
    from engine.backend import Backend
    from engine.bundle import Bundle
    from engine.prediction import ScoredBatch

USED = "processor time: "
"""Begins the line in which a process tells what it used."""

COMMAND = (sys.executable, "-m", "consumer.bench_jobs")
SPEC = ImageSpec(160, 160, jpeg="scaled")
"""As a bundle that is trained now has it. The plain loop decodes whole and resizes, as people do."""


class NullJudge(BrightnessJudge):
    """An engine that costs nothing to speak of: it looks at one pixel in 256."""

    def __init__(self) -> None:
        """Decode as a bundle for 160 x 160 does."""
        super().__init__(SPEC, partial(preprocess, spec=SPEC))

    def score(self, frames: Sequence[Decoded]) -> ScoredBatch:
        """See `Judge`."""
        return super().score([replace(frame, image=frame.image[::16, ::16]) for frame in frames])

    def score_one(self, image: NDArray[np.uint8]) -> ScoredBatch:
        """Of one uint8 (1, h, w, 3) image, for a loop that has no frames."""
        return self.score([Decoded("", self.routes()[0], image[0], b"")])


def main(kind: str, job: dict[str, Any]) -> int:
    """Do one job.

    Kinds: `worker` (of the next), `null` (our consumer without an engine), `plain` (the plain loop), `camera` (sends
    frames when they are due), `fed` (our consumer on a modelled GPU that its workers share), `fed-worker` and
    `fed-engine` (of it).
    """
    kinds: dict[str, Callable[[], int]] = {
        "worker": lambda: worker_main(_serve_null),
        "null": lambda: _null(job),
        "plain": lambda: _plain(job),
        "camera": lambda: _camera(job),
        "fed": lambda: _fed(job),
        "fed-worker": lambda: worker_main(_serve_fed),
        "fed-engine": lambda: _fed_engine(job, int(sys.argv[3])),
    }
    return kinds[kind]()


def _serve_null(settings: Settings, instruments: Instruments | None = None) -> None:
    from consumer.app import serve  # noqa: PLC0415 - a worker's imports come after its cores are set

    serve(settings, NullJudge(), instruments=instruments)


def _null(job: dict[str, Any]) -> int:
    from consumer.app import log_to_stderr  # noqa: PLC0415 - as above
    from consumer.config import Settings  # noqa: PLC0415 - as above
    from consumer.workers import run_workers  # noqa: PLC0415 - as above

    settings = Settings(bundle="none", engine_process="own", **job)
    log_to_stderr(settings.log_format)
    workers = settings.workers or 1
    if workers > 1:
        run_workers(settings, workers, command=[*COMMAND, "worker", "{}"])
    else:
        _serve_null(settings)
    return 0


def _fed(job: dict[str, Any]) -> int:
    from consumer.app import log_to_stderr  # noqa: PLC0415 - as above
    from consumer.config import Settings  # noqa: PLC0415 - as above
    from consumer.workers import run_workers  # noqa: PLC0415 - as above

    cost = job.pop("cost")
    settings = Settings(**job, engine_process="shared", backend="onnxruntime")
    log_to_stderr(settings.log_format)
    engine = [*COMMAND, "fed-engine", json.dumps(cost)]
    run_workers(settings, settings.workers or 1, command=[*COMMAND, "fed-worker", "{}"], engine_command=engine)
    return 0


def _serve_fed(settings: Settings, instruments: Instruments) -> None:
    """One worker, which tells at its end what its threads used of the processor."""
    from consumer.app import loader_of, serve  # noqa: PLC0415 - as above
    from consumer.engine_judge import EngineJudge  # noqa: PLC0415 - as above
    from consumer.thread_times import ThreadTimes  # noqa: PLC0415 - as above

    times = ThreadTimes()
    with EngineJudge(loader_of(settings).load()) as judge, times.sampling():
        serve(settings, judge, on_ready=lambda _pipeline, _address: times.begin(), instruments=instruments)
    counted = [
        sample.value
        for metric in instruments.registry.collect()
        for sample in metric.samples
        if sample.name == "framegate_verdicts_total"
    ]
    _tell(sum(counted), times.seconds(), engine=False)


def _fed_engine(cost: dict[str, float], fd: int) -> int:
    """A modelled GPU behind the border; the process tells at its end what it used."""
    from engine.backend_modelled import BatchCost, ModelledBackend  # noqa: PLC0415 - as above
    from engine.featurizer import FeaturizerSpec, inputs  # noqa: PLC0415 - as above

    def open_modelled(bundle: Bundle) -> Backend:
        spec = FeaturizerSpec.from_json(bundle.featurizer)
        return ModelledBackend(inputs(spec, bundle.image), spec.pooled_size, BatchCost(**cost), blank=True)

    def run(settings: Settings, instruments: Instruments) -> None:
        from consumer.engine_process import serve_engine  # noqa: PLC0415 - as above
        from consumer.thread_times import ThreadTimes  # noqa: PLC0415 - as above

        times = ThreadTimes()
        with socket.socket(fileno=fd) as listener, times.sampling():
            serve_engine(listener, settings, instruments, open_backend=open_modelled)
        frames = instruments.registry.get_sample_value("framegate_engine_batch_frames_sum") or 0.0
        _tell(frames, times.seconds(), engine=True)

    return worker_main(run)


def _tell(frames: float, seconds: dict[str, float], *, engine: bool) -> None:
    """One line of the log that the bench looks for."""
    logging.getLogger(__name__).info("%s%s", USED, json.dumps({"engine": engine, "frames": frames, "seconds": seconds}))


def _camera(job: dict[str, Any]) -> int:
    from consumer.plain_stream import send_on_time  # noqa: PLC0415 - as above

    payloads = [path.read_bytes() for path in sorted(Path(job.pop("payloads")).iterdir())]
    report = Path(job.pop("report"))
    report.write_text(json.dumps(send_on_time(payloads=payloads, **job)), encoding="utf-8")
    return 0


def _plain(job: dict[str, Any]) -> int:
    from consumer.plain_stream import plain_loop  # noqa: PLC0415 - as above

    bundle, backend = job.pop("bundle"), job.pop("backend")
    side_px = (SPEC.width_px, SPEC.height_px)
    if bundle is None:
        judge = NullJudge()
        plain_loop(**job, side_px=side_px, score=lambda image: _first(judge.score_one(image)))
        return 0
    from engine.scorer import open_scorer  # noqa: PLC0415 - as above

    with open_scorer(bundle, backend) as scorer:
        plain_loop(**job, side_px=side_px, score=lambda image: _first(scorer.score(image)))
    return 0


def _first(scored: Any) -> float:
    return float(scored.predictions[0].defect_probability)


if __name__ == "__main__":
    given = sys.argv[2]
    # A long job is in a file: a command line has an end.
    text = Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given
    sys.exit(main(sys.argv[1], json.loads(text)))
