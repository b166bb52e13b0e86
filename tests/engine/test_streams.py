"""Batches image by image on streams: each once and in order, and nothing is read any more once a batch has failed."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from engine.backend_openvino import _Requests
from engine.errors import BatchError, DeviceError
from engine.specs import LARGEST_BATCH, TensorSpec
from engine.streams import StreamedBackend, ThreadStreams, profile

INPUTS = (
    TensorSpec("images", (None, 2, 2, 3), "uint8"),
    TensorSpec("head_weights", (3, None), "float32"),
    TensorSpec("head_biases", (None,), "float32"),
)
HEADS = np.ones((3, 1), np.float32), np.zeros(1, np.float32)
BROKEN = 66


def numbered(count: int) -> np.ndarray:
    return np.ascontiguousarray(
        np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 3))
    )


class Device:
    """Answers each image with its own first pixel."""

    def __init__(self, streams: int) -> None:
        self.sizes: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.backend = StreamedBackend(INPUTS, ThreadStreams(self.run, streams), streams=streams)

    def run(self, images: np.ndarray, heads: tuple[np.ndarray, np.ndarray], names: list[str]) -> list[np.ndarray]:
        self.sizes.append(len(images))
        if images[0, 0, 0, 0] == BROKEN:
            msg = "the device caught fire"
            raise DeviceError(msg)
        self.go_on.wait(5)
        value = images[:, 0, 0, :1].astype(np.float32)
        return [np.repeat(value, heads[0].shape[1], axis=1), value][: len(names)]


@pytest.mark.parametrize(("count", "streams"), [(1, 2), (5, 2), (8, 1), (32, 2), (33, 4), (3, 8), (LARGEST_BATCH, 3)])
def test_a_batch_is_covered_once_and_in_order(count: int, streams: int) -> None:
    device = Device(streams)
    features = device.backend.infer(numbered(count), *HEADS)
    np.testing.assert_array_equal(features.evidence[:, 0], np.arange(count))
    np.testing.assert_array_equal(features.pooled[:, 0], np.arange(count))
    assert device.sizes == [1] * count
    device.backend.close()


def test_a_failed_batch_ends_only_when_its_images_are_read_no_more() -> None:
    device = Device(streams=2)
    images = numbered(3)
    images[0] = BROKEN
    device.go_on.clear()
    ticket = device.backend.submit(images, *HEADS)
    other = device.backend.submit(numbered(2), *HEADS)
    threading.Timer(0.1, device.go_on.set).start()
    with pytest.raises(DeviceError, match="caught fire"):
        device.backend.collect(ticket)
    assert device.go_on.is_set()
    assert device.backend.collect(other).evidence[:, 0].tolist() == [0, 1]
    with pytest.raises(BatchError, match="is not out"):
        device.backend.collect(ticket)
    device.backend.close()


def test_a_batch_that_cannot_be_begun_takes_no_slot() -> None:
    device = Device(streams=1)
    device.backend._computing.close()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="after shutdown"):
            device.backend.submit(numbered(1), *HEADS)


def test_openvino_gives_up_what_it_began_when_the_rest_cannot_be() -> None:
    done: list[str] = []

    class Request:
        def set_input_tensor(self, place: int, tensor: object) -> None: ...

        def start_async(self) -> None:
            if done == ["began", "began"]:
                msg = "no memory"
                raise RuntimeError(msg)
            done.append("began")

        def cancel(self) -> None:
            done.append("cancelled")

        def wait(self) -> None:
            done.append("waited")
            msg = "was cancelled"
            raise RuntimeError(msg)

    port = SimpleNamespace(get_any_name=lambda: "evidence")
    compiled = SimpleNamespace(create_infer_request=Request, outputs=[port])
    with pytest.raises(DeviceError, match=r"no memory.*restart the process"):
        _Requests(compiled).begin(numbered(4), HEADS, ["evidence"])
    assert done == ["began", "began", "cancelled", "waited", "cancelled", "waited"]


@pytest.mark.parametrize("streams", [1, 2, 16, 96])
def test_the_profile_fits_any_number_of_cores(streams: int) -> None:
    found = profile(streams)
    assert found.best == min(2 * streams, LARGEST_BATCH)
    assert found.largest == LARGEST_BATCH
