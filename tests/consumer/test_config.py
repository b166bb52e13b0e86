"""The consumer's settings: where they come from, what is refused, what is never shown."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import consumer.app
import framegate
from consumer.config import MIB, Settings, read_client_config
from consumer.errors import SettingsError
from engine.batcher import BatchPolicy
from engine.bundle import write_bundle
from engine.plan_cache import default_folder
from engine.tensorrt_options import TensorRTOptions
from tests.bundles import small_bundle

if TYPE_CHECKING:
    from pathlib import Path

    import click


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What `framegate run` would have run with; the consumer itself needs a broker."""
    seen: list[Settings] = []
    monkeypatch.setattr(consumer.app, "run_consumer", seen.append)
    monkeypatch.setattr(consumer.app, "log_to_stderr", lambda _format: None)
    return seen


def invoke(*arguments: str, env: dict[str, str] | None = None) -> click.testing.Result:
    """Run the command in this process."""
    return CliRunner().invoke(framegate.cli, arguments, env=env)


def test_flags_come_before_the_environment_and_that_before_the_file(started: list[Settings], tmp_path: Path) -> None:
    file = tmp_path / "line.toml"
    file.write_text('bootstrap-servers = "file:1"\n[run]\nbundle = "from-file"\ngroup = "file"\nbatch-size = 16\n')
    env = {"FRAMEGATE_GROUP": "environment", "FRAMEGATE_BATCH_SIZE": "12"}
    result = invoke("--config", str(file), "run", "--batch-size", "4", env=env)
    assert result.exit_code == 0, result.output
    (settings,) = started
    assert (settings.bundle, settings.bootstrap_servers) == ("from-file", "file:1")
    assert (settings.group, settings.batch_size) == ("environment", 4)


def test_the_commands_defaults_are_the_settings_own(started: list[Settings]) -> None:
    assert invoke("run", "--bundle", "b").exit_code == 0
    (settings,) = started
    plans = default_folder(os.environ)
    fetched = plans.with_name("bundles")
    assert settings == Settings(bundle="b", tensorrt=TensorRTOptions(plans=plans), bundle_cache=fetched)


def test_one_bundle_routes_or_both_have_to_be_named(started: list[Settings], tmp_path: Path) -> None:
    assert invoke("run", "--routing", str(tmp_path / "routes.toml"), "--shadow", "s", "--watch-s", "0").exit_code == 0
    assert (started[0].bundle, started[0].routing, started[0].shadow) == (None, tmp_path / "routes.toml", "s")
    assert started[0].watch_s == 0
    with pytest.raises(SettingsError, match="no bundle to judge by: expected --bundle, or --routing"):
        Settings()
    with pytest.raises(SettingsError, match="--watch-s -1 is too small: expected 0 or more"):
        Settings("b", watch_s=-1)
    with pytest.raises(SettingsError, match="--shadow is empty"):
        Settings("b", shadow=" ")


def test_help_shows_every_option_with_its_unit_and_examples() -> None:
    text = invoke("run", "--help").output
    for word in (
        "--batch-age-ms",
        "MS",
        "--drain-s",
        "--max-in-flight-mib",
        "MIB",
        "Examples:",
        "framegate run --bundle",
    ):
        assert word in text
    for verb in ("broker", "topics"):
        assert "Example" in invoke(verb, "--help").output


def test_metrics_are_for_this_machine_alone_unless_told_otherwise(started: list[Settings]) -> None:
    assert invoke("run", "--bundle", "b").exit_code == 0
    assert invoke("run", "--bundle", "b", "--http-host", "0.0.0.0").exit_code == 0  # noqa: S104 - only parsed
    assert [settings.http_host for settings in started] == ["127.0.0.1", "0.0.0.0"]  # noqa: S104 - the same


