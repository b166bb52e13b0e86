"""`framegate camera`."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from consumer.cli_options import client_config as client_config_option
from consumer.errors import BrokerError, SettingsError
from engine.command import PIXEL_SIZE, VERB, print_json

if TYPE_CHECKING:
    from consumer.camera_report import CameraReport
    from consumer.camera_settings import CameraSettings

EPILOG = """\b
Examples:
  framegate camera images/ --station press-1 --rate 5
  framegate camera images/ --station press-1 --station press-2 --rate 10 --loop
  framegate camera --station press-1=left/ --station press-2=right/ --count 100 --sent sent.jsonl
  framegate camera drop/ --station press-1 --watch
  framegate camera 'rtsp://line:${CAMERA_PASSWORD}@10.0.0.21/stream' --station press-1 --rate 5
  framegate camera /dev/video0 --station press-1 --resolution 1920x1080
"""


@click.command(context_settings=VERB, epilog=EPILOG)
@click.argument("source", required=False)
@click.option(
    "--station",
    "stations",
    multiple=True,
    required=True,
    metavar="NAME[=SOURCE]",
    help="Publish as this station; again for more. With =SOURCE the station has a source of its own.",
)
@click.option(
    "--rate",
    type=float,
    metavar="HZ",
    help="Frames a second of each station; 0 for as fast as it goes. Default: 5; with --watch 0.",
)
@click.option("--count", type=int, metavar="N", help="Most frames of each station. Default: all there are.")
@click.option("--loop", is_flag=True, help="Begin again at the end of a folder or video, until --count or Ctrl-C.")
@click.option("--shuffle", type=int, metavar="SEED", help="Send in a random order, the same for the same SEED.")
@click.option("--watch", is_flag=True, help="Publish images as they appear in the folder, and move them to --done.")
@click.option(
    "--done",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where --watch moves what was sent. Default: the folder `done` in SOURCE.",
)
@click.option("--delete", is_flag=True, help="With --watch: delete what was sent instead.")
@click.option(
    "--settle-s",
    default=1.0,
    show_default=True,
    metavar="S",
    help="With --watch: how long a file must not have changed; 0 where files are renamed into the folder.",
)
@click.option(
    "--part-pattern",
    metavar="REGEX",
    help="Its group in a file's name is the part's id, e.g. '^([A-Z0-9]+)_'. Default: frames carry none.",
)
@click.option(
    "--jpeg-quality",
    default=95,
    show_default=True,
    metavar="1..100",
    help="Of frames that come as pixels: videos, streams, devices.",
)
@click.option("--resolution", help="Pixels to ask a device for, e.g. 1920x1080. Default: as it is.", **PIXEL_SIZE)
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
    source: str | None,
    stations: tuple[str, ...],
    rate: float | None,
    count: int | None,
    loop: bool,
    shuffle: int | None,
    watch: bool,
    done: Path | None,
    delete: bool,
    settle_s: float,
    part_pattern: str | None,
    jpeg_quality: int,
    resolution: tuple[int, int] | None,
    frames_topic: str,
    bootstrap_servers: str,
    client_config: Path | None,
    sent: Path | None,
    as_json: bool,
) -> None:
    """Publish what SOURCE gives as frames of one or several stations.

    SOURCE is a folder of images, one file, a video, a URL (rtsp://, http://…), a device (/dev/video0), or a GStreamer
    pipeline where OpenCV has that. A URL may hold ${NAME}, an environment variable. Each frame carries its capture time
    and an id of its own. Ends when every image is sent, at --count, or on Ctrl-C; exit code 1 where the broker did not
    acknowledge every frame.
    """
    from consumer.camera_settings import CameraSettings  # noqa: PLC0415 - the same
    from consumer.config import read_client_config  # noqa: PLC0415 - `--help` must not wait for it

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
        watch=watch,
        done_path=done,
        delete=delete,
        settle_s=settle_s,
        part_pattern=None if part_pattern is None else _pattern(part_pattern),
        jpeg_quality=jpeg_quality,
        size_px=resolution,
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


def _stream(text: str, source: str | None) -> tuple[str, str]:
    """(station, its source) of `NAME` or `NAME=SOURCE`."""
    station, separator, own = text.partition("=")
    if separator and not own:
        msg = (
            f"station {text!r} names no folder: expected NAME, or NAME=SOURCE with a folder, a video, a URL or a device"
        )
        raise SettingsError(msg)
    if own:
        return station, own
    if source is None:
        msg = f"station {station!r} has no images: give SOURCE, or --station {station}=FOLDER"
        raise SettingsError(msg)
    return station, source


def _pattern(text: str) -> re.Pattern[str]:
    """A regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        msg = f"--part-pattern {text!r} is no regular expression: {error}; expected one such as '^([A-Z0-9]+)_'"
        raise SettingsError(msg) from error


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
