"""The trainer's commands: `framegate train` and `framegate data`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.cli_bundle import bundle_cache_option
from engine.command import PIXEL_SIZE, VERB, print_json
from engine.errors import InputError
from engine.plan_cache import default_folder
from engine.progress import progress_bar
from engine.specs import Region
from trainer.cli_good_only import print_good_only, refuse_good_only_options
from trainer.printing import print_end, print_found

if TYPE_CHECKING:
    from trainer.progress import Step

_TRAIN_EXAMPLE = """\b
Examples:
  framegate train parts.zip --out bundles/parts-1 --size 320x224 --roi 0.2,0.1,0.8,0.9
  framegate train az://images/train.zip --out bundles/pets-1 --fail-class dog
  framegate train good.zip --out bundles/new-line --mode good-only
"""


@click.command(context_settings=VERB, epilog=_TRAIN_EXAMPLE)
@click.argument("source", required=False)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Bundle to write: a new folder, or a .zip.")
@click.option("--name", help="Name of the model in verdicts; by default the bundle's own.")
@click.option("--model-version", default="1", help="Version of the model in verdicts.")
@click.option("--fail-class", help="Which of the two classes is the defect, where the names do not say it.")
@click.option(
    "--groups",
    type=click.Path(path_type=Path),
    help="CSV with columns file,label,group (lot, board, ...): of the last two one may be missing.",
)
@click.option("--columns", help="What they are called there, for example file=image,label=class,group=lot.")
@click.option(
    "--group-pattern",
    metavar="REGEX",
    help="What belongs together, as captured from the paths, for example '(lot[0-9]+)'; instead of groups in a CSV.",
)
@click.option(
    "--size", help="Input of the network in pixels, multiples of 32; by default chosen among a few.", **PIXEL_SIZE
)
@click.option(
    "--tile",
    help="Cut the input into tiles of so many pixels, which makes large scenes faster and may judge worse what "
    "lies where two meet. Without --size the images' own size is taken.",
    **PIXEL_SIZE,
)
@click.option("--backbone", help="Pretrained network: efficientnet-lite0 (the default), -lite1 or -lite2.")
@click.option("--taps", help="Blocks of the network to look at, for example 2,4,7,10; by default where it may be cut.")
@click.option(
    "--featurizer-of",
    metavar="BUNDLE",
    help="One more head for the featurizer of BUNDLE, with its input size and region: both can be served side by side.",
)
@click.option("--refine", metavar="BUNDLE", help="Train again on what BUNDLE was trained on, with further labels.")
@click.option(
    "--reviews",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="CSV or JSON lines with file and label: the further labels of --refine.",
)
@click.option("--roi", help="Region of interest as fractions left,top,right,bottom of the image, cut before resizing.")
@click.option(
    "--jpeg",
    type=click.Choice(["scaled", "whole"]),
    help="Decode JPEGs no larger than the network's input needs, or always whole.  [default: scaled, or as "
    "--featurizer-of has it]",
)
@click.option(
    "--seed", default=0, type=click.IntRange(min=0), help="Decides the split; the same seed, the same bundle."
)
@click.option("--defect-rate", type=float, help="Share of defects on the line; by default the training set's own.")
@click.option("--cost-escape", default=5.0, help="What a defect that passes costs, in any unit.")
@click.option("--cost-false-reject", default=1.0, help="What a good part that fails costs, in the same unit.")
@click.option("--cost-review", default=0.5, help="What an inspector's look costs; 0 for no review band.")
@click.option(
    "--max-escape-rate",
    type=float,
    help="Largest share of defects that may pass, proved on held-out ones; costs then only divide the rest.",
)
@click.option("--confidence", default=0.95, show_default=True, help="Of that bound, and of those that are printed.")
@click.option(
    "--accept-unproved",
    is_flag=True,
    help="Write a bundle, at the point from costs, also where there are too few defects to prove --max-escape-rate.",
)
@click.option(
    "--mode",
    default="two-class",
    type=click.Choice(["two-class", "good-only"]),
    show_default=True,
    help="good-only trains on good parts alone, for a line that has seen no defect yet.",
)
@click.option(
    "--max-false-reject",
    type=float,
    help="With --mode good-only: at most this share of good parts fails, as an upper bound at --confidence.  [default: "
    "0.01, or as near as the images can show]",
)
@click.option("--held-out", type=click.Path(path_type=Path), help="New folder to copy the held-out images to.")
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    show_default="in the user's cache",
    default=lambda: default_folder(os.environ).with_name("features"),
    help="Folder where features are kept: an interrupted training goes on there, a second one finds them.",
)
@click.option(
    "--features-limit",
    default=20.0,
    type=click.FloatRange(min=0),
    help="GiB of that folder; what was used longest ago goes first, what is in use stays.",
)
@click.option(
    "--report/--no-report", default=True, help="Write the acceptance report into the bundle, as report/index.html."
)
@click.option(
    "--on", default="here", type=click.Choice(["here", "spark"]), help="Featurize on this machine or on Apache Spark."
)
@click.option("--master", help="With --on spark: the cluster, for example spark://host:7077.")
@click.option(
    "--spark-folder",
    help="With --on spark: path or URL that this machine and all executors see.  [default: beside --out]",
)
@click.option(
    "--spark-conf", multiple=True, metavar="NAME=VALUE", help="With --on spark: a setting of Spark; repeatable."
)
@bundle_cache_option
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def train(source: str | None, out: Path, *, as_json: bool, **options: Any) -> None:
    """Train a bundle from SOURCE: a zip or a folder of two classes, or of good parts alone with --mode good-only.

    SOURCE lies on this machine or at a URL.

    Classes come from folders (good/, fail/), from names (cat.12.jpg, dog.7.jpg) or from the CSV file of --groups. URLs
    are https:// of a zip, and az://, s3://, gs:// and others of a zip or of loose images; keys come from the usual
    environment.
    """
    from trainer.escapes import Bound  # noqa: PLC0415 - `--help` must not wait for scikit-learn
    from trainer.label_csv import Columns  # noqa: PLC0415
    from trainer.operating_point import Costs  # noqa: PLC0415
    from trainer.settings import TrainSettings  # noqa: PLC0415
    from trainer.spark_settings import SparkSettings  # noqa: PLC0415
    from trainer.train import train as run_training  # noqa: PLC0415

    settings = TrainSettings(
        source=source,
        out=out,
        name=options["name"],
        version=options["model_version"],
        fail_class=options["fail_class"],
        groups=options["groups"],
        columns=Columns.parse(options["columns"]),
        group_pattern=options["group_pattern"],
        size_px=options["size"],
        tile_px=options["tile"],
        backbone=options["backbone"],
        taps=parse_taps(options["taps"]) if options["taps"] else None,
        featurizer_of=options["featurizer_of"],
        region=Region.parse(options["roi"]) if options["roi"] else Region(),
        jpeg=options["jpeg"],
        seed=options["seed"],
        defect_rate=options["defect_rate"],
        costs=Costs(options["cost_escape"], options["cost_false_reject"], options["cost_review"]),
        bound=Bound(options["max_escape_rate"], options["confidence"], options["accept_unproved"]),
        held_out=options["held_out"],
        refine=options["refine"],
        reviews=options["reviews"],
        features=options["features"],
        features_limit_gib=options["features_limit"],
        bundle_cache=options["bundle_cache"],
        report=options["report"],
        spark=SparkSettings.parse(
            options["on"],
            options["master"],
            options["spark_folder"],
            options["spark_conf"],
            source=source,
            out=out,
            refine=options["refine"],
        ),
    )
    with progress_bar(stays=True) as show:

        def tell(step: Step) -> None:
            show(step.name, step.done, step.total)

        if options["mode"] == "good-only":
            from trainer.false_rejects import FalseRejects  # noqa: PLC0415
            from trainer.good_only import train_good_only  # noqa: PLC0415

            asked = FalseRejects(options["max_false_reject"], options["confidence"])
            _, summary = train_good_only(settings, asked, tell)
        else:
            refuse_good_only_options(options)
            _, summary = run_training(settings, tell)
    if as_json:
        print_json(summary)
    else:
        (print_good_only if options["mode"] == "good-only" else _print_summary)(summary)


@click.group(context_settings=VERB)
def data() -> None:
    """Image sets: fetch a public one, or render a line."""


@data.command(context_settings=VERB, epilog="\b\nExample:\n  framegate data fetch catdog --out sets/catdog\n")
@click.argument("name")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder to fill; an earlier try is continued."
)
@click.option("--base-url", help="Fetch from this mirror instead; the hashes stay the pinned ones.")
def fetch(name: str, out: Path, base_url: str | None) -> None:
    """Fetch the public image set NAME; its licence is shown, every file's hash is checked."""
    from trainer.public_data import fetch as fetch_set  # noqa: PLC0415 - only when asked for
    from trainer.public_data import find_set  # noqa: PLC0415

    click.echo(find_set(name).notice)
    with progress_bar(stays=True) as show:
        fetch_set(name, out, base_url=base_url, progress=lambda done, total: show("fetch", done, total))
    click.echo(f"fetched into {out}; train on it with: framegate train {out} --out bundles/{name}")


