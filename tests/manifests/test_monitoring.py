"""Rules and dashboards ask only for what the gateway exports, and alerts fire on what they are for."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serin.core.events import EndpointEvent
from serin.core.policy import default_policy
from serin.serve.guardrails import Guardrails
from serin.serve.metrics import Metrics
from serin.serve.recorder import Observation, StageTiming
from tests.manifests.building import MANIFESTS, Object, mappings, of_kind

FROM_SCRAPING = {"namespace", "job", "instance", "pod", "service", "container", "endpoint"}
"""Labels that Prometheus adds by itself."""
Exported = dict[str, dict[str, set[str]]]
"""Sample name to label to the values seen."""


@pytest.fixture(scope="module")
def exported() -> Exported:
    """What a gateway's /metrics says after a request, read as Prometheus reads it."""
    metrics = Metrics()
    metrics.watch(
        in_flight=lambda: 1, limit=lambda: 8, refused=lambda: {"overloaded": 1}, spooled={"events": lambda: 0}
    )
    event = EndpointEvent(
        trace_id="0" * 32,
        time="2026-01-01T00:00:00.000+00:00",
        session_id="s",
        endpoint="assistant",
        release_id="a" * 64,
        track="champion",
        status=200,
        prompt_tokens=3,
        completion_tokens=2,
        ttft_ms=10.0,
        latency_ms=20.0,
        guardrail_actions=("output:banned:block",),
        cost=0.1,
    )
    metrics.observe(event, rails_ms=1.0)
    stages = (StageTiming("engine", 0, 1),)
    metrics.observe_scored(Observation(event, (), Guardrails(default_policy()), stages), event)
    metrics.failover("b" * 64)
    text = metrics.text(10.0, [("a" * 64, "champion", True)]).decode()
    found: Exported = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def _rules(objects: list[Object]) -> list[dict[str, Any]]:
    groups = [group for item in of_kind(objects, "PrometheusRule") for group in item["spec"]["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def _panels() -> list[tuple[str, dict[str, Any]]]:
    boards = [
        (path, json.loads(path.read_text(encoding="utf-8"))) for path in (MANIFESTS / "monitoring").rglob("*.json")
    ]
    assert boards
    return [(f"{path.stem}: {panel['title']}", panel) for path, board in boards for panel in board["panels"]]


def _with_records(exported: Exported, objects: list[Object]) -> Exported:
    records = {rule["record"]: {"namespace": set()} for rule in _rules(objects) if "record" in rule}
    return {**exported, **records}


def unknown(expression: str, exported: Exported) -> list[str]:
    """Metrics, labels and buckets of an expression that the gateway does not export.

    Raises:
        ValueError: it is not PromQL.
    """
    found, labels = [], set(FROM_SCRAPING)
    for selector in _selectors(promql_parser.parse(expression)):
        if selector.name not in exported:
            found.append(f"metric {selector.name}")
            continue
        own = exported[selector.name]
        labels |= set(own)
        for matcher in selector.matchers.matchers:
            if matcher.name not in {*own, *FROM_SCRAPING}:
                found.append(f"label {matcher.name} of {selector.name}")
            elif matcher.name == "le" and matcher.value not in own["le"]:
                found.append(f"bucket {matcher.value} of {selector.name}")
    grouped = {label for node in _nodes(promql_parser.parse(expression)) for label in _grouping(node)}
    return found + [f"label {label}" for label in sorted(grouped - labels)]


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for field in ("lhs", "rhs", "expr", "param"):
        if getattr(node, field, None) is not None:
            yield from _nodes(getattr(node, field))
    for argument in getattr(node, "args", None) or []:
        yield from _nodes(argument)


def _selectors(expression: Any) -> list[Any]:
    nodes = [getattr(node, "vector_selector", node) for node in _nodes(expression)]
    return [node for node in nodes if isinstance(node, promql_parser.VectorSelector)]


def _grouping(node: Any) -> list[str]:
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        return list(node.modifier.labels)
    return []


def test_rules_use_only_what_the_gateway_exports(prod: list[Object], exported: Exported) -> None:
    known = _with_records(exported, prod)
    assert {rule["expr"]: unknown(rule["expr"], known) for rule in _rules(prod) if unknown(rule["expr"], known)} == {}


def test_dashboards_use_only_what_the_gateway_exports(prod: list[Object], exported: Exported) -> None:
    known = _with_records(exported, prod)
    for title, panel in _panels():
        for target in panel["targets"]:
            assert unknown(target["expr"].replace("$__rate_interval", "5m"), known) == [], title


def test_legends_of_dashboards_name_labels_that_their_expression_keeps() -> None:
    for title, panel in _panels():
        for target in panel["targets"]:
            tree = promql_parser.parse(target["expr"].replace("$__rate_interval", "5m"))
            kept = {label for node in _nodes(tree) for label in _grouping(node)}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, title


def test_every_metric_of_the_gateway_is_on_a_dashboard(exported: Exported) -> None:
    shown = " ".join(target["expr"] for _, panel in _panels() for target in panel["targets"])
    ours = [name for name in exported if name.startswith("serin_")]  # the others are the same under other names
    families = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in ours if not name.endswith("_created")}
    shown += (MANIFESTS / "monitoring" / "objectives.yaml").read_text(encoding="utf-8")
    assert {family for family in families if family not in shown} == set()


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("sum(rate(serin_request_total[5m]))", "metric serin_request_total"),
        ('serin_requests_total{code="500"}', "label code of serin_requests_total"),
        ("sum by (model) (serin_requests_total)", "label model"),
        ('serin_ttft_seconds_bucket{le="3"}', "bucket 3 of serin_ttft_seconds_bucket"),
        ("rate(serin_ttft_seconds[5m])", "metric serin_ttft_seconds"),
    ],
)
def test_what_the_gateway_does_not_export_is_found(expression: str, found: str, exported: Exported) -> None:
    assert unknown(expression, exported) == [found]


def test_alerts_say_how_bad_and_what_to_do(prod: list[Object]) -> None:
    alerts = [rule for rule in _rules(prod) if "alert" in rule]
    assert len(alerts) == 10
    for alert in alerts:
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert set(alert["annotations"]) == {"summary", "description"}
        grouped = {label for node in _nodes(promql_parser.parse(alert["expr"])) for label in _grouping(node)}
        named = {match for text in alert["annotations"].values() for match in re.findall(r"\$labels\.(\w+)", text)}
        assert named <= grouped | {"namespace"}, alert["alert"]


def test_dashboards_are_found_by_grafana(prod: list[Object]) -> None:
    labelled = [
        c for c in of_kind(prod, "ConfigMap") if c["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
    ]
    boards = [json.loads(text) for item in labelled for text in item["data"].values()]
    assert {board["uid"] for board in boards} == {"serin-endpoint", "serin-guardrails"}
    for board in boards:
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))


def test_no_secret_or_address_is_in_a_dashboard() -> None:
    for _, panel in _panels():
        for inner in mappings(panel):
            assert inner.get("datasource", {}).get("uid", "${datasource}") == "${datasource}"


@pytest.mark.slow
def test_alerts_fire_on_what_they_are_for(prod: list[Object], tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (Debian's package prometheus) to run the alerts on series")
    groups = [group for item in of_kind(prod, "PrometheusRule") for group in item["spec"]["groups"]]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}), encoding="utf-8")
    shutil.copy(Path(__file__).with_name("alerts_test.yaml"), tmp_path)
    command = [promtool, "test", "rules", str(tmp_path / "alerts_test.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
