"""Prometheus' own server scrapes a real daemon; every query of deploy/ finds something there."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from sidestep import client
from tests.support.fake_nvml import FakeNvml
from tests.support.prometheus import Prometheus, get, promtool, tool
from tests.support.sandbox import ROOT, Sandbox
from tests.support.waiting import wait_until

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "sidestep.rules.yml"
RULES_TEST = DEPLOY / "prometheus" / "sidestep.rules.test.yml"
DASHBOARD = DEPLOY / "grafana" / "sidestep.json"
UUID = "GPU-00000000-0000-0000-0000-000000000000"
LAST_STEP = 60
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@dataclass(frozen=True)
class Observed:
    """A training that goes on, its daemon, and the Prometheus that watches both."""

    sandbox: Sandbox
    prometheus: Prometheus
    metrics: str
    made: client.Client


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    tool("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    driver = FakeNvml.build(folder / "nvml")
    driver.set("gpus 1", f"gpu0.uuid {UUID}", "gpu0.power_mw 250000", "gpu0.utilization 87")
    with Sandbox() as sandbox, pytest.MonkeyPatch.context() as patch:
        for name, value in sandbox.variables().items():
            patch.setenv(name, value)
        variables = {**driver.env(), **sandbox.variables(), "SIDESTEP_PROMETHEUS": "127.0.0.1:0"}
        sandbox.serve(**variables, SIDESTEP_SAMPLE_INTERVAL_S="0.2")
        url = metrics_url(sandbox)
        made = client.connect(run="demo", autostart=False)
        for step in range(1, LAST_STEP + 1):
            made.emit({"train/loss": 1 / step, "train/odd": math.nan}, step=step)
        for step in (LAST_STEP - 2, LAST_STEP - 1, LAST_STEP):
            made.emit({"encoder": client.Representation(torch.randn(64, 16))}, step=step)
        assert made.flush(20)
        target = url.removeprefix("http://").removesuffix("/metrics")
        with Prometheus(folder, target, RULES) as prometheus:
            prometheus.await_query('sidestep_scalar{tag="encoder_rank"}')
            prometheus.await_query("sidestep_gpu_utilization_ratio")
            # Two scrapes of all of it, for what speaks of a change.
            prometheus.await_query('count_over_time(sidestep_scalar{tag="encoder_rank"}[1m]) > 2')
            yield Observed(sandbox, prometheus, url, made)
        made.finish(10)


def metrics_url(sandbox: Sandbox) -> str:
    """Where the sandbox's daemon serves its metrics."""
    found = wait_until(
        lambda: sandbox.status()["daemon"]["prometheus"]["url"], 20, "no metrics are served"
    )
    return str(found)


def resolved(expression: str) -> str:
    """A query of the dashboard as Grafana would ask it, with everything selected."""
    expression = expression.replace("$__rate_interval", "10s").replace("$loss_tags", ".*loss.*")
    return re.sub(r"\$(run|instance)\b", ".*", expression)


def queries() -> list[tuple[str, str]]:
    """Title and query of everything on the dashboard; and each query's legend."""
    document = json.loads(DASHBOARD.read_text())
    return [
        (target["expr"], target.get("legendFormat", ""))
        for panel in document["panels"]
        for target in panel.get("targets", ())
    ]


def rules() -> list[dict[str, Any]]:
    found = yaml.safe_load(RULES.read_text())
    return [rule for group in found["groups"] for rule in group["rules"]]


def test_prometheus_has_the_values_that_were_emitted(observed: Observed) -> None:
    ask = observed.prometheus.query

    def only(expression: str) -> float:
        ((labels, value),) = ask(expression)
        assert labels["job"] == "sidestep"
        return value

    assert only('sidestep_scalar{run="demo", tag="train/loss"}') == 1 / LAST_STEP
    assert math.isnan(only('sidestep_scalar{run="demo", tag="train/odd"}'))
    assert only('sidestep_step{run="demo"}') == LAST_STEP
    assert only('sidestep_records_durable_total{run="demo"}') == LAST_STEP + 3
    assert only('sidestep_run_state{run="demo", state="running"}') == 1
    assert only('sidestep_run_state{run="demo", state="lost"}') == 0
    assert only('sidestep_alarm_level{run="demo", tag="encoder"}') == 0
    assert abs(only("sidestep_last_record_timestamp_seconds") - time.time()) < 120
    assert only(f'sidestep_gpu_utilization_ratio{{gpu="0", uuid="{UUID}"}}') == 0.87
    assert only("sidestep_gpu_power_watts") == 250
    assert only('sidestep_sink_state{sink="tensorboard", state="ok"}') == 1
    assert only('sidestep_refused_total{what="records"}') == 0
    assert only("sidestep_daemon_responding") == 1
    (build,) = ask("sidestep_build_info")
    assert build[0]["version"] == observed.sandbox.status()["daemon"]["version"]
    started = only("sidestep_daemon_start_time_seconds")
    uptime_s = observed.sandbox.status()["daemon"]["uptime_s"]
    assert abs(time.time() - started - uptime_s) < 30


