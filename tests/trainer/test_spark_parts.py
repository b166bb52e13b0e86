"""Spark's pure parts: what a job is, how rows lie in Parquet, the shared folder, and errors in one line."""

from __future__ import annotations

import io
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from engine.backbone import FeaturizerSpec
from engine.errors import InputError
from engine.processor import vector_features
from engine.specs import ImageSpec
from trainer.errors import SparkError
from trainer.featurize import CHANNELS_DTYPE, Featurizer, Row, row_shape
from trainer.spark_folder import SharedFolder
from trainer.spark_identity import answer, difference, identity, probe_image
from trainer.spark_job import MOST_IMAGES, PART_BYTES, Job, images_per_part, parts_of, row_bytes
from trainer.spark_parts import ROWS_AT_ONCE, PartRow, decode, encode
from trainer.spark_reading import Entry
from trainer.spark_session import Session, is_here
from trainer.spark_settings import SparkSettings
from trainer.spark_words import in_words

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = ImageSpec(64, 64)
FEATURIZER = FeaturizerSpec(taps=(4, 7))
JOB = Job("parts.zip", IMAGE, FEATURIZER, 0, 8, {"numpy": "2"}, ("", ""))


def row(seed: int) -> Row:
    random = np.random.default_rng(seed)
    return Row(
        sha256=f"{seed:064x}",
        pooled=random.normal(size=FEATURIZER.pooled_size).astype(np.float32),
        channels=random.normal(size=row_shape(IMAGE, FEATURIZER)).astype(CHANNELS_DTYPE),
        contrast=random.random(),
        detail=random.random(),
        level=random.random(),
        noise=random.random(),
        glance=random.integers(0, 256, (64, 64), np.uint8),
    )


def test_rows_come_out_of_parquet_as_they_went_in() -> None:
    count = ROWS_AT_ONCE + 3
    rows = [PartRow(f"good/{i}.jpg", row(i)) for i in range(count)]
    rows[4] = PartRow("good/4.jpg", "no image", unread=False)
    rows[5] = PartRow("good/5.jpg", "cannot be read", unread=True)
    content = encode(rows, IMAGE, FEATURIZER)
    assert content == encode(rows, IMAGE, FEATURIZER)  # a part that is done twice is the same
    assert pq.ParquetFile(io.BytesIO(content)).num_row_groups == 2
    read = list(decode(io.BytesIO(content), IMAGE, FEATURIZER))
    assert [(each.name, each.unread) for each in read] == [(each.name, each.unread) for each in rows]
    for got, given in zip(read, rows, strict=True):
        if isinstance(given.row, str):
            assert got.row == given.row
            continue
        assert isinstance(got.row, Row)
        assert got.row.sha256 == given.row.sha256
        for name in ("pooled", "channels", "glance"):
            one, other = getattr(got.row, name), getattr(given.row, name)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        for name in ("contrast", "detail", "level", "noise"):
            assert getattr(got.row, name) == getattr(given.row, name)


def test_anyone_can_read_the_parquet() -> None:
    table = pq.read_table(io.BytesIO(encode([PartRow("a.jpg", row(1))], IMAGE, FEATURIZER)))
    assert table.column("pooled")[0].as_py() == row(1).pooled.tolist()
    assert np.frombuffer(table.column("channels")[0].as_py(), np.float16).tolist() == row(1).channels.ravel().tolist()


@pytest.mark.parametrize("other", [ImageSpec(64, 64, jpeg="scaled"), ImageSpec(96, 64)])
def test_parquet_of_other_features_is_refused(other: ImageSpec) -> None:
    content = encode([PartRow("a.jpg", row(1))], IMAGE, FEATURIZER)
    with pytest.raises(ValueError, match="another featurizer"):
        list(decode(io.BytesIO(content), other, FEATURIZER))


def test_a_job_goes_as_json() -> None:
    assert Job.from_json(JOB.to_json()) == JOB


def entry(name: str, size_bytes: int = 1, mark: str = "") -> Entry:
    return Entry(name, name, size_bytes, mark)