@data.command(context_settings=VERB, epilog="\b\nExample:\n  framegate data render --out sets/line --per-station 100\n")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder for the images and groups.csv.")
@click.option("--per-station", default=200, type=click.IntRange(min=1), help="Images of each station.")
@click.option("--seed", default=0, type=click.IntRange(min=0), help="The same seed, the same images.")
@click.option(
    "--first-lot",
    default=0,
    type=click.IntRange(min=0),
    help="Number of the first lot: later lots look a little different.",
)
@click.option("--lots", default=5, type=click.IntRange(min=1), help="How many lots.")
@click.option("--defect-share", default=0.4, type=click.FloatRange(0, 1), help="Share of defects.")
def render(out: Path, **options: Any) -> None:
    """Render an assembly line: four stations, good parts and parts with scratches, dents, missing holes and stains."""
    from trainer.rendered import render_line  # noqa: PLC0415 - only when asked for

    images = render_line(out, **options)
    click.echo(f"rendered {len(images)} images into {out}")


def parse_taps(text: str) -> tuple[int, ...]:
    """Block numbers of `2,4,7,10`. Raises InputError on anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        msg = f"taps {text!r} are not block numbers: expected whole numbers with commas, for example 2,4,7,10"
        raise InputError(msg) from error


def _print_summary(summary: dict[str, Any]) -> None:
    from trainer.acceptance import rate_words  # noqa: PLC0415 - it is there since the training

    held, validated = summary["held_out"], summary["cross_validated"]
    click.echo(f"bundle   {summary['bundle']}  (name {summary['name']}, digest {summary['digest'][:12]})")
    click.echo(f"classes  pass {summary['classes']['pass']!r}, fail {summary['classes']['fail']!r}")
    click.echo(f"input    {summary['input_px'][0]} x {summary['input_px'][1]} px{_tiles(summary)}")
    _print_chosen(summary["chosen"])
    _print_decides(summary)
    click.echo(f"         {rate_words(summary['defect_rate'], is_given=summary['defect_rate_given'])}")
    click.echo(
        f"all      {validated['folds']}-fold by group: AUROC {_ranked(validated)} "
        f"(mean of folds {_figure(validated['auroc_mean_of_folds'])}; pooled regression alone "
        f"{validated['auroc_pooled_regression']:.4f}), calibration error "
        f"{validated['expected_calibration_error']:.3f}"
    )
    click.echo(
        f"held out {held['images']} images, {held['defects']} defects, {held['groups']} groups: AUROC {_ranked(held)}"
    )
    first, *others = summary["operating_point"]["words"]
    click.echo(f"proves   {first}")
    for words in (*others, *_worst_group(held["by"].get("group", {}))):
        click.echo(f"         {words}")
    if "refined" in summary:
        _print_refined(summary["refined"])
    click.echo(f"curve    {summary['learning_curve']['says']}")
    print_found(summary)
    features = summary["features"]
    click.echo(f"features {features['found']} found in the cache, {features['computed']} computed")
    print_end(summary)


def _print_decides(summary: dict[str, Any]) -> None:
    """What is done at which probability, and why there."""
    low, high = summary["review_band"]
    point = summary["operating_point"]
    why = "by costs" if point["by"] == "costs" else "passes what the bound on escapes allows"
    band = f"review from {low:.3f}, fail from {high:.3f}" if low < high else f"fail from {summary['threshold']:.3f}"
    click.echo(f"decides  {band}, {why}")
    if point["stations"]:
        click.echo(f"         {len(point['stations'])} stations have their own: {', '.join(point['stations'])}")


def _worst_group(groups: dict[str, dict[str, Any]]) -> list[str]:
    """Of the held-out groups the one most of whose defects passed."""
    known = {name: metrics for name, metrics in groups.items() if metrics["defects"]}
    if not known:
        return []
    name = max(known, key=lambda each: (known[each]["escape_rate"], known[each]["escape_rate_interval"][1]))
    low, high = known[name]["escape_rate_interval"]
    passed = known[name]["confusion"]["defect"]["pass"]
    words = f"the worst of them, {name}: of {known[name]['defects']} defects {passed or 'none'} passed"
    return [f"{words}, {100 * low:.1f} to {100 * high:.1f} % of its defects at 95 % confidence"]


def _ranked(metrics: dict[str, Any]) -> str:
    """An AUROC, never alone."""
    low, high = metrics["auroc_interval"]
    return f"{metrics['auroc']:.4f} [{low:.3f}, {high:.3f}]"


def _print_refined(refined: dict[str, Any]) -> None:
    click.echo(
        f"reviews  {refined['new']} new images, {refined['relabelled']} labels changed, "
        f"{refined['confirmed']} confirmed; "
        f"the earlier bundle on the same held-out images: AUROC {refined['before']['auroc']:.4f}"
    )


def _print_chosen(chosen: dict[str, Any]) -> None:
    """One line for what was taken, then what else was tried: its cost, its AUROC and how far below the best."""
    click.echo(
        f"chosen   {chosen['backbone']}, taps {_taps(chosen)}, decides by {chosen['parts']}; "
        f"l2 {chosen['l2']}, sharpness {chosen['sharpness']}, pooled strength {chosen['pooled_strength']}"
    )
    if chosen["candidates"]:
        click.echo(f"         tried on {chosen['images']} images, out of fold, the cheapest first:")
        click.echo("           input px  taps                  decides by  M macs   AUROC  below best")
    for row in chosen["candidates"]:
        size = "x".join(str(side) for side in row["input_px"])
        click.echo(
            f"         {'>' if row['chosen'] else ' '} {size:>8}  {_taps(row):<20}  {row['parts']:<10}"
            f"  {row['million_macs']:6.0f}  {row['auroc']:.4f}  {row['below_best']:.4f} +- {row['standard_error']:.4f}"
        )
    for row in chosen["not_tried"]:
        size = " ".join(("x".join(str(side) for side in row["input_px"]), "px") if "input_px" in row else ("others",))
        click.echo(f"         {size} not tried: {row['why']}")


def _tiles(summary: dict[str, Any]) -> str:
    if summary["tile_px"] is None:
        return ""
    (width, height), (across, down) = summary["input_px"], summary["tile_px"]
    return f" in {width // across * (height // down)} tiles of {across} x {down} px"


def _taps(row: dict[str, Any]) -> str:
    return ",".join(str(tap) for tap in row["taps"]) + (" + embedding" if row["embedding"] else "")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
