"""Patch evidence: its gradient, its layout, and that it finds one bad spot among many good ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from trainer import sweep as walking
from trainer.patch_evidence import Objective, PatchEvidence, fit_together
from trainer.sweep import Sweep

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
    models = [PatchEvidence(FINE, l2=0.05, sharpness=1.5), PatchEvidence(FINE, l2=0.2, sharpness=0.5)]
    members = np.stack([np.ones(20, bool), np.arange(20) % 3 > 0])
    with Sweep(x, FINE, np.arange(20)) as sweep:
        objective = Objective(sweep, models, y, members)
        theta = np.random.default_rng(1).normal(0, 0.3, (2, FINE + COARSE + 1))
        _, gradients = objective([0, 1], theta)

        def loss(at: np.ndarray, number: int) -> float:
            return float(objective([number], at[None])[0][0])

        for number in range(2):
            numeric = approx_fprime(theta[number], loss, 1e-3, number)
            np.testing.assert_allclose(gradients[number], numeric, atol=2e-3)


def test_what_is_kept_in_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = one_bad_spot(40, 2)
    monkeypatch.setattr(walking, "_CHUNK_VALUES", 4 * CELLS * (4 * FINE + COARSE))
    fitted = []
    for images in (0, 9, 40):  # none, two chunks of four, all of them
        monkeypatch.setattr(walking, "_KEPT_VALUES", images * CELLS * (4 * FINE + COARSE))
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
    members = np.stack([np.ones(30, bool), np.arange(30) < 7])
    with Sweep(x, FINE, np.arange(30)) as sweep:
        mean, deviation = sweep.moments(members)
    for number, own in enumerate(members):
        plain = at_locations(x[own]).reshape(-1, FINE + COARSE)
        np.testing.assert_allclose(mean[number], plain.mean(0), rtol=1e-5)
        np.testing.assert_allclose(deviation[number], plain.std(0), rtol=1e-4)


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


def test_fitted_together_they_are_as_fitted_alone() -> None:
    """Each on its own rows, with its own l2 and sharpness: another's images and stopping change nothing."""
    x, y = one_bad_spot(90, 12)
    rows = [np.flatnonzero(np.arange(90) % 3 != fold) for fold in range(3)] + [np.arange(20)]
    settings = [(0.03, 1.0), (0.03, 1.0), (0.3, 2.0), (1.0, 0.5)]
    alone, together = ([PatchEvidence(FINE, l2, sharpness) for l2, sharpness in settings] for _ in range(2))
    for model, own in zip(alone, rows, strict=True):
        model.fit(x, y, rows=own)
    fit_together(together, x, y, rows)
    assert len({model.n_iter_ for model in together}) > 1
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other.weights_, one.weights_, atol=1e-3)
        np.testing.assert_allclose(other.decision_function(x), one.decision_function(x), atol=1e-3)
    again = [PatchEvidence(FINE, l2, sharpness) for l2, sharpness in settings]
    fit_together(again, x, y, rows)
    assert all((one.weights_ == other.weights_).all() for one, other in zip(again, together, strict=True))


def test_a_cut_is_a_view_of_the_first_channels() -> None:
    x, y = one_bad_spot(60, 10)
    cut = x[:, :, : 4 * FINE + 2]
    seen, copied = PatchEvidence(FINE).fit(cut, y), PatchEvidence(FINE).fit(np.ascontiguousarray(cut), y)
    np.testing.assert_array_equal(seen.weights_, copied.weights_)


def test_the_basis_changes_the_way_and_not_the_goal() -> None:
    """The minimum itself, approached without it for long, has the same loss and nearly the same evidence."""
    x, y = one_bad_spot(80, 11)
    model = PatchEvidence(FINE, l2=0.05).fit(x, y)
    with Sweep(x, FINE, np.arange(80)) as sweep:
        objective = Objective(sweep, [model], y, np.ones((1, 80), bool))
        basis = np.linalg.inv(objective.bases[0])

        def without(theta: np.ndarray) -> tuple[float, np.ndarray]:
            (loss,), (gradient,) = objective([0], np.append(basis @ theta[:-1], theta[-1])[None])
            return loss, np.append(basis @ gradient[:-1], gradient[-1])

        plain = minimize(without, np.zeros(FINE + COARSE + 1), jac=True, method="BFGS", options={"gtol": 1e-5})
        (weights,), (bias,) = objective.unfold([0], np.append(basis @ plain.x[:-1], plain.x[-1])[None])
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