def test_only_the_same_images_and_features_are_resumed() -> None:
    entries = [entry("a.jpg"), entry("b.jpg")]
    key = JOB.key(entries)
    assert replace(JOB, per_part=3).key(entries) == key  # a cluster of another size goes on
    others = {
        replace(JOB, turn=1).key(entries),
        replace(JOB, image=ImageSpec(96, 64)).key(entries),
        replace(JOB, featurizer=FeaturizerSpec(taps=(4,))).key(entries),
        replace(JOB, source="other.zip").key(entries),
        replace(JOB, identity={"numpy": "3"}).key(entries),
        JOB.key(entries[:1]),
        JOB.key([entry("a.jpg"), entry("b.jpg", 2)]),
        JOB.key([entry("a.jpg"), entry("b.jpg", 1, "etag")]),
    }
    assert len(others | {key}) == 9


def test_parts_are_small_enough_and_enough() -> None:
    assert images_per_part(1, 100, IMAGE, FEATURIZER) == 1
    assert images_per_part(1200, 100, IMAGE, FEATURIZER) == 3
    assert images_per_part(10_000_000, 100, IMAGE, FEATURIZER) == MOST_IMAGES
    large = ImageSpec(1920, 1088)
    count = images_per_part(10_000_000, 100, large, FEATURIZER)
    assert 1 <= count < MOST_IMAGES
    assert count * row_bytes(large, FEATURIZER) <= PART_BYTES
    entries = [entry(f"{i}.jpg") for i in range(10)]
    assert [list(part) for part in parts_of(entries, 4)] == [entries[:4], entries[4:8], entries[8:]]


def test_what_is_written_twice_is_there_once_and_whole(tmp_path: Path) -> None:
    folder = SharedFolder(str(tmp_path / "job"))
    assert folder.names("features") == set()
    for content in (b"first", b"second"):
        folder.write("features/part-1.parquet", content)
    assert folder.read("features/part-1.parquet") == b"second"
    assert folder.names("features") == {"features/part-1.parquet"}
    assert folder.exists("features/part-1.parquet")
    assert not folder.exists("features/part-2.parquet")
    with folder.open("features/part-1.parquet") as file:
        assert file.read() == b"second"
    folder.remove()
    assert list(tmp_path.iterdir()) == []
    folder.remove()


def test_a_shared_folder_may_be_a_url(tmp_path: Path) -> None:
    folder = SharedFolder(f"memory://{tmp_path.name}")
    assert folder.names("features") == set()
    folder.write("features/part-1.parquet", b"content")
    assert folder.names("features") == {"features/part-1.parquet"}
    assert folder.exists("features/part-1.parquet")
    with folder.open("features/part-1.parquet") as file:
        assert file.read() == b"content"
    folder.remove()
    assert not folder.exists("features/part-1.parquet")


def test_a_file_that_is_not_there_tells_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(SparkError, match="every executor see"):
        SharedFolder(str(tmp_path)).read("job.json")
    with pytest.raises(SparkError, match="cannot be opened"):
        SharedFolder("nosuchscheme://bucket/job")


def test_this_machine_is_like_itself_and_unlike_another() -> None:
    us = identity(IMAGE, FEATURIZER)
    probe = probe_image()
    with Featurizer(IMAGE, FEATURIZER) as running:
        answers = answer(running, probe), answer(running, probe)
    assert difference(us, dict(us), answers) is None
    told = difference(us, {**us, "onnxruntime": "1.0"}, answers)
    assert told == f"onnxruntime 1.0 where this machine has {us['onnxruntime']}"
    assert difference(us, {**us, "processor": "arm64 with sve"}, answers) is not None
    assert difference(us, dict(us), (answers[0], "0" * 64)) is not None


def test_the_answer_depends_on_the_featurizer() -> None:
    probe = probe_image()
    answers = set()
    for featurizer in (FEATURIZER, FeaturizerSpec(taps=(4,))):
        with Featurizer(IMAGE, featurizer) as running:
            answers.add(answer(running, probe))
    assert len(answers) == 2


