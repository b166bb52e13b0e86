"""What a competent user would write in each library without Framegate: the loops that `bench engine` measures against.

Each repeats one batch after the other for a while and takes the results that count, evidence and pooled vectors.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import engine.backend_onnx  # noqa: F401 - switches ONNX Runtime's usage reports off before it is imported below
from engine.backend_openvino import compile_graph
from engine.streams import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    Feeds = Sequence[Mapping[str, np.ndarray]]
    """Batches of one size, each input by its name; images among them."""


@dataclass(frozen=True, slots=True)
class Loop:
    """One way to compute batches.

    Attributes:
        name: in words.
        run: computes batches for so many seconds, at least one, and returns how many images are done.
        same_graph: whether the graph is the given one, as it is.
        unmarked: whether all of it is in the reduced precision, where ours keeps some of it in fp32.
    """

    name: str
    run: Callable[[float], int]
    same_graph: bool = True
    unmarked: bool = False


def onnx_loops(graph: bytes, outputs: list[str], feeds: Mapping[int, Feeds]) -> dict[int, list[Loop]]:
    """ONNX Runtime: a session as it comes, and a session of one thread that a Python thread per core calls.

    Args:
        graph: an ONNX file whose first input is images, their number named `n`.
        outputs: what to take.
        feeds: for each batch size its batches.
    """
    import onnxruntime as ort  # noqa: PLC0415 - see above

    def session(*, threads: int = 0, batch: int | None = None) -> Callable[[Mapping[str, np.ndarray]], object]:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        if batch is not None:
            options.add_free_dimension_override_by_name("n", batch)
        run = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"]).run
        return lambda feed: run(outputs, feed)

    own, one = session(), session(threads=1)
    return {
        size: [
            Loop("one session, its own threads", _one_by_one(own, batches)),
            Loop("a thread per core", _on_threads(one, batches)),
            Loop(
                "a thread per core, graph fixed to this batch",
                _on_threads(session(threads=1, batch=size), batches),
                same_graph=False,
            ),
        ]
        for size, batches in feeds.items()
    }


def openvino_loops(
    graph: bytes, precision: str, outputs: list[str], feeds: Mapping[int, Feeds]
) -> dict[int, list[Loop]]:
    """OpenVINO: one request at a time under its latency hint and on one stream, and its queue under the other hint.

    Arguments as in `onnx_loops`. In bf16 the nodes that our backend keeps in fp32 stay so, for the same arithmetic; one
    loop more tells what it costs.
    """
    hint = {"PERFORMANCE_HINT": "THROUGHPUT"}
    latency = compile_graph(graph, precision, {"PERFORMANCE_HINT": "LATENCY"})
    one_stream = compile_graph(graph, precision, {"NUM_STREAMS": "1"})
    throughput = compile_graph(graph, precision, hint)
    unmarked = compile_graph(graph, precision, hint, marked=False) if precision == "bf16" else None
    loops = {}
    for size, batches in feeds.items():
        fixed = compile_graph(graph, precision, hint, batch=size)
        loops[size] = [
            Loop("latency hint, one request", _one_request(latency, batches)),
            Loop("one stream, one request", _one_request(one_stream, batches)),
            Loop("throughput hint, queue", _queue(throughput, outputs, batches)),
            Loop(
                "throughput hint, queue, graph fixed to this batch", _queue(fixed, outputs, batches), same_graph=False
            ),
        ]
        if unmarked is not None:
            loop = _queue(unmarked, outputs, batches)
            loops[size].append(Loop("throughput hint, queue, all of it in bf16", loop, same_graph=False, unmarked=True))
    return loops


def _one_request(compiled: Any, feeds: Feeds) -> Callable[[float], int]:
    request = compiled.create_infer_request()
    return _one_by_one(lambda feed: request.infer(feed, share_inputs=True, share_outputs=True), feeds)


def _one_by_one(call: Callable[[Mapping[str, np.ndarray]], object], feeds: Feeds) -> Callable[[float], int]:
    def run(seconds: float) -> int:
        end_s = time.perf_counter() + seconds
        done = 0
        while not done or time.perf_counter() < end_s:
            call(feeds[done % len(feeds)])
            done += 1
        return done * len(feeds[0]["images"])

    return run


def _on_threads(call: Callable[[Mapping[str, np.ndarray]], object], feeds: Feeds) -> Callable[[float], int]:
    one = _one_by_one(call, feeds)

    def run(seconds: float) -> int:
        done: list[int] = []
        threads = [threading.Thread(target=lambda: done.append(one(seconds))) for _ in range(cores())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(done)

    return run


def _queue(compiled: Any, outputs: list[str], feeds: Feeds) -> Callable[[float], int]:
    from openvino import AsyncInferQueue  # noqa: PLC0415 - only after engine.backend_openvino, for its usage reports

    queue = AsyncInferQueue(compiled)
    queue.set_callback(lambda request, _: [request.get_tensor(name).data.copy() for name in outputs])

    def begin(feed: Mapping[str, np.ndarray]) -> None:
        queue.start_async(feed, share_inputs=True)

    one = _one_by_one(begin, feeds)

    def run(seconds: float) -> int:
        done = one(seconds)
        queue.wait_all()
        return done

    return run
