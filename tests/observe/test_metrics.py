"""What /metrics shows: names and labels of the design, each known combination from the start."""

from __future__ import annotations

import re
import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from smtplb.controlplane.views import BackendView, StatusView
from smtplb.observe.histogram import SECONDS_BOUNDS
from smtplb.observe.metrics import content_type, exposition
from tests.admin import pictures

Samples = dict[str, dict[frozenset[tuple[str, str]], float]]

# Name of each sample -> its labels. What a dashboard relies on; docs/metrics.md has a row for each.
LABELS = {
    "sessions_open": "listener",
    "sessions_total": "listener tls",
    "refusals_total": "listener reason",
    "message_bytes_total": "listener",
    "transactions_total": "listener pool outcome",
    "transaction_duration_seconds": "listener pool",
    "pool_usable_ratio": "pool",
    "retries_total": "pool phase reason",
    "lease_wait_seconds": "pool",
    "backend_up": "pool backend",
    "backend_usable": "pool backend",
    "backend_ejected": "pool backend",
    "backend_weight_effective": "pool backend",
    "backend_connections": "pool backend state",
    "backend_attempts_total": "pool backend outcome",
    "backend_replies_total": "pool backend phase code",
    "backend_phase_duration_seconds": "pool backend phase",
    "connection_reuse_total": "pool result",
    "checks_total": "pool backend result",
    "check_duration_seconds": "pool backend",
    "listener_certificate_expiry_timestamp_seconds": "listener file",
    "backend_certificate_expiry_timestamp_seconds": "pool backend",
    "group_share_ratio": "group pool",
    "config_last_reload_successful": "",
    "config_reloads_total": "result",
    "worker_restarts_total": "",
    "config_info": "sha256",
    "build_info": "version python",
}