def test_vector_instructions_are_told_without_the_rest() -> None:
    assert vector_features({"flags": "fpu sse2 avx2 avx512f amx_bf16 fma ht"}) == (
        "amx_bf16",
        "avx2",
        "avx512f",
        "fma",
        "sse2",
    )
    assert vector_features({"Features": "fp asimd sve cpuid"}) == ("asimd", "sve")
    assert vector_features({}) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Traceback\nModuleNotFoundError: No module named 'trainer'\n", "no whole Framegate"),
        ("PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python in worker has different", "another Python"),
        ('java.io.IOException: Cannot run program "/opt/python"', "cannot start Python"),
        ("[JAVA_GATEWAY_EXITED] Java gateway process exited", "Java 17"),
        ("Job aborted: ExecutorLostFailure (executor 1 exited; exit code 137)", "want of memory"),
        ("Traceback\ntrainer.errors.SparkError: executor a differs: expected b\n\tat org.apache", "executor a differs"),
        ("\nsomething else\nat x", "Spark failed (something else)"),
    ],
)
def test_errors_of_spark_are_one_line(text: str, words: str) -> None:
    assert words in in_words(text)
    assert "\n" not in in_words(text)


def parse(tmp_path: Path, *, on: str = "spark", **given: Any) -> SparkSettings | None:
    cluster = {"master": "spark://one:7077", "folder": None, "conf": (), "refine": None}
    options: dict[str, Any] = {**cluster, "source": "parts.zip", "out": tmp_path / "bundle", **given}
    return SparkSettings.parse(on, **options)


def test_executors_are_told_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = parse(tmp_path, conf=("spark.executor.memory=2g",))
    assert settings is not None
    assert settings.location == str(tmp_path / "parts.zip")
    assert settings.folder == str(tmp_path / "bundle.spark")
    assert settings.conf == {"spark.executor.memory": "2g"}
    remote = parse(tmp_path, source="s3://images/parts", folder="s3://scratch/jobs")
    assert remote is not None
    assert (remote.location, remote.folder) == ("s3://images/parts", "s3://scratch/jobs")
    assert str(remote) == "spark://one:7077"  # what a report tells of it


def test_what_is_told_of_a_cluster_holds_no_key(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "source": "https://me:secret@store/a.zip",
        "folder": "s3://k:secret@b",
        "conf": ("spark.x.key=secret",),
    }
    settings = parse(tmp_path, **keys)
    assert "secret" not in f"{settings} {settings!r}"


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    assert parse(tmp_path, on="here", master=None) is None
    with pytest.raises(InputError, match="without --on spark"):
        parse(tmp_path, on="here")
    with pytest.raises(InputError, match="--master"):
        parse(tmp_path, master=None)
    with pytest.raises(InputError, match=r"spark\.NAME=VALUE"):
        parse(tmp_path, conf=("executor.memory=2g",))
    with pytest.raises(InputError, match="--refine"):
        parse(tmp_path, refine="bundle", source=None)


def test_a_missing_extra_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pyspark" else name)
    with pytest.raises(InputError, match=r"needs pyspark.*pip install 'framegate\[spark\]'"):
        parse(tmp_path)


def test_a_master_that_is_not_there_is_told_before_a_jvm_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(SparkError, match="no Spark master answers"):
        Session(f"spark://127.0.0.1:{port}", {}, 1.0)
    with pytest.raises(InputError, match="not understood"):
        Session("spark://nowhere", {}, 1.0)


@pytest.mark.parametrize(
    ("master", "here"),
    [
        ("local[2]", True),
        ("local-cluster[2,1,1024]", True),
        ("spark://127.0.0.1:7077", True),
        ("spark://127.0.0.1:7077,spark2:7077", False),
        ("spark://10.0.0.7:7077", False),
        ("yarn", False),
    ],
)
def test_loopback_is_for_what_runs_here(master: str, *, here: bool) -> None:
    assert is_here(master) is here
