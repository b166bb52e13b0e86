"""`framegate camera`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from consumer.cli_options import client_config as client_config_option
from consumer.errors import BrokerError, SettingsError
from engine.command import VERB, print_json

if TYPE_CHECKING:
    from consumer.station import CameraReport, CameraSettings

EPILOG = """\b
Examples:
  framegate camera images/ --station press-1 --rate 5
  framegate camera images/ --station press-1 --station press-2 --rate 10 --loop
  framegate camera --station press-1=left/ --station press-2=right/ --count 100 --sent sent.jsonl
"""


@click.command(context_settings=VERB, epilog=EPILOG)
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option(
    "--station",
    "stations",
    multiple=True,
    required=True,
    metavar="NAME[=FOLDER]",
    help="Publish as this station; again for more. With =FOLDER the station has images of its own instead of SOURCE.",
)
@click.option("--rate", default=5.0, metavar="HZ", help="Frames a second of each station; 0 for as fast as it goes.")
@click.option("--count", type=int, metavar="N", help="Most frames of each station. Default: each image once.")
@click.option("--loop", is_flag=True, help="Begin again at the folder's end, until --count or Ctrl-C.")
@click.option("--shuffle", type=int, metavar="SEED", help="Send in a random order, the same for the same SEED.")
@click.option("--frames-topic", default="frames", metavar="NAME", help="Topic to publish to; it must exist.")
@click.option("--bootstrap-servers", default="localhost:9092", metavar="HOST:PORT,…", help="The Kafka brokers.")
@client_config_option
@click.option(
    "--sent",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write one JSON line for each frame: frame_id, station, path, captured_at.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def camera(
    *,
    source: Path | None,
    stations: tuple[str, ...],
    rate: float,
    count: int | None,
    loop: bool,
    shuffle: int | None,
    frames_topic: str,
    bootstrap_servers: str,
    client_config: Path | None,
    sent: Path | None,
    as_json: bool,
) -> None:
    """Publish the images of SOURCE, a folder or one file, as frames of one or several stations.

    Each frame carries its capture time and an id of its own. Ends when every image is sent, at --count, or on
    Ctrl-C; exit code 1 where the broker did not acknowledge every frame.
    """
    from consumer.config import read_client_config  # noqa: PLC0415 - `--help` must not wait for it
    from consumer.station import CameraSettings  # noqa: PLC0415 - the same

    # kafka-python's own lines would stand between the user and the one line that says what to do.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    settings = CameraSettings(
        bootstrap_servers=bootstrap_servers,
        streams=tuple(_stream(text, source) for text in stations),
        topic=frames_topic,
        rate_hz=rate,
        count=count,
        loop=loop,
        shuffle_seed=shuffle,
        sent_path=sent,
        client={} if client_config is None else read_client_config(client_config),
    )
    report = _run(settings)
    _print(report, as_json=as_json)
    if report.failed:
        reasons = ", ".join(f"{name} x {times}" for name, times in sorted(report.errors.items()))
        msg = (
            f"{report.failed} of {report.sent + report.failed} frames were not acknowledged by {bootstrap_servers} "
            f"({reasons}): expected all; see that the broker runs and that the topic's max.message.bytes takes the "
            "largest image"
        )
        raise BrokerError(msg)


def _run(settings: CameraSettings) -> CameraReport:
    """Run the camera, with a progress bar where a terminal is there."""
    from rich.console import Console  # noqa: PLC0415 - `--help` must not wait for it
    from rich.progress import (  # noqa: PLC0415 - the same
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    from consumer.station import expected_frames, run_camera  # noqa: PLC0415 - the same

    with Progress(
        TextColumn("frames"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as progress:
        task = progress.add_task("frames", total=expected_frames(settings))
        return run_camera(settings, on_sent=lambda _frame: progress.advance(task))


def _stream(text: str, source: Path | None) -> tuple[str, Path]:
    """(station, where its images are) of `NAME` or `NAME=FOLDER`."""
    station, separator, folder = text.partition("=")
    if separator and not folder:
        msg = f"station {text!r} names no folder: expected NAME or NAME=FOLDER"
        raise SettingsError(msg)
    if folder:
        return station, Path(folder)
    if source is None:
        msg = f"station {station!r} has no images: give SOURCE, or --station {station}=FOLDER"
        raise SettingsError(msg)
    return station, source


def _print(report: CameraReport, *, as_json: bool) -> None:
    """Show the report to a program or to a person."""
    if as_json:
        print_json(report.to_json())
        return
    rate_hz = report.sent / report.seconds if report.seconds > 0 else 0.0
    took = f"{report.seconds:.1f} s ({rate_hz:.1f}/s)"
    click.echo(f"{report.sent} frames sent in {took}, {report.failed} lost, {report.late} late")
    for station, frames in report.by_station.items():
        click.echo(f"  {station}: {frames}")
