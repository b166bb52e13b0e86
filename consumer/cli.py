"""The consumer's commands: `framegate run`, `framegate broker`, `framegate topics`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from consumer.cli_options import client_config as client_config_option
from engine.choice import BACKENDS
from engine.cli_build import take_settings, tensorrt_settings
from engine.cli_bundle import bundle_cache_option
from engine.command import VERB, print_json

RUN_EPILOG = """\b
Examples:
  framegate run --bundle bundles/parts-1 --bootstrap-servers kafka-1:9092,kafka-2:9092
  framegate run --bundle parts.zip --client-config kafka.properties --http-host 0.0.0.0
  framegate run --routing routes.toml --shadow bundles/parts-2
  framegate run --bundle https://models.plant.example/parts.zip --watch-s 30
  FRAMEGATE_GROUP=line-2 framegate run --bundle bundles/parts-1 --batch-size 16 --batch-age-ms 10
"""

_SERVERS = click.option(
    "--bootstrap-servers", default="localhost:9092", metavar="HOST:PORT,…", help="The Kafka brokers."
)


@click.command(context_settings=VERB, epilog=RUN_EPILOG)
@click.option(
    "--bundle",
    metavar="BUNDLE",
    help="Model bundle: a folder, a zip or a URL of one. With --routing: for other stations.",
)
@click.option(
    "--routing",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Which bundle judges which station, and its region and threshold there: [[route]] tables in TOML.",
)
@click.option(
    "--shadow", metavar="BUNDLE", help="A candidate: its decisions are compared in the metrics, never published."
)
@bundle_cache_option
@click.option(
    "--watch-s",
    default=5.0,
    metavar="S",
    help="How often to look whether a bundle or the routing file was replaced; 0: only on SIGHUP.",
)
@_SERVERS
@click.option("--group", default="framegate", metavar="NAME", help="Consumer group; it remembers where to go on.")
@click.option("--frames-topic", default="frames", metavar="NAME", help="Topic to read frames from.")
@click.option("--verdicts-topic", default="verdicts", metavar="NAME", help="Topic to publish verdicts to.")
@click.option("--dead-topic", default="frames.dead", metavar="NAME", help="Topic for records of unjudgeable frames.")
@click.option(
    "--batch-size",
    type=int,
    metavar="FRAMES",
    help="Frames in the largest batch. Default: as many as pay, by what the engine's batches are measured to cost.",
)
@click.option(
    "--batch-age-ms",
    type=float,
    metavar="MS",
    help="How long an idle engine waits for a fuller batch, milliseconds. Default: not at all.",
)
@click.option("--station-cap", type=int, metavar="FRAMES", help="Of one station in a contested batch. Default: half.")
@click.option("--decode-threads", type=int, metavar="N", help="Threads that decode. Default: the cores, at most 8.")
@click.option("--max-in-flight", default=256, metavar="FRAMES", help="Frames fetched and not yet answered, at most.")
@click.option("--max-in-flight-mib", default=256.0, metavar="MIB", help="Their images, encoded and decoded, in MiB.")
@click.option("--http-host", default="127.0.0.1", metavar="ADDRESS", help="Where /metrics, /live and /ready listen.")
@click.option("--http-port", default=9108, metavar="PORT", help="Their port; 0 takes a free one, -1 serves none.")
@click.option(
    "--deadline-s",
    type=float,
    metavar="S",
    help="A frame older than this is answered none/late, without the engine. Default: any age is judged.",
)
@click.option(
    "--camera-checks/--no-camera-checks",
    default=True,
    help="Whether frames of a frozen or shifted camera are answered none/camera_fault. Default: they are.",
)
@click.option(
    "--delivery",
    type=click.Choice(["exactly-once", "at-least-once"]),
    help="How verdicts are delivered. Default: exactly once on Apache Kafka, at least once on the embedded broker.",
)
@click.option(
    "--instance",
    metavar="NAME",
    help="What tells this consumer from the others of its group, the same after a restart. Default: host and process.",
)
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Whole consumers in processes of their own, each with the settings here. Default: one per core, at most one "
    "per partition.",
)
@click.option(
    "--engine-process",
    type=click.Choice(["shared", "own"]),
    help="Of several workers: one engine that they share, in a process of its own, or each its own. Default: shared "
    "where a GPU computes, else own.",
)
@click.option("--drain-s", default=20.0, metavar="S", help="On SIGTERM: seconds to answer what is in hand.")
@click.option(
    "--session-timeout-s",
    type=float,
    metavar="S",
    help="Seconds a dead consumer keeps its partitions. Default: 10, on the embedded broker 6.",
)
@client_config_option
@click.option("--backend", default="auto", type=click.Choice(BACKENDS), help="What computes.")
@tensorrt_settings
@click.option(
    "--log-format",
    default="auto",
    type=click.Choice(["auto", "text", "json"]),
    help="Log lines on standard error; auto: text on a terminal, else JSON.",
)
@click.option("--idle-exit-s", type=float, metavar="S", help="End when no frame came for so many seconds; for replays.")
def run(*, client_config: Path | None, http_port: int, bundle_cache: Path, **options: Any) -> None:
    """Judge the frames of a topic: one verdict per frame, in order per station.

    Goes on where the group last committed; a new group begins at the oldest frame kept, so no frame is skipped. On
    SIGTERM or Ctrl-C it answers what is in hand, commits and ends with 0; a second signal gives up at once with 1, and
    what was not committed is judged again. A broker that goes away is waited for; /ready says so.

    A bundle or routing file that is replaced while this runs is checked, loaded and then used from the next frame on;
    one that is not sound is refused, and the models of before go on.
    """
    from consumer.app import log_to_stderr, run_consumer  # noqa: PLC0415 - `--help` must not wait for it
    from consumer.config import Settings, read_client_config  # noqa: PLC0415 - the same

    settings = Settings(
        bundle_cache=bundle_cache,
        tensorrt=take_settings(options, options["backend"]),
        client={} if client_config is None else read_client_config(client_config),
        http_port=None if http_port < 0 else http_port,
        **options,
    )
    log_to_stderr(settings.log_format)
    run_consumer(settings)


@click.command(context_settings=VERB, epilog="\b\nExample:\n  framegate broker --port 9092\n")
@click.option("--port", default=9092, metavar="PORT", help="TCP port on loopback.")
def broker(*, port: int) -> int:
    """Run the embedded broker until Ctrl-C: for a laptop, the demo and the tests. It forgets everything at its end."""
    from consumer.broker import run_broker  # noqa: PLC0415 - `--help` must not wait for it

    return run_broker(port, click.echo)


TOPICS_EPILOG = """\b
Examples:
  framegate topics create --partitions 12 --replication 3 --bootstrap-servers kafka-1:9092
  framegate topics check --json
