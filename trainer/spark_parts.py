"""Rows of features as Parquet: one file a part, a row an image, in groups of rows that fit into memory one by one.

Anyone's tools can read it: `sha256`, `why` (set where the image is set aside; then the rest is null), `unread` (the
reason is that it could not be read, not that it is no image), `pooled` as a list of float32, `channels` and `glance` as
bytes whose dtype and shape stand in the file's metadata.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.watching import SIDE
from trainer.featurize import CHANNELS_DTYPE, Row, row_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import BinaryIO

    from engine.featurizer import FeaturizerSpec
    from engine.specs import ImageSpec

ROWS_AT_ONCE = 32
_NUMBERS = ("contrast", "detail", "level", "noise")
_METADATA = b"framegate"


@dataclass(frozen=True, slots=True, eq=False)
class PartRow:
    """One image of a part: its row, or why it is set aside.

    Attributes:
        unread: that it could not be read.
    """

    name: str
    row: Row | str
    unread: bool = False


def schema(image: ImageSpec, featurizer: FeaturizerSpec) -> pa.Schema:
    """The columns, with what the bytes are in the metadata."""
    told = {
        "image": image.to_json(),
        "featurizer": featurizer.to_json(),
        "channels": {"dtype": CHANNELS_DTYPE.str, "shape": list(row_shape(image, featurizer))},
        "glance": {"dtype": "|u1", "shape": [SIDE, SIDE]},
    }
    fields = [
        pa.field("name", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("why", pa.string()),
        pa.field("unread", pa.bool_(), nullable=False),
        pa.field("pooled", pa.list_(pa.float32())),
        pa.field("channels", pa.binary()),
        *(pa.field(name, pa.float64()) for name in _NUMBERS),
        pa.field("glance", pa.binary()),
    ]
    return pa.schema(fields, metadata={_METADATA: json.dumps(told).encode()})


class PartWriter:
    """Rows into one Parquet file in memory, a group at a time; the same rows, the same bytes."""

    def __init__(self, image: ImageSpec, featurizer: FeaturizerSpec) -> None:
        """Begin the file."""
        self._schema = schema(image, featurizer)
        self._buffer = io.BytesIO()
        # Features hardly pack, and no column of them repeats a value: no dictionaries and no statistics of bytes.
        self._writer = pq.ParquetWriter(
            self._buffer, self._schema, compression="none", use_dictionary=False, write_statistics=False
        )

    def write(self, rows: Sequence[PartRow]) -> None:
        """Append a group of rows."""
        columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        for each in rows:
            for name, value in _plain(each).items():
                columns[name].append(value)
        self._writer.write_table(pa.table(columns, schema=self._schema), row_group_size=len(rows))

    def finish(self) -> bytes:
        """The whole file."""
        self._writer.close()
        return self._buffer.getvalue()


def encode(rows: Iterable[PartRow], image: ImageSpec, featurizer: FeaturizerSpec) -> bytes:
    """A part as a Parquet file."""
    writer = PartWriter(image, featurizer)
    group: list[PartRow] = []
    for row in rows:
        group.append(row)
        if len(group) == ROWS_AT_ONCE:
            writer.write(group)
            group = []
    if group:
        writer.write(group)
    return writer.finish()


def decode(file: BinaryIO, image: ImageSpec, featurizer: FeaturizerSpec) -> Iterator[PartRow]:
    """The rows of a part, in its order; one group of them is held at a time.

    Raises:
        ValueError: it is no Parquet file, or one of other features.
    """
    source = pq.ParquetFile(file)
    if source.schema_arrow != schema(image, featurizer) or source.schema_arrow.metadata != _metadata(image, featurizer):
        msg = "the file holds other columns, or features of another featurizer"
        raise ValueError(msg)
    shape = row_shape(image, featurizer)
    for batch in source.iter_batches(batch_size=ROWS_AT_ONCE):
        for index in range(batch.num_rows):
            yield _row({name: batch.column(name)[index] for name in batch.schema.names}, shape)


def _metadata(image: ImageSpec, featurizer: FeaturizerSpec) -> dict[bytes, bytes]:
    return dict(schema(image, featurizer).metadata)


def _plain(each: PartRow) -> dict[str, Any]:
    row = each.row
    if isinstance(row, str):
        empty = dict.fromkeys(("sha256", "pooled", "channels", *_NUMBERS, "glance"))
        return {"name": each.name, "why": row, "unread": each.unread, **empty}
    return {
        "name": each.name,
        "sha256": row.sha256,
        "why": None,
        "unread": False,
        "pooled": row.pooled,
        "channels": row.channels.tobytes(),
        **{name: getattr(row, name) for name in _NUMBERS},
        "glance": row.glance.tobytes(),
    }


def _row(values: dict[str, Any], shape: tuple[int, int]) -> PartRow:
    name, why = values["name"].as_py(), values["why"].as_py()
    if why is not None:
        return PartRow(name, why, values["unread"].as_py())
    contrast, detail, level, noise = (values[number].as_py() for number in _NUMBERS)
    row = Row(
        sha256=values["sha256"].as_py(),
        pooled=values["pooled"].values.to_numpy(),
        channels=np.frombuffer(values["channels"].as_buffer(), CHANNELS_DTYPE).reshape(shape),
        contrast=contrast,
        detail=detail,
        level=level,
        noise=noise,
        glance=np.frombuffer(values["glance"].as_buffer(), np.uint8).reshape(SIDE, SIDE),
    )
    return PartRow(name, row)