def test_a_port_of_minus_one_serves_none(started: list[Settings]) -> None:
    assert invoke("run", "--bundle", "b", "--http-port", "-1").exit_code == 0
    assert started[0].http_port is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "--batch-size 0 is too small: expected 1 or more"),
        ({"batch_age_ms": -1.0}, "--batch-age-ms -1"),
        ({"batch_age_ms": float("nan")}, "--batch-age-ms nan"),
        ({"station_cap": 0}, "--station-cap 0"),
        ({"decode_threads": 0}, "--decode-threads 0"),
        ({"max_in_flight": 4, "batch_size": 8}, "--max-in-flight 4 is too small: expected 8 or more"),
        ({"max_in_flight_mib": 0.5}, "--max-in-flight-mib 0.5"),
        ({"drain_s": -1.0}, "--drain-s -1"),
        ({"idle_exit_s": -1.0}, "--idle-exit-s -1"),
        ({"session_timeout_s": 0.5}, "--session-timeout-s 0.5 is out of range: expected 1 to 300"),
        ({"http_port": 70_000}, "--http-port 70000"),
        ({"group": " "}, "--group is empty"),
        ({"verdicts_topic": "frames"}, "need topics of their own: got frames, frames, frames.dead"),
    ],
)
def test_what_cannot_work_is_refused_with_its_name_and_the_cure(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings(**{"bundle": "b", **change})
    assert words in str(refused.value)
    assert "expected" in str(refused.value) or "need" in str(refused.value)


def test_the_pace_follows_the_settings() -> None:
    pace = Settings(bundle="b", batch_size=6, batch_age_ms=7.5, max_in_flight_mib=1.5, decode_threads=3).pace()
    assert (pace.policy.max_size, pace.policy.max_age_s, pace.policy.station_cap) == (6, 0.0075, 3)
    assert pace.limits.max_bytes == 3 * MIB // 2
    assert pace.decode_threads == 3
    assert Settings(bundle="b", batch_size=1).pace().policy.station_cap == 1


def test_without_a_word_about_batches_the_policy_is_what_the_engine_was_measured_to_be_worth() -> None:
    settings = Settings(bundle="b")
    assert settings.pace(32).policy == settings.policy(32) == BatchPolicy(32, 0.0, 16)
    assert settings.policy(1) == BatchPolicy(1, 0.0, 1)
    told = Settings(bundle="b", batch_size=6, batch_age_ms=2.0, station_cap=5)
    assert told.policy(32) == BatchPolicy(6, 0.002, 5)
    assert Settings(bundle="b", station_cap=5).policy(32) == BatchPolicy(32, 0.0, 5)


def test_no_batch_is_wanted_that_would_leave_none_in_flight_beside_it() -> None:
    assert Settings(bundle="b", max_in_flight=20).most_batch() == 10
    assert Settings(bundle="b", max_in_flight=1).most_batch() == 1


def test_the_embedded_broker_gets_a_shorter_session() -> None:
    settings = Settings(bundle="b")
    assert (settings.session_s(embedded=True), settings.session_s(embedded=False)) == (6.0, 10.0)
    assert Settings(bundle="b", session_timeout_s=45.0).session_s(embedded=True) == 45.0


PROPERTIES = """\
# the plant's Kafka
security.protocol=SASL_SSL
sasl.mechanism = SCRAM-SHA-256
sasl.username=line-1
sasl.password=geheim=mit=gleich
ssl.ca.location=/etc/kafka/ca.pem
ssl.check.hostname=false
"""

TOML = """\
security_protocol = "SASL_SSL"
sasl-mechanism = "SCRAM-SHA-256"
sasl_plain_username = "line-1"
sasl_plain_password = "geheim=mit=gleich"
ssl_cafile = "/etc/kafka/ca.pem"
ssl_check_hostname = false
"""


@pytest.mark.parametrize(("name", "text"), [("kafka.properties", PROPERTIES), ("kafka.toml", TOML)])
def test_a_client_file_may_be_lines_or_toml(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert read_client_config(file) == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "line-1",
        "sasl_plain_password": "geheim=mit=gleich",
        "ssl_cafile": "/etc/kafka/ca.pem",
        "ssl_check_hostname": False,
    }


def test_a_value_may_come_from_a_variable_and_a_password_from_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("geheim ${NO}\n")
    file = tmp_path / "kafka.properties"
    file.write_text(
        "sasl.username=${LINE_USER}\nsasl.password.file=password\nssl.key.password.file=${FOLDER}\n"
        "ssl.ca.location=/etc/${LINE_USER}\n"
    )
    assert read_client_config(file, {"LINE_USER": "line-1", "FOLDER": str(tmp_path / "password")}) == {
        "sasl_plain_username": "line-1",
        "sasl_plain_password": "geheim ${NO}",
        "ssl_password": "geheim ${NO}",
        "ssl_cafile": "/etc/${LINE_USER}",  # only a whole value is a variable's
    }


def test_secrets_do_not_show() -> None:
    settings = Settings(bundle="b", client={"sasl_plain_password": "geheim"})
    assert "geheim" not in repr(settings)
    assert "geheim" not in str(settings)
    settings = Settings(bundle="https://me:geheim@store/b.zip?sig=geheim", shadow="s3://b?x=geheim", group="line-1")
    assert "geheim" not in repr(settings)
    assert "bundle='https://store/b.zip?…'" in repr(settings)
    assert "group='line-1'" in repr(settings)
    assert "client" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.properties", "group.id=other\n", "unknown setting 'group.id': expected some of client_dns_lookup"),
        ("c.properties", "geheim\n", "line 1, is no setting: expected name=value"),
        ("c.properties", "ssl.check.hostname=geheim\n", "ssl_check_hostname is neither true nor false"),
        ("c.toml", 'sasl_plain_password = "geheim\n', "is not TOML"),
        ("c.properties", "sasl.password=${NOT_SET_ANYWHERE}\n", "from the variable NOT_SET_ANYWHERE, which is not set"),
        ("c.properties", "sasl.password.file=geheim\n", "the file for sasl_plain_password cannot be read: No such"),
        ("c.properties", "sasl.username.file=x\n", "unknown setting 'sasl.username.file'"),
    ],
)
def test_a_wrong_client_file_is_refused_without_showing_values(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(SettingsError) as refused:
        read_client_config(file)
    assert words in str(refused.value)
    assert "geheim" not in str(refused.value)


def test_a_client_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing\.properties cannot be read: No such file"):
        read_client_config(tmp_path / "nothing.properties")


def test_a_wrong_setting_ends_with_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(consumer.app, "run_consumer", lambda _settings: None)
    with pytest.raises(SystemExit) as ended:
        framegate.main(["run", "--bundle", "b", "--batch-size", "0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "framegate: error: --batch-size 0 is too small: expected 1 or more\n"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_bundles_server_that_is_away_at_the_start_is_one_line(tmp_path: Path, workers: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/parts.zip?sig=s3cret"
        command = [sys.executable, "-m", "framegate", "run", "--bootstrap-servers", "127.0.0.1:9"]
        done = subprocess.run(
            [*command, "--bundle", url, "--workers", workers, "--bundle-cache", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert f"bundle {url.partition('?')[0]}?… cannot be fetched: ConnectionError" in line
    assert "see that the server runs" in line
    assert "s3cret" not in done.stderr


def test_a_batch_larger_than_the_backend_is_prepared_for_is_refused_before_the_broker_is_asked(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", small_bundle())
    settings = Settings(bundle=str(tmp_path / "bundle"), backend="onnxruntime", batch_size=65, max_in_flight=500)
    with pytest.raises(SettingsError, match=r"--batch-size 65 is too large .* expected at most 64"):
        consumer.app.run_consumer(settings)