def test_every_query_of_the_dashboard_finds_something(observed: Observed) -> None:
    asked = queries()
    assert len(asked) > 20
    for expression, legend in asked:
        found = observed.prometheus.await_query(resolved(expression), 10)
        for name in re.findall(r"{{(\w+)}}", legend):
            assert all(name in labels for labels, _ in found), (expression, name)


def test_the_dashboards_variables_and_annotations_find_something(observed: Observed) -> None:
    document = json.loads(DASHBOARD.read_text())
    wanted = {"instance", "run"}
    for variable in document["templating"]["list"]:
        if variable["name"] not in wanted:
            continue
        selector, label = re.fullmatch(
            r"label_values\((.*), (\w+)\)", variable["query"]["query"]
        ).groups()  # type: ignore[union-attr]
        found = observed.prometheus.query(resolved(selector))
        assert found, selector
        assert all(label in labels for labels, _ in found)
        wanted.remove(variable["name"])
    assert not wanted
    for one in document["annotations"]["list"]:
        assert observed.prometheus.query(resolved(one["expr"]).split(">=")[0])


def test_everything_that_a_rule_asks_for_is_there(observed: Observed) -> None:
    for rule in rules():
        selectors = re.findall(r"\b(?:sidestep_\w+|up)\b(?:{[^}]*})?", rule["expr"])
        assert selectors, rule
        for selector in selectors:
            assert observed.prometheus.query(selector), (rule["alert"], selector)
        if rule["alert"] in ("SidestepTrainingStalled", "SidestepGpuIdle"):
            # Both sides of it have labels in common; without the threshold it is true of this run.
            joined = re.sub(r"[<>] [\d.]+\n", "> -1\n", rule["expr"])
            assert observed.prometheus.query(joined), joined


def test_prometheus_evaluates_the_rules_and_nothing_rings(observed: Observed) -> None:
    def evaluated() -> list[dict[str, Any]] | None:
        groups = observed.prometheus.api("rules")["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return found if all(rule["health"] != "unknown" for rule in found) else None

    found = wait_until(evaluated, 20, "the rules are not evaluated")
    assert found is not None
    assert {rule["name"] for rule in found} == {rule["alert"] for rule in rules()}
    assert [rule for rule in found if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in found if rule["state"] == "firing"] == []


def test_the_text_is_as_promtool_wants_it(observed: Observed) -> None:
    status, kind, text = get(observed.metrics)
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    assert promtool("check", "metrics", stdin=text.encode()) == ""


def test_who_asks_for_openmetrics_gets_it(observed: Observed) -> None:
    status, kind, text = get(observed.metrics, Accept=OPENMETRICS)
    assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["sidestep_records_durable"].type == "counter"
    assert families["sidestep_scalar"].type == "gauge"


def test_another_name_of_the_loopback_is_refused(observed: Observed) -> None:
    assert get(observed.metrics, Host="metrics.example.org")[0] == 403
    assert get(observed.metrics.replace("/metrics", "/nothing"))[0] == 404


def test_promtool_checks_the_rules_and_their_tests() -> None:
    said = promtool("check", "rules", str(RULES))
    assert f"SUCCESS: {len(rules())} rules found" in said
    promtool("test", "rules", str(RULES_TEST))


def test_each_alert_has_a_test_in_which_it_rings() -> None:
    cases = yaml.safe_load(RULES_TEST.read_text())["tests"]
    checks = [check for case in cases for check in case["alert_rule_test"]]
    rings = {check["alertname"] for check in checks if check["exp_alerts"]}
    silent = {check["alertname"] for check in checks if not check["exp_alerts"]}
    assert rings == silent == {rule["alert"] for rule in rules()}


def test_the_scrape_snippet_is_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text((DEPLOY / "prometheus" / "scrape.yml").read_text())
    (tmp_path / RULES.name).write_text(RULES.read_text())
    promtool("check", "config", str(tmp_path / "prometheus.yml"))
