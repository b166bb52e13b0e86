"""The table of what a bundle was trained on: what is written is read again, and nothing else is."""

from __future__ import annotations

import pytest

from engine.errors import BundleError
from trainer.labels import Sample
from trainer.training_set import from_csv, to_csv

SAMPLES = [
    Sample("good/1.jpg", "good", is_defect=False, group="lot 1", extra={"station": "press, 1"}),
    Sample('bad/"ü"\n\udcff.jpg', "bad", is_defect=True),
]


def test_what_is_written_is_read_again() -> None:
    first, second = from_csv(to_csv(SAMPLES, ["a", "b"], {1}), "here")
    assert (first.sha256, second.sha256) == ("a", "b")
    assert (first.sample.held_out, second.sample.held_out) == (False, True)
    for member, sample in zip((first, second), SAMPLES, strict=True):
        assert (member.sample.name, member.sample.label, member.sample.is_defect, member.sample.group) == (
            sample.name,
            sample.label,
            sample.is_defect,
            sample.group,
        )
        assert member.sample.extra == sample.extra


@pytest.mark.parametrize(
    "data", [b"file,label\na,b\n", b"\xff", to_csv(SAMPLES, ["a", "b"], ()).replace(b",1,0,", b",yes,0,")]
)
def test_another_table_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="bundle x holds no training set that this version reads"):
        from_csv(data, "bundle x")
