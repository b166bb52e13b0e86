"""Views of an image: eight different ones of a square, four of any other, none of them a new picture."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.turns import MIRRORED, all_turns, turned


@pytest.mark.parametrize(("size", "views"), [((4, 4), 8), ((3, 5), 4)])
def test_views_are_all_different_and_of_the_same_size(size: tuple[int, int], views: int) -> None:
    images = np.arange(2 * size[0] * size[1] * 3).reshape(2, *size, 3)
    seen = [turned(images, turn) for turn in range(all_turns(size[1], size[0]))]
    assert len(seen) == views
    assert {view.shape for view in seen} == {images.shape}
    assert len({view.tobytes() for view in seen}) == views
    assert all(view.flags.c_contiguous for view in seen)
    assert all(sorted(view[1].ravel()) == sorted(images[1].ravel()) for view in seen)


def test_the_first_views_are_the_image_and_its_mirror_image() -> None:
    images = np.arange(12).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(turned(images, 0), images)
    np.testing.assert_array_equal(turned(images, MIRRORED - 1), images[:, :, ::-1])
