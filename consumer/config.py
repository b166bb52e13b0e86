"""The consumer's settings: one frozen value, checked once. Where they come from is `cli.py`'s business."""

from __future__ import annotations

import os
import re
import secrets
import socket
import tomllib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from consumer.budget import Limits
from consumer.errors import SettingsError
from consumer.pipeline import Pace
from engine.batcher import BatchPolicy
from engine.locations import shown
from engine.specs import BatchProfile
from engine.streams import cores, sharing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from engine.tensorrt_options import TensorRTOptions

MIB = 1024 * 1024
LARGEST_PORT = 65_535

EMBEDDED_SESSION_S = 6.0
"""On the embedded broker a group forms in half of this."""

EMBEDDED_FETCH_WAIT_S = 0.01
"""The embedded broker does not answer when a frame comes but when it looks again: asked to wait 500 ms at most it takes
129 ms, 100 ms 26, 20 ms 7, 10 ms 5, medians of 4 partitions."""

SESSION_S = 10.0
"""How long a dead member keeps its partitions on Apache Kafka; its own default of 45 s leaves a line waiting."""

SESSION_RANGE_S = (1.0, 300.0)

CLIENT_KEYS = frozenset(
    {
        "security_protocol",
        "ssl_check_hostname",
        "ssl_cafile",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_password",
        "ssl_crlfile",
        "ssl_ciphers",
        "sasl_mechanism",
        "sasl_plain_username",
        "sasl_plain_password",
        "sasl_kerberos_name",
        "sasl_kerberos_service_name",
        "sasl_kerberos_domain_name",
        "proxy_url",
        "client_dns_lookup",
    }
)
"""What a client file may hold: how to reach and to trust. How the consumer works is not the client's to say."""

OTHER_NAMES = {
    "ssl_ca_location": "ssl_cafile",
    "ssl_certificate_location": "ssl_certfile",
    "ssl_key_location": "ssl_keyfile",
    "ssl_key_password": "ssl_password",
    "sasl_mechanisms": "sasl_mechanism",
    "sasl_username": "sasl_plain_username",
    "sasl_password": "sasl_plain_password",
}
"""As other clients call them."""

