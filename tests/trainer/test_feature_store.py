"""Features on the disk: found again without decoding, never believed when not whole, safe for two at once, bounded."""

from __future__ import annotations

import errno
import os
import shutil
import tracemalloc
from hashlib import sha256
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest

from engine.errors import WorkError
from trainer import sweep
from trainer.feature_store import FeatureCache, FeatureStore
from trainer.featurize import CHANNELS_DTYPE, Row
from trainer.patch_evidence import PatchEvidence
from trainer.shards import SUFFIX, RowShape, Shard
from trainer.stored_rows import StoredRows, chunks, entries, first_columns, joined, take

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FINE, COARSE = 3, 5
SHAPE = RowShape(pooled=7, cells=6, cell_size=4 * FINE + COARSE)
KEY, OTHER, THIRD = "a" * 64, "b" * 64, "c" * 64


def rows_of(count: int, seed: int = 0, shape: RowShape = SHAPE) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        Row(
            sha256(f"{seed} {number}".encode()).hexdigest(),
            rng.normal(size=shape.pooled).astype(np.float32),
            rng.normal(size=(shape.cells, shape.cell_size)).astype(CHANNELS_DTYPE),
            *random_four(rng),
            rng.integers(0, 256, (64, 64), np.uint8),
        )
        for number in range(count)
    ]


def random_four(rng: np.random.Generator) -> tuple[float, float, float, float]:
    return rng.random(), rng.random(), rng.random(), rng.random()


def digests(rows: Sequence[Row]) -> list[str]:
    return [row.sha256 for row in rows]


def filled(folder: Path, rows: Sequence[Row], per_shard: int = 4) -> FeatureStore:
    store = FeatureStore(folder, SHAPE)
    for start in range(0, len(rows), per_shard):
        store.append(rows[start : start + per_shard])
    return store


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def assert_holds(store: FeatureStore, rows: Sequence[Row]) -> None:
    names = digests(rows)
    assert all(name in store for name in names)
    assert (np.asarray(store.rows("pooled", names)) == np.stack([row.pooled for row in rows])).all()
    assert (np.asarray(store.rows("channels", names)) == np.stack([row.channels for row in rows])).all()
    assert (np.asarray(store.rows("glances", names)) == np.stack([row.glance for row in rows])).all()
    expected = [(row.contrast, row.detail, row.level, row.noise) for row in rows]
    assert (store.statistics(names) == np.array(expected)).all()


def test_rows_are_found_again_as_they_were_in_any_order(tmp_path: Path) -> None:
    rows = rows_of(11)
    store = filled(tmp_path / KEY, rows)
    assert_holds(store, rows)
    store.close()
    again = FeatureStore(tmp_path / KEY, SHAPE)
    assert len(again) == 11
    assert_holds(again, rows[::-1] + rows[2:5])
    assert sha256(b"another").hexdigest() not in again
    again.close()


