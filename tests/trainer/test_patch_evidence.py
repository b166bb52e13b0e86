"""Patch evidence: its gradient, its layout, and that it finds one bad spot among many good ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from trainer import patch_evidence
from trainer.patch_evidence import PatchEvidence, _Objective, _Sweep

FINE, COARSE, CELLS = 3, 4, 6


def cells(count: int, seed: int) -> np.ndarray:
    """Channels (count, 6, 4 * 3 + 4) float32."""
    return np.random.default_rng(seed).normal(1, 2, (count, CELLS, 4 * FINE + COARSE)).astype(np.float32)


def at_locations(x: np.ndarray) -> np.ndarray:
    """(n, 4 * cells, 7): the layout written out, the slow and plain way."""
    rows = [
        np.concatenate([cell[j * FINE : (j + 1) * FINE], cell[4 * FINE :]])
        for image in x
        for cell in image
        for j in range(4)
    ]
    return np.array(rows).reshape(len(x), -1, FINE + COARSE)


def one_bad_spot(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Half of the images have one location that stands out in two channels."""
    rng = np.random.default_rng(seed)
    x, y = cells(count, seed), np.arange(count) % 2 == 1
    for index in np.flatnonzero(y):
        sub, cell = rng.integers(4), rng.integers(CELLS)
        x[index, cell, sub * FINE] += 9
        x[index, cell, 4 * FINE + 1] += 6
    return x, y


def test_gradient_is_the_derivative_of_the_loss() -> None:
    x, y = one_bad_spot(20, 0)
    with _Sweep(x.astype(np.float64).astype(np.float32), FINE, np.arange(20)) as sweep:
        objective = _Objective(sweep, y, l2=0.05, sharpness=1.5)
        theta = np.random.default_rng(1).normal(0, 0.3, FINE + COARSE + 1)
        _, gradient = objective(theta)
        numeric = approx_fprime(theta, lambda t: objective(t)[0], 1e-3)
    np.testing.assert_allclose(gradient, numeric, atol=2e-3)


def test_what_is_kept_in_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = one_bad_spot(40, 2)
    monkeypatch.setattr(patch_evidence, "_CHUNK_VALUES", 4 * CELLS * (4 * FINE + COARSE))
    fitted = []
    for images in (0, 9, 40):  # none, two chunks of four, all of them
        monkeypatch.setattr(patch_evidence, "_KEPT_VALUES", images * CELLS * (4 * FINE + COARSE))
        model = PatchEvidence(FINE).fit(x, y)
        fitted.append(np.append(model.weights_, model.bias_))
    assert np.array_equal(fitted[0], fitted[1])
    assert np.array_equal(fitted[0], fitted[2])


def test_evidence_is_log_mean_exp_over_every_location() -> None:
    x, y = one_bad_spot(40, 2)
    model = PatchEvidence(FINE).fit(x, y)
    assert model.weights_.shape == (FINE + COARSE,)
    scores = at_locations(x) @ model.weights_  # already times the sharpness
    expected = np.log(np.exp(scores).mean(1)) + model.bias_
    np.testing.assert_allclose(model.decision_function(x), expected, rtol=1e-4, atol=1e-4)


def test_moments_are_those_of_all_locations() -> None:
    x = cells(30, 3)
    with _Sweep(x, FINE, np.arange(30)) as sweep:
        mean, deviation = sweep.moments()
    plain = at_locations(x).reshape(-1, FINE + COARSE)
    np.testing.assert_allclose(mean, plain.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation, plain.std(0), rtol=1e-4)


def test_finds_one_bad_spot_on_images_it_never_saw() -> None:
    x, y = one_bad_spot(300, 4)
    new, truth = one_bad_spot(200, 5)
    assert roc_auc_score(truth, PatchEvidence(FINE).fit(x, y).decision_function(new)) > 0.97
    assert (PatchEvidence(FINE).fit(x, y).predict(new) == truth).mean() > 0.9


def test_half_precision_and_chunks_change_little_and_repeating_changes_nothing() -> None:
    x, y = one_bad_spot(60, 6)
    first = PatchEvidence(FINE).fit(x, y)
    again = PatchEvidence(FINE).fit(x, y)
    half = PatchEvidence(FINE).fit(x.astype(np.float16), y)
    np.testing.assert_array_equal(first.weights_, again.weights_)
    np.testing.assert_allclose(half.decision_function(x), first.decision_function(x), atol=0.2)


def test_rare_defects_weigh_as_much_as_the_good_parts() -> None:
    x, y = one_bad_spot(400, 7)
    keep = ~y | (np.arange(400) < 40)  # 200 good, 20 bad
    model = PatchEvidence(FINE).fit(x[keep], y[keep])
    new, truth = one_bad_spot(200, 8)
    assert model.predict(new)[truth].mean() > 0.6


@pytest.mark.parametrize("parameter", ["fine", "l2", "sharpness", "max_iter"])
def test_is_an_estimator_that_can_be_cloned(parameter: str) -> None:
    model = PatchEvidence(fine=3, l2=0.5, sharpness=1.0, max_iter=7)
    assert clone(model).get_params()[parameter] == model.get_params()[parameter]


def test_rows_are_the_same_images_without_a_copy() -> None:
    x, y = one_bad_spot(80, 9)
    rows = np.arange(3, 80, 2)
    copied, named = PatchEvidence(FINE).fit(x[rows], y[rows]), PatchEvidence(FINE).fit(x, y, rows=rows)
    np.testing.assert_array_equal(named.weights_, copied.weights_)
    np.testing.assert_array_equal(named.decision_function(x, rows=rows), copied.decision_function(x[rows]))


def test_a_cut_is_a_view_of_the_first_channels() -> None:
    x, y = one_bad_spot(60, 10)
    cut = x[:, :, : 4 * FINE + 2]
    seen, copied = PatchEvidence(FINE).fit(cut, y), PatchEvidence(FINE).fit(np.ascontiguousarray(cut), y)
    np.testing.assert_array_equal(seen.weights_, copied.weights_)


def test_the_basis_changes_the_way_and_not_the_goal() -> None:
    """The minimum itself, approached without it for long, has the same loss and nearly the same evidence."""
    x, y = one_bad_spot(80, 11)
    model = PatchEvidence(FINE, l2=0.05).fit(x, y)
    with _Sweep(x, FINE, np.arange(80)) as sweep:
        objective = _Objective(sweep, y, l2=0.05, sharpness=1.0)
        plain = minimize(objective, np.zeros(FINE + COARSE + 1), jac=True, method="BFGS", options={"gtol": 1e-5})
        weights, bias = objective.unfold(plain.x)
        expected = sweep.evidence(weights) + bias
    np.testing.assert_allclose(model.decision_function(x), expected, atol=0.02)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_network_cut_before_its_coarse_taps_has_none_of_their_channels(dtype: type[np.floating]) -> None:
    x, y = one_bad_spot(40, 6)
    fine = x[:, :, : 4 * FINE].astype(dtype)
    model = PatchEvidence(FINE).fit(fine, y)
    assert model.weights_.shape == (FINE,)
    locations = fine.astype(np.float32).reshape(len(x), -1, FINE) @ model.weights_
    expected = np.log(np.exp(locations).mean(1)) + model.bias_
    np.testing.assert_allclose(model.decision_function(fine), expected, rtol=1e-4, atol=1e-4)