def scrape(status: StatusView) -> Samples:
    body = exposition(status, "")
    samples: Samples = {}
    for family in parse_text(body.decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples["smtplb_" + name][frozenset(labels.items())]


def test_every_name_has_the_prefix_and_the_labels_of_the_design() -> None:
    seen: dict[str, set[str]] = {}
    for name, values in scrape(pictures.status()).items():
        base = re.sub(r"_(bucket|sum|count)$", "", name.removeprefix("smtplb_"))
        assert name.startswith("smtplb_")
        for labels in values:
            seen.setdefault(base, set()).update({label for label, _ in labels} - {"le"})
    assert seen == {name: set(labels.split()) for name, labels in LABELS.items()}


def test_both_forms_parse_and_the_accept_header_chooses() -> None:
    text = exposition(pictures.status(), "text/plain")
    assert content_type("text/plain").startswith("text/plain; version=")
    assert len(list(parse_text(text.decode()))) == len(LABELS)
    openmetrics = "application/openmetrics-text; version=1.0.0"
    modern = exposition(pictures.status(), openmetrics)
    assert content_type(openmetrics).startswith("application/openmetrics-text")
    assert len(list(parse_openmetrics(modern.decode()))) == len(LABELS)  # type: ignore[no-untyped-call]


def test_counts_of_the_picture_are_the_counts_of_the_scrape() -> None:
    samples = scrape(pictures.status())
    assert value(samples, "sessions_open", listener="mx") == 17
    assert value(samples, "transactions_total", listener="mx", pool="east", outcome="ok") == 7
    assert value(samples, "transactions_total", listener="mx", pool="", outcome="refused") == 2
    assert value(samples, "backend_replies_total", pool="east", backend="mx1", phase="rcpt", code="450") == 2
    assert value(samples, "connection_reuse_total", pool="east", result="reused") == 18
    assert value(samples, "checks_total", pool="east", backend="mx2", result="failed") == 3
    assert value(samples, "retries_total", pool="east", phase="connect", reason="connect") == 4
    assert value(samples, "group_share_ratio", group="site", pool="east") == 1.0
    assert value(samples, "config_info", sha256="3f9c1e" + "0" * 58) == 1


def test_up_is_what_checks_say_and_usable_what_takes_mail() -> None:
    samples = scrape(pictures.status())
    up_and_usable = {
        name: (
            value(samples, "backend_up", pool="east", backend=name),
            value(samples, "backend_usable", pool="east", backend=name),
        )
        for name in ("mx1", "mx2", "mx3")
    }
    assert up_and_usable == {"mx1": (1, 1), "mx2": (0, 0), "mx3": (1, 0)}


def test_combinations_that_are_known_start_at_zero() -> None:
    idle = pictures.backend("lab", "b", attempts={}, reuse={}, replies={}, connections={})
    fresh = pictures.listener("submission", "lab", refusals={}, transactions={}, durations={})
    samples = scrape(pictures.status(listeners=[fresh], pools=[pictures.pool("lab", idle)], groups=[]))
    ended = samples["smtplb_transactions_total"]
    assert set(ended.values()) == {0}
    assert len(ended) == 6 + 3
    assert value(samples, "refusals_total", listener="submission", reason="nothing-usable") == 0
    assert value(samples, "backend_attempts_total", pool="lab", backend="b", outcome="in_doubt") == 0
    assert value(samples, "backend_replies_total", pool="lab", backend="b", phase="data", code="354") == 0
    assert value(samples, "retries_total", pool="lab", phase="mail", reason="storage") == 0
    assert value(samples, "transaction_duration_seconds_count", listener="submission", pool="lab") == 0


def test_a_listener_of_a_group_knows_each_pool_of_it() -> None:
    samples = scrape(pictures.status())
    assert value(samples, "transactions_total", listener="mx", pool="west", outcome="tempfail") == 0


def test_a_listener_with_a_route_knows_each_pool_of_its_rules() -> None:
    routed = pictures.listener("mx", "inbound", targets={"lab": ["lab"], "site": ["east", "west"]})
    samples = scrape(pictures.status(listeners=[routed]))
    for pool in ("lab", "east", "west"):
        assert value(samples, "transactions_total", listener="mx", pool=pool, outcome="tempfail") == 0


def test_a_histogram_is_cumulative_and_reaches_600_seconds() -> None:
    samples = scrape(pictures.status())["smtplb_backend_phase_duration_seconds_bucket"]
    counts = {
        dict(labels)["le"]: count
        for labels, count in samples.items()
        if {("pool", "west"), ("backend", "mx1")} <= labels
    }
    assert list(counts.values()) == sorted(counts.values())
    assert counts["0.025"] == 0
    assert counts["0.05"] == 7
    assert counts["600.0"] == counts["+Inf"] == 7
    assert len(counts) == len(SECONDS_BOUNDS) + 1


def test_a_group_without_any_share_shows_zero() -> None:
    view = pictures.status()
    for member in view.groups[0].members:
        member.share = 0
    assert value(scrape(view), "group_share_ratio", group="site", pool="west") == 0


@pytest.mark.measured
def test_a_scrape_costs_for_each_backend_the_same_whether_there_are_30_or_300() -> None:
    views = {}
    for count in (30, 300):
        backends: list[BackendView] = [pictures.backend("east", f"mx{number}") for number in range(count)]
        views[count] = pictures.status(pools=[pictures.pool("east", *backends), *pictures.status().pools[1:]])
    # In turns, and the best of each: what a machine does besides falls on both. 10 times the backends are 7 times the cost.
    spent_s: dict[int, list[float]] = {count: [] for count in views}
    for _ in range(5):
        for count, view in views.items():
            before = time.process_time()
            exposition(view, "")
            spent_s[count].append(time.process_time() - before)
    few, many = (min(spent_s[count]) for count in views)
    print(f"30 backends {few * 1000:.0f} ms, 300 backends {many * 1000:.0f} ms")  # noqa: T201
    assert many <= 20 * few
