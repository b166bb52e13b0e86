"""Files with the same bytes: listed by name, and none kept where their labels disagree."""

from __future__ import annotations

from trainer.copies import MOST_LISTED, without_copies
from trainer.labels import Sample


def samples(*names: str) -> list[Sample]:
    """`good/a` is a good part."""
    return [Sample(name, name.partition("/")[0], name.startswith("fail")) for name in names]


def test_one_of_each_is_kept_and_the_others_are_listed() -> None:
    found = without_copies(samples("good/a", "good/b", "good/c", "fail/d", "good/e"), ["1", "2", "1", "3", "1"])
    assert found.kept.tolist() == [0, 1, 3]
    assert found.copies == (("good/a", "good/c"), ("good/a", "good/e"))
    assert found.contradictions == ()
    assert found.notes == (
        "2 files are byte-for-byte copies of others and were left out, for example good/c of good/a",
    )


def test_what_lies_in_both_classes_is_left_out_whole_and_loudly() -> None:
    found = without_copies(samples("good/a", "good/b", "fail/c", "good/d", "fail/e"), ["1", "2", "1", "1", "2"])
    assert found.kept.tolist() == []
    assert found.copies == ()
    # Every file that is left out is listed beside one that contradicts it.
    assert found.contradictions == (("good/a", "fail/c"), ("fail/c", "good/d"), ("good/b", "fail/e"))
    assert found.notes[0].startswith(
        "ATTENTION: 2 images lie in both classes and were left out, for example good/a and "
    )


def test_only_so_many_are_listed_and_all_are_counted() -> None:
    count = 3 * MOST_LISTED
    names = [*(f"good/{number}" for number in range(count)), *(f"fail/{number}" for number in range(count))]
    hashes = ["same"] * count + [str(number) for number in range(count)]
    told = without_copies(samples(*names), hashes).to_json()
    assert len(told["copies"]) == MOST_LISTED
    assert told["copies"][0] == ["good/0", "good/1"]
    assert told["copies_total"] == count - 1
    told = without_copies(samples(*names), ["same"] * 2 * count).to_json()
    assert (told["copies_total"], told["contradictions_total"], len(told["contradictions"])) == (
        0,
        2 * count - 1,
        MOST_LISTED,
    )


def test_nothing_is_said_of_nothing() -> None:
    found = without_copies(samples("good/a", "fail/b"), ["1", "2"])
    assert (found.kept.tolist(), found.notes) == ([0, 1], ())