SECRETS = frozenset({"ssl_password", "sasl_plain_password"})
"""May also be given as `NAME_file`: a file that holds nothing else, as orchestrators mount them."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

_YES_OR_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything `framegate run` can be told.

    Attributes:
        bundle: folder, zip or URL of the model bundle; with `routing`, for the stations that no route matches.
        routing: TOML file that says which bundle judges which station; None: `bundle` judges all.
        shadow: folder, zip or URL of a bundle whose decisions are compared and not published.
        bundle_cache: folder for bundles that are fetched from URLs; None: URLs are refused.
        watch_s: how often to look whether a bundle or the routing file has changed; 0: only on SIGHUP.
        bootstrap_servers: host:port, comma-separated.
        group: the consumer group; its committed positions say where to go on.
        frames_topic, verdicts_topic, dead_topic: names of the topics.
        batch_size: frames in the largest batch; None: as many as are worth it by what the engine's batches cost,
            measured at the start.
        batch_age_ms: how long the oldest decoded frame waits for company where the engine is idle; None: not at all.
        station_cap: frames of one station in a batch while others wait; None: half the batch.
        decode_threads: threads that decode; None: the cores, at most 8.
        max_in_flight: frames between fetching and the broker's answer.
        max_in_flight_mib: MiB of encoded and decoded images among them.
        http_host, http_port: where metrics and health are served; port 0 takes a free one, None serves none.
        drain_s: how long a stop may take to answer what is in hand.
        delivery: `exactly-once`: verdicts and positions in one transaction. `at-least-once`: positions after the
            verdicts' acknowledgement. None: the first on Apache Kafka, the second on the embedded broker.
        instance: what tells this consumer from the others of its group; None: host and process.
        session_timeout_s: how long a dead consumer keeps its partitions; None: 6 on the embedded broker, else 10.
        client: the Kafka client's TLS and SASL settings; hidden from logs.
        backend: what computes.
        tensorrt: settings for TensorRT, where it computes.
        log_format: `text` or `json`.
        idle_exit_s: end when no frame came for that long; None: never.
        deadline_s: how old a frame may be when it is judged; an older one is answered `none`, `late`. None: any age.
        workers: whole consumers in processes of their own, each with batches, threads and limits as above; None: as
            many as suit the machine.
        engine_process: `shared`: one engine for all workers, in a process of its own; `own`: one in each worker. None:
            shared where a GPU computes.
        engine_address: of the shared engine; for workers, by whoever starts them.
    """

    bundle: str | None = None
    routing: Path | None = None
    shadow: str | None = None
    bundle_cache: Path | None = None
    watch_s: float = 5.0
    bootstrap_servers: str = "localhost:9092"
    group: str = "framegate"
    frames_topic: str = "frames"
    verdicts_topic: str = "verdicts"
    dead_topic: str = "frames.dead"
    batch_size: int | None = None
    batch_age_ms: float | None = None
    station_cap: int | None = None
    decode_threads: int | None = None
    max_in_flight: int = 256
    max_in_flight_mib: float = 256.0
    http_host: str = "127.0.0.1"
    http_port: int | None = 9108
    drain_s: float = 20.0
    delivery: Literal["exactly-once", "at-least-once"] | None = None
    instance: str | None = None
    session_timeout_s: float | None = None
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)
    backend: str = "auto"
    tensorrt: TensorRTOptions | None = None
    log_format: Literal["text", "json"] = "text"
    idle_exit_s: float | None = None
    deadline_s: float | None = None
    workers: int | None = None
    engine_process: Literal["shared", "own"] | None = None
    engine_address: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is opened."""
        _require_names(self)
        if self.instance is not None and not self.instance.strip():
            msg = "--instance is empty: expected a name that no other consumer of the group has"
            raise SettingsError(msg)
        _at_least("--batch-size", self.batch_size, 1)
        _at_least("--batch-age-ms", self.batch_age_ms, 0)
        _at_least("--station-cap", self.station_cap, 1)
        _at_least("--decode-threads", self.decode_threads, 1)
        why = "--batch-size, or no batch is ever full"
        _at_least("--max-in-flight", self.max_in_flight, self.batch_size or 1, why if self.batch_size else "")
        _at_least("--max-in-flight-mib", self.max_in_flight_mib, 1)
        _at_least("--drain-s", self.drain_s, 0)
        _at_least("--workers", self.workers, 1)
        _at_least("--idle-exit-s", self.idle_exit_s, 0)
        _at_least("--watch-s", self.watch_s, 0, "0 looks only on SIGHUP")
        if self.deadline_s is not None and not self.deadline_s > 0:
            msg = f"--deadline-s {self.deadline_s:g} is no deadline: expected more than 0 seconds"
            raise SettingsError(msg)
        low_s, high_s = SESSION_RANGE_S
        if self.session_timeout_s is not None and not low_s <= self.session_timeout_s <= high_s:
            msg = f"--session-timeout-s {self.session_timeout_s:g} is out of range: expected {low_s:g} to {high_s:g}"
            raise SettingsError(msg)
        if self.http_port is not None and not 0 <= self.http_port <= LARGEST_PORT:
            msg = f"--http-port {self.http_port} is no port: expected 0 to {LARGEST_PORT}"
            raise SettingsError(msg)

    def __repr__(self) -> str:
        """As a dataclass has it, without what a bundle's URL may hold of a secret."""
        told = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.repr}
        told |= {name: shown(told[name]) for name in ("bundle", "shadow") if told[name] is not None}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in told.items())})"

    @property
    def topics(self) -> tuple[str, str]:
        """The topics without which nothing works; dead letters may be without theirs."""
        return self.frames_topic, self.verdicts_topic

    def require_batch(self, largest: int, backend: str) -> None:
        """Raises SettingsError where the batches asked for are larger than the backend takes."""
        if self.batch_size is not None and self.batch_size > largest:
            msg = f"--batch-size {self.batch_size} is too large for backend {backend}: expected at most {largest}"
            raise SettingsError(msg)

    def delivers(self, *, embedded: bool) -> Literal["exactly-once", "at-least-once"]:
        """How verdicts are delivered.

        Raises:
            SettingsError: exactly once was asked for on the embedded broker, which would break the promise silently.
        """
        if self.delivery == "exactly-once" and embedded:
            msg = (
                "--delivery exactly-once cannot be kept on the embedded broker, which shows aborted verdicts: expected "
                "Apache Kafka; run with --delivery at-least-once here"
            )
            raise SettingsError(msg)
        return self.delivery or ("at-least-once" if embedded else "exactly-once")

    def own_instance(self) -> str:
        """Ours alone: the instance that is named, or a new one for each call where none is."""
        return self.instance or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    def transactional_id(self) -> str:
        """Ours alone: of the instance, the same after a restart, or a new one for each call where none is named."""
        return f"framegate-{self.group}-{self.own_instance()}"

    def session_s(self, *, embedded: bool) -> float:
        """The session timeout to ask for."""
        if self.session_timeout_s is not None:
            return self.session_timeout_s
        return EMBEDDED_SESSION_S if embedded else SESSION_S

    def most_batch(self) -> int:
        """Frames in the largest batch that can be full while another one is in the engine."""
        return max(1, self.max_in_flight // 2)

    def policy(self, largest: int) -> BatchPolicy:
        """When a batch is taken, as told here, else by what the engine's batches cost: see `engine.batch_cost`.

        Args:
            largest: frames in the largest batch that is worth it to the engine.
        """
        size = self.batch_size if self.batch_size is not None else largest
        cap = self.station_cap if self.station_cap is not None else max(1, size // 2)
        return BatchPolicy(size, (self.batch_age_ms or 0.0) / 1000, cap)

    def pace(self, largest: int = BatchProfile().best) -> Pace:
        """How the loop works, with an engine to which batches of up to `largest` are worth it."""
        return Pace(
            policy=self.policy(largest),
            limits=Limits(self.max_in_flight, int(self.max_in_flight_mib * MIB)),
            decode_threads=self.decode_threads or _decode_threads(),
            drain_s=self.drain_s,
            idle_exit_s=self.idle_exit_s,
            deadline_s=self.deadline_s,
        )


def _decode_threads() -> int:
    """One per core; beside other workers at least two, since one that waits for the interpreter leaves a core idle."""
    return min(8, max(2, cores()) if sharing() else cores())


def read_client_config(path: Path, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The Kafka client's security settings from a file: TOML (`*.toml`) or `name=value` lines.

    Names may be written with dots or underscores and as other clients call them (`sasl.username`). Lines that begin
    with `#` are comments. A value may be `${NAME}`: that of an environment variable. A password may lie in a file of
    its own, whose path stands at `sasl.password.file` or `ssl.key.password.file`.

    Raises:
        SettingsError: a file cannot be read, or holds something else. Never names a value: it may be a secret.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        msg = f"client config {path} cannot be read: {reason}; expected a text file of name=value lines, or TOML"
        raise SettingsError(msg) from error
    given = _read_toml(path, text) if path.suffix == ".toml" else _read_lines(path, text)
    settings: dict[str, Any] = {}
    for name, value in given.items():
        plain = name.strip().replace(".", "_").replace("-", "_")
        own_file = plain.endswith("_file")
        plain = plain.removesuffix("_file")
        key = OTHER_NAMES.get(plain, plain)
        if key not in CLIENT_KEYS or (own_file and key not in SECRETS):
            known = ", ".join(sorted(CLIENT_KEYS))
            msg = f"client config {path} has an unknown setting {name!r}: expected some of {known}"
            raise SettingsError(msg)
        meant = _from_environment(path, key, value, environment) if isinstance(value, str) else value
        if own_file:
            meant = _from_file(path, key, str(meant))
        settings[key] = _truth(path, key, meant) if key == "ssl_check_hostname" else str(meant)
    return settings


def _from_environment(path: Path, key: str, value: str, environment: Mapping[str, str]) -> str:
    """The variable that a value names, where it is nothing but `${NAME}`."""
    named = _VARIABLE.fullmatch(value)
    if named is None:
        return value
    if named[1] not in environment:
        msg = f"client config {path}: {key} is to come from the variable {named[1]}, which is not set: set it"
        raise SettingsError(msg)
    return environment[named[1]]


def _from_file(path: Path, key: str, name: str) -> str:
    """A secret from a file of its own, beside the config file unless absolute; a line's end behind it is none of it."""
    try:
        return (path.parent / name).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        msg = f"client config {path}: the file for {key} cannot be read: {reason}; expected one with the password alone"
        raise SettingsError(msg) from error


def _read_toml(path: Path, text: str) -> dict[str, Any]:
    """Top-level settings of a TOML file."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # The parser's own message quotes the line, which may hold a password.
        msg = f'client config {path} is not TOML: expected lines such as sasl_mechanism = "PLAIN"'
        raise SettingsError(msg) from error


def _read_lines(path: Path, text: str) -> dict[str, str]:
    """Lines of `name=value`; the value may hold further equals signs."""
    settings = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, separator, value = stripped.partition("=")
        if not separator:
            msg = f"client config {path}, line {number}, is no setting: expected name=value"
            raise SettingsError(msg)
        settings[name] = value.strip()
    return settings


def _truth(path: Path, key: str, value: object) -> bool:
    """A yes or a no."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in _YES_OR_NO:
        msg = f"client config {path}: {key} is neither true nor false"
        raise SettingsError(msg)
    return _YES_OR_NO[word]


def _require_names(settings: Settings) -> None:
    """Names that are there, and topics that are three."""
    if settings.bundle is None and settings.routing is None:
        msg = "no bundle to judge by: expected --bundle, or --routing with a file that names some, or both"
        raise SettingsError(msg)
    for option, value in (
        ("--bundle", "none" if settings.bundle is None else settings.bundle),
        ("--shadow", "none" if settings.shadow is None else settings.shadow),
        ("--bootstrap-servers", settings.bootstrap_servers),
        ("--group", settings.group),
        ("--frames-topic", settings.frames_topic),
        ("--verdicts-topic", settings.verdicts_topic),
        ("--dead-topic", settings.dead_topic),
    ):
        if not value.strip():
            msg = f"{option} is empty: expected a name"
            raise SettingsError(msg)
    names = (settings.frames_topic, settings.verdicts_topic, settings.dead_topic)
    if len(set(names)) < len(names):
        msg = f"frames, verdicts and dead letters need topics of their own: got {', '.join(names)}"
        raise SettingsError(msg)


def _at_least(option: str, value: float | None, least: float, why: str = "") -> None:
    """Refuse a number below its least; NaN is below everything."""
    if value is not None and not value >= least:
        msg = f"{option} {value:g} is too small: expected {least:g} or more{f' ({why})' if why else ''}"
        raise SettingsError(msg)
