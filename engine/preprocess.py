"""Encoded bytes -> uint8 RGB, driven only by ImageSpec: the same code in training, in `score` and in the consumer.

Whatever the bytes are, the answer is an array or a FrameError. Safe to call from several threads at once, and the
same bytes give the same array in each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from engine.errors import FrameError, InputError
from engine.image_header import ImageHeader, read_header
from engine.reduction import reduction

if TYPE_CHECKING:
    from engine.specs import ImageSpec

# A broken frame is told of by its FrameError. OpenCV's own log would say it again, a few lines per frame, without
# the station. (libpng and libjpeg write a line to stderr by themselves; OpenCV offers no way to stop them.)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Images are decoded side by side, by whoever calls. OpenCV's own threads would share one image's resize between them,
# which gains nothing at this size and cost 6 % more processor time.
cv2.setNumThreads(1)

# IMREAD_REDUCED_COLOR_2 and its like ask for BGR, which cannot be asked for together with RGB; their grey siblings are
# the same without it.
_RGB_REDUCED = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
}

_DECODED = frozenset({"JPEG", "PNG", "BMP", "WebP", "TIFF"})


def preprocess(
    payload: bytes | bytearray | memoryview | None, spec: ImageSpec, out: np.ndarray | None = None
) -> np.ndarray:
    """Encoded image -> the network's input: `decode`, then `to_input`.

    A JPEG that `engine.reduction` reduces is decoded smaller, where OpenCV makes of it what its header lets expect;
    any other image is decoded whole. What is refused does not depend on it.

    Returns:
        uint8 (spec.height_px, spec.width_px, 3) RGB; `out` where it was given.

    Raises:
        FrameError: see `decode`.
        InputError: see `to_input`.
    """
    data, header = _admitted(payload, spec)
    smaller = reduction(header, spec)
    if smaller is not None:
        image = _imdecode(data, header, smaller.factor)
        if image is not None and image.shape[:2] == (smaller.height_px, smaller.width_px):
            return _stretched(image, smaller.box, spec, out)
    return to_input(_whole(data, header), spec, out)


def decode(payload: bytes | bytearray | memoryview | None, spec: ImageSpec) -> np.ndarray:
    """Encoded image -> the whole image, upright, in all its pixels.

    EXIF orientation is applied and alpha dropped, not blended. Of 16-bit samples the high byte is kept; only planar
    16-bit RGB in a TIFF is rounded by libtiff, which differs by 1 at most. Of an animated PNG the still image is
    taken, of a TIFF the first page.

    Args:
        payload: JPEG, PNG, BMP, WebP or TIFF.
        spec: gives the limits, which are checked against the header before anything is decoded.

    Returns:
        uint8 (h, w, 3) RGB, C-contiguous, owned by the caller.

    Raises:
        FrameError: `oversize`: more bytes than max_bytes, or a header with more pixels than max_pixels;
            `undecodable`: null, empty, not an image, broken, or of another format.
    """
    return _whole(*_admitted(payload, spec))


def _admitted(payload: object, spec: ImageSpec) -> tuple[memoryview, ImageHeader]:
    """The payload within its limits, and what its header says. Raises FrameError."""
    data = _checked_bytes(payload, spec)
    header = read_header(data)
    _check_header(header, spec)
    return data, header


def _whole(data: memoryview, header: ImageHeader) -> np.ndarray:
    """All pixels, as many as the header says. Raises FrameError."""
    image = _imdecode(data, header)
    declared = (header.height_px, header.width_px)
    if image is None or image.shape[:2] not in {declared, declared[::-1]}:  # EXIF may have swapped the sides
        got = "cannot be decoded" if image is None else f"decodes to {image.shape[1]} x {image.shape[0]} px"
        msg = (
            f"{header.format} image of {len(data)} bytes {got}: expected the {header.width_px} x {header.height_px} px "
            "of its header, whole and unbroken; check the camera and the sender"
        )
        raise FrameError(cause="undecodable", message=msg)
    return image


def to_input(image: np.ndarray, spec: ImageSpec, out: np.ndarray | None = None) -> np.ndarray:
    """Cut the region of interest and stretch it to the network's input.

    A side that shrinks is averaged over areas, so that no source pixel is skipped; a side that grows is interpolated
    linearly, afterwards. (OpenCV's own INTER_AREA gives up averaging on both sides as soon as one of them grows.)

    Args:
        image: uint8 (h, w, 3), upright.
        spec: gives region and size.
        out: where to write: uint8 (spec.height_px, spec.width_px, 3), C-contiguous, for example one image of a batch.

    Returns:
        uint8 (spec.height_px, spec.width_px, 3), C-contiguous; `out` where it was given.

    Raises:
        InputError: `image` or `out` is of another shape, dtype or layout.
    """
    _check_image(image)
    return _stretched(image, spec.region.pixels(image.shape[1], image.shape[0]), spec, out)


def _stretched(
    image: np.ndarray, box: tuple[int, int, int, int], spec: ImageSpec, out: np.ndarray | None
) -> np.ndarray:
    """The pixels in (x0, y0, x1, y1) as the network's input. Raises InputError where `out` is none."""
    shape = (spec.height_px, spec.width_px, 3)
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.shape != shape or out.dtype != np.uint8 or not (out.flags.c_contiguous and out.flags.writeable):
        msg = f"output array is {out.dtype} {out.shape}: expected uint8 {shape}, C-contiguous and writeable"
        raise InputError(msg)
    x0, y0, x1, y1 = box
    region = image[y0:y1, x0:x1]
    shrunk = (min(x1 - x0, spec.width_px), min(y1 - y0, spec.height_px))
    size = (spec.width_px, spec.height_px)
    if shrunk == size:
        cv2.resize(region, size, dst=out, interpolation=cv2.INTER_AREA)
    else:
        if shrunk != (x1 - x0, y1 - y0):
            region = cv2.resize(region, shrunk, interpolation=cv2.INTER_AREA)
        cv2.resize(region, size, dst=out, interpolation=cv2.INTER_LINEAR)
    return out


def _checked_bytes(payload: object, spec: ImageSpec) -> memoryview:
    """The payload as a flat view, neither null nor empty nor too long."""
    if not isinstance(payload, bytes | bytearray | memoryview):
        got = "null" if payload is None else type(payload).__name__
        msg = f"frame has no image: got {got}, expected the bytes of one; check the camera and the sender"
        raise FrameError(cause="undecodable", message=msg)
    view = memoryview(payload)
    data = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
    if not data:
        msg = "frame is empty: got 0 bytes, expected an image; check the camera and the sender"
        raise FrameError(cause="undecodable", message=msg)
    if len(data) > spec.max_bytes:
        msg = (
            f"image has {len(data)} bytes: expected at most {spec.max_bytes}; compress it more, or train with a "
            "larger max_bytes"
        )
        raise FrameError(cause="oversize", message=msg)
    return data


def _check_header(header: ImageHeader, spec: ImageSpec) -> None:
    """Size first, so that a bomb is `oversize` in whatever format it comes."""
    if header.buffer_pixels > spec.max_pixels:
        size = f"{header.width_px} x {header.height_px} px"
        if header.buffer_pixels > header.width_px * header.height_px:
            size = f"tiles of {header.buffer_pixels} px"
        msg = (
            f"{header.format} header asks for {size}: expected at most {spec.max_pixels} px in all; send a smaller "
            "image, or train with a larger max_pixels"
        )
        raise FrameError(cause="oversize", message=msg)
    if header.format not in _DECODED:
        msg = f"{header.format} is not supported: expected JPEG, PNG, BMP, WebP or TIFF; set the camera to one of them"
        raise FrameError(cause="undecodable", message=msg)


def _imdecode(data: memoryview, header: ImageHeader, factor: int = 1) -> np.ndarray | None:
    """uint8 (h, w, 3) RGB, or None where OpenCV refuses; a JPEG reduced by `factor`."""
    if header.patch is not None:
        patch = header.patch
        data = memoryview(b"".join((data[: patch.start], patch.replacement, data[patch.end :])))
    flags = _RGB_REDUCED[factor]
    if header.sixteen_bit:
        # Asked for RGB at 16 bits, OpenCV 5.0 copies in the wrong direction and returns memory as it found it.
        flags = cv2.IMREAD_COLOR_BGR | cv2.IMREAD_ANYDEPTH
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # a broken header, raised instead of returned; the caller says what it was
        return None
    if image is not None and header.sixteen_bit:
        np.right_shift(image, 8, out=image)
        return np.ascontiguousarray(image[:, :, ::-1], np.uint8)
    return image


def _check_image(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:  # noqa: PLR2004 - h, w, RGB
        msg = f"image is {image.dtype} {image.shape}: expected uint8 (h, w, 3), as `decode` gives it"
        raise InputError(msg)
