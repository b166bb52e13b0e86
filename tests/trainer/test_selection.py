"""What is asked for and what the images are decide the inputs that are tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from engine.specs import ImageSpec
from trainer.labels import label_source
from trainer.selection import _sizes
from trainer.settings import TrainSettings
from trainer.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.candidates import Sizes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for level, label in enumerate(("good", "fail")):
        (tmp_path / label).mkdir()
        for index in range(12):
            picture = np.full((480, 640, 3), 20 * index + level, np.uint8)
            cv2.imwrite(str(tmp_path / label / f"{index}.jpg"), picture)
    return tmp_path


def sizes(folder: Path, **asked: object) -> Sizes:
    settings = TrainSettings(str(folder), folder / "out", **asked)  # type: ignore[arg-type] # passed on
    with open_source(str(folder)) as source:
        return _sizes(source, label_source(source, fail_class=None, groups_file=None), settings.request(None))


@pytest.mark.parametrize("asked", [{}, {"size_px": (320, 256)}, {"tile_px": (128, 128)}])
@pytest.mark.parametrize("jpeg", [None, "scaled", "whole"])
def test_every_input_that_is_tried_decodes_jpegs_as_asked(
    folder: Path, asked: dict[str, tuple[int, int]], jpeg: str | None
) -> None:
    tried = sizes(folder, jpeg=jpeg, **asked)
    assert {image.jpeg for image in (tried.base, *tried.smaller, *tried.larger)} == {jpeg or "scaled"}


def test_decoding_scaled_changes_no_size(folder: Path) -> None:
    assert sizes(folder).base == ImageSpec(224, 160, jpeg="scaled")
    assert sizes(folder, jpeg="whole").base == ImageSpec(224, 160)