@pytest.mark.parametrize(
    "where", ["header", "digest", "pooled", "channels", "torn", "longer", "foreign", "other shape"]
)
def test_what_is_not_whole_is_computed_again(tmp_path: Path, where: str) -> None:
    rows = rows_of(8)
    filled(tmp_path / KEY, rows).close()
    first = shards_of(tmp_path / KEY)[0]
    content = bytearray(first.read_bytes())
    places = {"header": 40, "digest": 515, "pooled": 512 + 4 * (32 + 32) + 3, "channels": len(content) - 1}
    if where in places:
        content[places[where]] ^= 1
    elif where == "torn":
        content = content[: len(content) // 2]
    elif where == "longer":
        content += b"x"
    elif where == "foreign":
        content = bytearray(b"a shopping list")
    else:
        other = Shard.write(tmp_path, RowShape(8, 6, SHAPE.cell_size), [wider(row) for row in rows[:4]])
        content = bytearray(other.path.read_bytes())
    first.write_bytes(content)
    store = FeatureStore(tmp_path / KEY, SHAPE)
    assert len(store) == 4
    assert not first.exists()
    store.append([row for row in rows if row.sha256 not in store])
    assert_holds(store, rows)
    store.close()


def wider(row: Row) -> Row:
    return Row(row.sha256, np.zeros(8, np.float32), row.channels, 0, 0, 0, 0, row.glance)


def test_what_a_kill_left_half_written_is_no_shard_and_goes(tmp_path: Path) -> None:
    rows = rows_of(4)
    filled(tmp_path / KEY, rows).close()
    part = tmp_path / KEY / ".part-x"
    part.write_bytes(shards_of(tmp_path / KEY)[0].read_bytes()[:100])
    first = FeatureStore(tmp_path / KEY, SHAPE)
    assert not part.exists()
    part.write_bytes(b"of one that is writing now")
    second = FeatureStore(tmp_path / KEY, SHAPE)
    assert part.exists()
    assert_holds(second, rows)
    first.close()
    second.close()


def test_two_at_once_each_keep_what_they_computed(tmp_path: Path) -> None:
    rows = rows_of(8)
    one, other = FeatureStore(tmp_path / KEY, SHAPE), FeatureStore(tmp_path / KEY, SHAPE)
    one.append(rows[:4])
    other.append(rows[:4])  # the same work twice is the same file
    assert len(shards_of(tmp_path / KEY)) == 1
    other.append(rows[2:8])
    assert_holds(one, rows[:4])
    assert_holds(other, rows)
    one.close()
    other.close()
    third = FeatureStore(tmp_path / KEY, SHAPE)
    assert len(third) == 8
    assert_holds(third, rows)
    third.close()


def test_a_full_disk_is_one_clear_error_and_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    rows = rows_of(8)
    store = filled(tmp_path / KEY, rows[:4])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WorkError, match=r"cannot be kept in .*No space left.*--features") as caught:
            store.append(rows[4:])
    assert caught.value.exit_code == 1
    assert {path.name for path in (tmp_path / KEY).iterdir()} == {"lock", shards_of(tmp_path / KEY)[0].name}
    store.append(rows[4:])
    assert_holds(store, rows)
    store.close()


def test_a_disk_without_room_is_refused_before_the_work(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / KEY, SHAPE)
    store.refuse_without_room(10)
    too_many = shutil.disk_usage(tmp_path).free // SHAPE.row_bytes + 10**9
    with pytest.raises(WorkError, match=r"need \d+\.\d GiB in .* has \d+\.\d GiB left: .*--features"):
        store.refuse_without_room(too_many)
    store.close()


def test_what_was_used_longest_ago_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    for age, key in enumerate((OTHER, THIRD, KEY)):
        filled(tmp_path / key, rows_of(8)).close()
        os.utime(tmp_path / key / "lock", (age, age))
    one_key_bytes = sum(path.stat().st_size for path in (tmp_path / KEY).iterdir())
    in_use = FeatureStore(tmp_path / OTHER, SHAPE)  # by another process
    os.utime(tmp_path / OTHER / "lock", (0, 0))
    with FeatureCache(tmp_path, 1.5 * one_key_bytes / 2**30) as cache:
        store = cache.open("d" * 64, SHAPE)
        store.append(rows_of(8, seed=1))
        assert_holds(store, rows_of(8, seed=1))
    assert {path.name[0] for path in tmp_path.iterdir()} == {"b", "d"}
    in_use.close()
    with FeatureCache(tmp_path, 0) as cache:
        cache.open("d" * 64, SHAPE)
        assert {path.name[0] for path in tmp_path.iterdir()} == {"d"}
    assert not list(tmp_path.iterdir())


def test_without_a_folder_nothing_stays() -> None:
    with FeatureCache() as cache:
        store = cache.open(KEY, SHAPE)
        store.append(rows_of(3))
        folder = store.folder
        assert shards_of(folder)
    assert not folder.parent.exists()


