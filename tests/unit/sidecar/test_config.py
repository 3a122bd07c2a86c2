"""The daemon's settings: precedence, and errors that say what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidestep.sidecar.config import ConfigurationError, load, wanted_by


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIDESTEP_ENDPOINT", "SIDESTEP_STATE_DIR", "SIDESTEP_CONFIG", "SIDESTEP_IDLE_S"):
        monkeypatch.delenv(name, raising=False)


def _file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def test_argument_before_environment_before_file_before_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path, "sidecar: {idle_s: 5, history_mb: 1}\nlogging: {log_dir: x}\n")
    assert load(None, {}).idle_s == 3.0
    assert load(path, {}).idle_s == 5.0
    assert load(None, {"SIDESTEP_CONFIG": path}).history_mb == 1
    monkeypatch.setenv("SIDESTEP_IDLE_S", "7")
    assert load(path, {"SIDESTEP_IDLE_S": "7"}).idle_s == 7.0
    assert load(path, {"SIDESTEP_IDLE_S": "7"}, idle_s=9).idle_s == 9.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sidecar: {idel_s: 5}", "did you mean 'idle_s'"),
        ("sidcar: {}", "did you mean 'sidecar'"),
        ("sidecar: {idle_s: -1}", "sidecar.idle_s"),
        ("sidecar: {journal_sync: maybe}", "journal_sync"),
        ("sidecar: [1]", "must be a mapping"),
        ("- 1", "expected the blocks"),
        ("sidecar: {endpoint: 'tcp://0.0.0.0:1'}", "loopback only"),
        ("sidecar: {endpoint: 'http://x'}", "must begin with"),
        ("sidecar: {forward_to: '10.0.0.1:5790'}", "must be the address of a daemon"),
        ("sidecar: {forward_to: 'tcp://*:*'}", "must be the address of a daemon"),
        ("sidecar: {forward_to: 'tcp://10.0.0.1:5790'}", "forward_keys"),
        ("sidecar: {endpoint: 'ipc:///a', forward_to: 'ipc:///a'}", "its|this daemon's own"),
        ("sidecar: {otlp_endpoint: 'http://[::1'}", "no URL of an OTLP/HTTP receiver"),
        ("sidecar: {otlp_endpoint: 'http://h:99999'}", "no URL of an OTLP/HTTP receiver"),
        ("sidecar: {otlp_interval_s: .inf}", "sidecar.otlp_interval_s"),
        ("a: [", "cannot read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says.replace("[", r"\[")):
        load(_file(tmp_path, text), {})


@pytest.mark.parametrize(
    "name", ["forward_to", "mirror", "otlp_endpoint", "prometheus", "webhook_url", "keys", "idle_s"]
)
def test_what_is_set_to_nothing_is_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    default = load(None, {})
    assert load(_file(tmp_path, f"sidecar: {{{name}: ''}}"), {}) == default
    monkeypatch.setenv(f"SIDESTEP_{name.upper()}", "")
    assert load(None, os.environ) == default


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml"):
        load("/nowhere.yaml", {})


def test_loopback_endpoints_are_taken() -> None:
    assert load(None, {}, endpoint="tcp://127.0.0.1:5790").endpoint == "tcp://127.0.0.1:5790"
    assert load(None, {}, endpoint="ipc:///tmp/x").endpoint == "ipc:///tmp/x"


def test_the_alarms_thresholds_are_a_block(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("sidecar: {alarms: {min_images: 4, complete_clear: 0.5}}")
    rules = load(str(file), {}).alarms
    assert (rules.min_images, rules.complete_clear, rules.token_warn) == (4, 0.5, 0.98)
    assert load(None, {}).alarms.enabled


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("{min_image: 4}", "sidecar.alarms: unknown key 'min_image'; did you mean 'min_images'"),
        ("{min_images: many}", r"sidecar\.alarms.*integer"),
        ("{complete_warn: 0.5}", "complete_critical <= complete_warn <= complete_clear"),
        ("[1]", r"sidecar\.alarms"),
    ],
)
def test_a_threshold_that_is_wrong_is_named(tmp_path: Path, block: str, says: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"sidecar: {{alarms: {block}}}")
    with pytest.raises(ConfigurationError, match=says):
        load(str(file), {})


def test_thresholds_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTEP_ALARMS", '{"enabled": false}')
    assert not load(None, {}).alarms.enabled


@pytest.mark.parametrize(
    "url", ["hooks.slack.com/s3cr3t", "ftp://h/s3cr3t", "https://h/a s3cr3t", "https:///s3cr3t"]
)
def test_a_webhook_that_is_none_is_said_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="expected https://HOST/PATH") as raised:
        load(None, {}, webhook_url=url)
    assert "s3cr3t" not in str(raised.value)


def test_a_webhook_is_shown_nowhere() -> None:
    settings = load(None, {}, webhook_url="https://hooks.slack.com/services/s3cr3t")
    assert "s3cr3t" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    assert "s3cr3t" not in repr(wanted_by(settings))
    with pytest.raises(ConfigurationError) as raised:
        load(None, {}, webhook_url=["https://hooks.slack.com/services/s3cr3t"])
    assert "s3cr3t" not in str(raised.value)
