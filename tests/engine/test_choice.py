"""Which backend `auto` takes, and what it says; how near is near enough."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import engine.choice
from engine.agreement import GUARD, compare, in_guard_band
from engine.backend import Features, open_backend
from engine.choice import agreement, open_for
from engine.errors import DeviceError, InputError
from engine.heads import Calibration
from engine.prediction import OperatingPoint
from engine.processor import has_bfloat16
from tests.bundles import small_bundle

if TYPE_CHECKING:
    from engine.backend import Backend
    from engine.bundle import Bundle, Reference

SMALL = small_bundle()
NO_BAND = OperatingPoint(0.5, (0.5, 0.5))
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16")


def under(calibration: Calibration, point: OperatingPoint = NO_BAND) -> Bundle:
    """The small bundle under another calibration, with the reference's probabilities as they then are."""
    assert SMALL.reference is not None
    head, known = replace(SMALL.head, calibration=calibration, operating_point=point), SMALL.reference
    pairs = zip(known.evidence, known.pooled, strict=True)
    probabilities = np.array([head.probability(float(e), p) for e, p in pairs])
    return replace(SMALL, head=head, reference=replace(known, probabilities=probabilities))


BUNDLE = under(Calibration(1.0, 0.0, 0.0))  # by the evidence alone: probabilities of .65 to .76


def reference() -> Reference:
    assert BUNDLE.reference is not None
    return BUNDLE.reference


def features(shift: float = 0.0) -> Features:
    return Features(reference().evidence[:, None] + np.float32(shift), reference().pooled.copy())


def test_the_reference_agrees_with_itself() -> None:
    found = compare(features(), reference(), BUNDLE.head, "fp32")
    assert found.agrees
    assert (found.images, found.decisions_changed, found.probability_difference_max) == (6, 0, 0.0)
    assert found.pooled_cosine_min == pytest.approx(1.0)


def test_how_far_a_probability_may_move_depends_on_the_precision() -> None:
    a_little = features(0.05)  # about .01 in probability
    assert not compare(a_little, reference(), BUNDLE.head, "fp32").agrees
    assert compare(a_little, reference(), BUNDLE.head, "bf16").agrees
    assert not compare(features(0.3), reference(), BUNDLE.head, "bf16").agrees


def test_features_of_another_kind_do_not_agree_whatever_the_head_says() -> None:
    other = Features(reference().evidence[:, None], reference().pooled[:, ::-1].copy())
    found = compare(other, reference(), BUNDLE.head, "bf16")
    assert found.probability_difference_max == 0
    assert not found.agrees


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_no_numbers_do_not_agree(value: float) -> None:
    broken = features()
    broken.evidence[2], broken.pooled[2] = value, value
    with np.errstate(all="ignore"):
        assert not compare(broken, reference(), BUNDLE.head, "bf16").agrees


def test_one_decision_changed_outside_the_guard_band_does_not_agree() -> None:
    own = float(reference().probabilities[3])
    for distance, agrees in ((GUARD * 0.9, True), (GUARD * 1.1, False)):
        head = replace(BUNDLE.head, operating_point=OperatingPoint(own + distance, (own + distance,) * 2))
        pushed = features()
        pushed.evidence[3] += np.float32(0.15)  # over the edge, by less than the largest difference allowed
        found = compare(pushed, reference(), head, "bf16")
        assert found.decisions_changed == 1
        assert found.agrees is agrees, found


@pytest.mark.parametrize(
    ("probability", "point", "expected"),
    [
        (0.5 + GUARD * 0.99, NO_BAND, True),
        (0.5 - GUARD * 1.01, NO_BAND, False),
        (0.3, OperatingPoint(0.5, (0.3, 0.6)), True),
        (0.6 - GUARD * 0.99, OperatingPoint(0.5, (0.3, 0.6)), True),
        (0.5, OperatingPoint(0.5, (0.3, 0.6)), False),  # inside the band the threshold decides nothing
        (0.7, OperatingPoint(0.7, (0.3, 0.6)), True),
    ],
)
def test_the_guard_band_lies_around_each_edge_that_decides(
    probability: float, point: OperatingPoint, *, expected: bool
) -> None:
    assert in_guard_band(probability, point) is expected


def test_a_backend_asked_for_by_name_is_taken_and_another_word_refused() -> None:
    backend = open_for(BUNDLE, "openvino")
    assert (backend.name, backend.precision) == ("openvino", "fp32")
    found = agreement(BUNDLE, backend)
    backend.close()
    assert found is not None
    assert found.agrees
    with pytest.raises(InputError, match="'abacus' is not known"):
        open_for(BUNDLE, "abacus")


def taken(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    with caplog.at_level(logging.INFO):
        backend = open_for(bundle)
    backend.close()
    return f"{backend.name} {backend.precision}", caplog.text


def test_without_bfloat16_auto_takes_the_fastest_in_fp32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine.choice, "has_bfloat16", lambda: False)
    name, log = taken(BUNDLE, caplog)
    assert name == "openvino fp32"
    assert "the fastest in fp32" in log


def test_without_anything_that_agrees_auto_takes_the_reference(caplog: pytest.LogCaptureFixture) -> None:
    name, log = taken(replace(BUNDLE, reference=None), caplog)
    assert name == "onnxruntime fp32"
    assert "the reference" in log


@needs_bfloat16
def test_auto_takes_bfloat16_where_it_agrees_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    name, log = taken(BUNDLE, caplog)
    assert name == "openvino bf16"
    assert "multiplies bfloat16" in log
    assert "of 6 decisions changed" in log


@needs_bfloat16
def test_auto_leaves_bfloat16_where_it_does_not_agree(caplog: pytest.LogCaptureFixture) -> None:
    at_the_edge = -2000.0 * float(reference().evidence[3])
    name, log = taken(under(Calibration(2000.0, 0.0, at_the_edge)), caplog)
    assert name != "openvino bf16"
    assert "not taken, for it is not the reference's answer" in log


def test_auto_warns_once_where_tensorrt_is_there_and_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def opened(name: str, graph: bytes, **_: object) -> Backend:
        if name == "tensorrt":
            msg = "no NVIDIA driver was found: expected one; install it"
            raise DeviceError(msg)
        return open_backend(name, graph)

    monkeypatch.setattr(engine.choice, "tensorrt_is_installed", lambda: True)
    monkeypatch.setattr(engine.choice, "open_backend", opened)
    name, _ = taken(BUNDLE, caplog)
    assert name != "tensorrt fp16"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([text for text in warnings if "no NVIDIA driver" in text]) == 1
