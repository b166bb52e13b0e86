"""The command `framegate demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engine.command import VERB, print_json

_EPILOG = """\b
Examples:
  framegate demo
  framegate demo --data parts.zip --fail-class scratched
"""


@click.command(context_settings=VERB, epilog=_EPILOG)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Zip or folder of two classes; by default a rendered line."
)
@click.option("--fail-class", help="Which class of --data is the defect, where the names do not say it.")
@click.option("--seed", default=0, type=click.IntRange(min=0), help="Of the rendered line, the split and the order.")
@click.option("--train-images", default=200, type=click.IntRange(min=20), help="Images rendered of each station.")
@click.option(
    "--frames", default=120, type=click.IntRange(min=1), help="Frames sent by each station's camera, at most."
)
@click.option("--rate", default=8.0, type=click.FloatRange(min=0, min_open=True), help="Frames per second and station.")
@click.option("--keep", type=click.Path(path_type=Path), help="New folder to keep images, bundle and logs in.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def demo(*, as_json: bool, **options: Any) -> None:
    """All of it at once: a broker, training, the consumer and four cameras, then a summary; ends by itself.

    Uses the embedded broker, which keeps nothing and does not honour transactions: delivery is at least once. Ends with
    1 where a frame has no verdict, or more than one.
    """
    from consumer.demo import DemoSettings, run_demo  # noqa: PLC0415 - `--help` must not wait for it
    from consumer.demo_table import Display, print_summary  # noqa: PLC0415 - the same
    from consumer.errors import ChildError  # noqa: PLC0415 - the same

    settings = DemoSettings(
        data=options["data"],
        fail_class=options["fail_class"],
        seed=options["seed"],
        train_images=options["train_images"],
        frames=options["frames"],
        rate_hz=options["rate"],
        keep=options["keep"],
    )
    with Display() as display:
        summary = run_demo(settings, display.show)
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)
    if summary["frames"] != summary["verdicts"]:
        msg = f"{summary['frames']} frames were sent and {summary['verdicts']} verdicts came: expected one for each"
        raise ChildError(msg)