def test_rows_on_the_disk_are_indexed_as_an_array_is(tmp_path: Path) -> None:
    rows = rows_of(23)
    store = filled(tmp_path / KEY, rows, per_shard=5)
    stored, array = store.rows("channels", digests(rows)), np.stack([row.channels for row in rows])
    rng = np.random.default_rng(2)
    some = rng.integers(0, 23, 40)
    for key in (3, -1, slice(None), slice(4, 17, 3), some, np.arange(5, 15), rng.random(23) < 0.5, (some, slice(1, 3))):
        assert (stored[key] == array[key]).all(), key
    assert (stored.shape, stored.dtype, stored.size, len(stored)) == (array.shape, array.dtype, array.size, 23)
    cut = first_columns(stored, 8)
    assert isinstance(cut, StoredRows)
    assert cut.shape == (23, 6, 8)
    assert (np.asarray(cut[some]) == array[some][..., :8]).all()
    taken = take(cut, some)
    assert isinstance(taken, StoredRows)
    assert (np.asarray(taken) == array[some][..., :8]).all()
    cells = rng.integers(0, 6, 40)
    assert (entries(stored, some, cells) == array[some, cells]).all()
    assert (entries(cut, some, cells) == array[some, cells][..., :8]).all()
    twice = joined([cut, take(cut, np.arange(4))])
    assert isinstance(twice, StoredRows)
    assert (np.asarray(twice) == np.concatenate([array, array[:4]])[..., :8]).all()
    assert stored[np.arange(0)].shape == (0, 6, SHAPE.cell_size)
    assert np.concatenate([part for _, part in chunks(stored)]).shape == array.shape
    store.close()


def test_a_fit_from_the_disk_is_the_fit_from_memory_to_the_last_bit(tmp_path: Path) -> None:
    rows = rows_of(120)
    store = filled(tmp_path / KEY, rows, per_shard=7)
    stored, array = store.rows("channels", digests(rows)), np.stack([row.channels for row in rows])
    defect = array[:, 2, 4] + array[:, 1, -1] > 0.5
    chosen = np.random.default_rng(1).permutation(120)[:90]
    fits = [PatchEvidence(FINE).fit(x, defect, rows=chosen) for x in (stored, array)]
    assert (fits[0].weights_ == fits[1].weights_).all()
    assert fits[0].bias_ == fits[1].bias_
    assert (fits[0].decision_function(stored) == fits[1].decision_function(array)).all()
    store.close()


def test_a_fit_takes_no_more_memory_for_more_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what it keeps in memory, which is bounded: here by a thousand images."""
    monkeypatch.setattr(sweep, "_KEPT_VALUES", 1000 * 48 * SHAPE.cell_size)
    shape = RowShape(pooled=1, cells=48, cell_size=SHAPE.cell_size)
    rows = rows_of(400, shape=shape)
    store = FeatureStore(tmp_path / KEY, shape)
    store.append(rows)
    stored = store.rows("channels", digests(rows) * 20)
    sizes_bytes, peaks = [], []
    for count in (2000, 8000):
        part = take(stored, slice(count))
        tracemalloc.start()
        PatchEvidence(FINE, max_iter=1).fit(part, np.arange(count) % 2 == 0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes_bytes.append(2 * part.size)
    store.close()
    # What grows is what an image has one number of each of, not its features.
    assert peaks[1] - peaks[0] < (sizes_bytes[1] - sizes_bytes[0]) / 4


def test_shards_that_vanish_while_they_are_used_are_one_clear_error(tmp_path: Path) -> None:
    rows = rows_of(8)
    store = filled(tmp_path / KEY, rows)
    stored = store.rows("pooled", digests(rows))
    first, second = shards_of(tmp_path / KEY)
    first.unlink()
    second.write_bytes(second.read_bytes()[:300])
    with pytest.raises(WorkError, match="start again"):
        stored[[0, 1, 2, 3]]
    with pytest.raises(WorkError, match="start again"):
        stored[[4, 5, 6, 7]]
    store.close()