"""


@click.group(context_settings=VERB, epilog=TOPICS_EPILOG)
def topics() -> None:
    """Make the topics, or see that they are there."""


_NAMES = (
    click.option("--frames-topic", default="frames", metavar="NAME", help="Topic of the frames."),
    click.option("--verdicts-topic", default="verdicts", metavar="NAME", help="Topic of the verdicts."),
    click.option("--dead-topic", default="frames.dead", metavar="NAME", help="Topic of records of unjudgeable frames."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)


def _named(command: Any) -> Any:
    """The options that both commands share."""
    for option in reversed((_SERVERS, client_config_option, *_NAMES)):
        command = option(command)
    return command


@topics.command("create", context_settings=VERB)
@_named
@click.option("--partitions", default=4, metavar="N", help="Partitions of each. Choose generously: see above.")
@click.option("--replication", default=1, metavar="N", help="Copies of each partition; 3 in production.")
def create(
    *,
    bootstrap_servers: str,
    client_config: Path | None,
    frames_topic: str,
    verdicts_topic: str,
    dead_topic: str,
    as_json: bool,
    partitions: int,
    replication: int,
) -> None:
    """Make the topics that are missing, the one of the frames with a size limit that lets large images pass.

    A partition holds whole stations, so that each station's frames keep their order; adding partitions to a live topic
    moves stations and breaks that. The number also bounds how many consumers can share the work. Running it again
    changes nothing; a topic that does not fit is an error, never altered.
    """
    from consumer.config import read_client_config  # noqa: PLC0415 - `--help` must not wait for it
    from consumer.topics import ensure_topics  # noqa: PLC0415 - the same

    made = ensure_topics(
        bootstrap_servers,
        partitions=partitions,
        replication=replication,
        frames=frames_topic,
        verdicts=verdicts_topic,
        dead=dead_topic,
        client={} if client_config is None else read_client_config(client_config),
    )
    names = (frames_topic, verdicts_topic, dead_topic)
    if as_json:
        print_json({"created": list(made), "there_before": [name for name in names if name not in made]})
        return
    for name in names:
        click.echo(f"{name}: {'created' if name in made else 'was there'}")


@topics.command("check", context_settings=VERB)
@_named
def check(
    *,
    bootstrap_servers: str,
    client_config: Path | None,
    frames_topic: str,
    verdicts_topic: str,
    dead_topic: str,
    as_json: bool,
) -> None:
    """See that the broker answers and the topics are there; ends with 1 where not."""
    from consumer.config import read_client_config  # noqa: PLC0415 - `--help` must not wait for it
    from consumer.topics import check_topics  # noqa: PLC0415 - the same

    names = (frames_topic, verdicts_topic, dead_topic)
    client = {} if client_config is None else read_client_config(client_config)
    state = check_topics(bootstrap_servers, names, client=client)
    if as_json:
        found = {
            name: {"id": topic.topic_id, "partitions": topic.partitions, "replication": topic.replication}
            for name, topic in state.topics.items()
        }
        print_json({"cluster": state.cluster_id, "brokers": state.brokers, "topics": found})
        return
    click.echo(f"cluster {state.cluster_id}, {state.brokers} brokers")
    for topic in state.topics.values():
        click.echo(f"{topic.name}: {topic.partitions} partitions, replication {topic.replication}")
