"""What the admin API shows, and that its probes mean what they say."""

from __future__ import annotations

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from smtplb.admin import api
from smtplb.controlplane.views import Problem, ReadinessView
from smtplb.observe.events import Notice
from smtplb.settings import Address
from tests.admin import pictures
from tests.admin.control import LOOPBACK, FakeControl, running

DOWN = ReadinessView(False, ["no listener has a usable backend"], {"mx": False})


async def test_livez_is_about_the_process_and_healthz_is_the_same() -> None:
    async with running(FakeControl(ready=DOWN)) as admin:
        assert await admin.get("/livez") == (200, {"live": True})
        assert await admin.get("/healthz") == (200, {"live": True})
        admin.control.alive = False
        assert (await admin.get("/livez"))[0] == 503


async def test_readyz_lists_each_listener() -> None:
    async with running() as admin:
        listeners = {"mx": True, "submission": False}
        assert await admin.get("/readyz") == (200, {"ready": True, "reasons": [], "listeners": listeners})


async def test_readyz_says_503_and_why() -> None:
    async with running(FakeControl(ready=DOWN)) as admin:
        status, body = await admin.get("/readyz")
        assert status == 503
        assert (body["ready"], body["reasons"]) == (False, ["no listener has a usable backend"])


async def test_readyz_may_leave_backends_out_of_account() -> None:
    async with running(FakeControl(ready=DOWN)) as admin:
        assert (await admin.get("/readyz?backends=ignore"))[0] == 200
        assert (await admin.get("/readyz?backends=all"))[0] == 400
        assert (await admin.get("/readyz?backends=ignore&backends=ignore"))[0] == 400


async def test_readyz_of_a_listener_is_about_that_one() -> None:
    async with running() as admin:
        assert (await admin.get("/readyz/mx"))[0] == 200
        assert (await admin.get("/readyz/submission"))[0] == 503
        assert (await admin.get("/readyz/submission?backends=ignore"))[0] == 200
        status, body = await admin.get("/readyz/nowhere")
        assert (status, body["detail"]) == (404, "no listener nowhere")


async def test_metrics_are_served_in_the_form_that_was_asked_for() -> None:
    async with running() as admin:
        async with admin.client.get(admin.url("/metrics")) as response:
            assert response.headers["Content-Type"].startswith("text/plain")
            assert list(text_string_to_metric_families(await response.text()))
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        async with admin.client.get(admin.url("/metrics"), headers=accept) as response:
            assert response.headers["Content-Type"].startswith("application/openmetrics-text")
            assert (await response.text()).endswith("# EOF\n")


async def test_metrics_that_are_dear_are_given_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def first_line_of(name: str) -> str:
        _, text = await admin.get("/metrics")
        return str(next(line for line in text.splitlines() if line.startswith(name)))

    monkeypatch.setattr(api, "METRICS_LONG_S", 1e6)
    async with running() as admin:
        before = await first_line_of("smtplb_sessions_open")
        admin.control.view.listeners[0].sessions_open = 99
        assert await first_line_of("smtplb_sessions_open") != before  # cheap ones are fresh
        monkeypatch.setattr(api, "METRICS_LONG_S", 0.0)
        monkeypatch.setattr(api, "METRICS_KEPT", 1e6)
        assert await first_line_of("smtplb_sessions_open") == 'smtplb_sessions_open{listener="mx"} 99.0'
        admin.control.view.listeners[0].sessions_open = 98
        assert await first_line_of("smtplb_sessions_open") == 'smtplb_sessions_open{listener="mx"} 99.0'


async def test_status_opens_with_the_condition_and_the_problems() -> None:
    async with running() as admin:
        status, body = await admin.get("/api/v1/status")
        assert status == 200
        assert list(body)[:2] == ["condition", "problems"]
        assert body["condition"] == "degraded"
        assert body["problems"] == [
            {
                "severity": "degraded",
                "where": "east/mx2",
                "text": "check said 421 4.3.2 All server ports are busy",
                "hint": "raise default_process_limit on mx2",
                "anchor": "backend-down",
            }
        ]
        assert body["started"] == "2026-07-02T13:46:40.000Z"
        assert body["config"]["source"] == "/etc/smtplb/smtplb.yaml"


async def test_a_backend_shows_what_the_operator_set_and_what_checks_found() -> None:
    async with running() as admin:
        status, body = await admin.get("/api/v1/pools/east/backends/mx3")
        assert status == 200
        assert (body["state"], body["usable"], body["reason"]) == ("drain", False, "operator: drain, disk")
        assert body["operator"] == {
            "state": "drain",
            "weight": None,
            "reason": "disk",
            "since": "2026-07-02T13:46:40.000Z",
            "until": "2026-07-02T15:46:40.000Z",
        }
        assert body["check"]["last"]["text"] == "250 mx1.example.net"
        assert body["check"]["state"] == "up"
        assert body["replies"] == {"final": {"250": 7}, "rcpt": {"450": 2}}
        assert body["latency"] == {"p50": 0.05, "p99": 0.25}


async def test_a_backend_named_by_its_address_is_found() -> None:
    async with running() as admin:
        assert (await admin.get("/api/v1/pools/lab/backends/10.0.9.9:25"))[1]["name"] == "10.0.9.9:25"


async def test_a_backend_with_a_slash_in_its_name_is_found() -> None:
    socket = pictures.backend("lab", "unix:/run/mta")
    view = pictures.status(pools=[pictures.pool("lab", socket)])
    async with running(FakeControl(view=view)) as admin:
        status, body = await admin.get("/api/v1/pools/lab/backends/unix:%2Frun%2Fmta")
        assert (status, body["name"]) == (200, "unix:/run/mta")


async def test_lists_and_single_things_agree() -> None:
    async with running() as admin:
        _, everything = await admin.get("/api/v1/status")
        assert (await admin.get("/api/v1/pools"))[1] == {"pools": everything["pools"]}
        assert (await admin.get("/api/v1/pools/east"))[1] == everything["pools"][0]
        assert (await admin.get("/api/v1/pools/east/backends/mx2"))[1] == everything["pools"][0]["backends"][
            1
        ]
        assert (await admin.get("/api/v1/groups"))[1] == {"groups": everything["groups"]}
        assert (await admin.get("/api/v1/groups/site"))[1] == everything["groups"][0]
        assert (await admin.get("/api/v1/listeners"))[1] == {"listeners": everything["listeners"]}


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/api/v1/pools/nowhere", "no pool nowhere"),
        ("/api/v1/pools/nowhere/backends/mx1", "no pool nowhere"),
        ("/api/v1/pools/east/backends/mx9", "no backend mx9 in pool east"),
        ("/api/v1/groups/nowhere", "no group nowhere"),
        ("/api/v2/status", "there is nothing at this path; GET / lists what there is"),
        ("/api/v1/pools/", "there is nothing at this path; GET / lists what there is"),
    ],
)
async def test_what_is_not_there_is_a_problem_404(path: str, detail: str) -> None:
    async with running() as admin, admin.client.get(admin.url(path)) as response:
        assert response.content_type == "application/problem+json"
        assert await response.json(content_type=None) == {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": detail,
        }


async def test_a_method_that_a_path_does_not_know_is_a_problem_405() -> None:
    async with running() as admin, admin.client.delete(admin.url("/api/v1/pools/east")) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"
        assert (await response.json(content_type=None))["title"] == "Method Not Allowed"


async def test_the_index_lists_the_paths_with_the_condition() -> None:
    async with running() as admin:
        _, plain = await admin.get("/")
        assert plain.startswith("smtplb 1.2.0 on lb1.example.net: degraded\n")
        assert "/api/v1/status" in plain
        _, page = await admin.get("/", headers={"Accept": "text/html,*/*"})
        assert '<a href="/api/v1/status">' in page


async def test_the_index_page_escapes_what_backends_said() -> None:
    said = Problem("degraded", "east/mx2", "<script>alert(1)</script>", 'say "hi" & go', "backend-down")
    async with running(FakeControl(view=pictures.status(problems=[said]))) as admin:
        _, page = await admin.get("/", headers={"Accept": "text/html"})
        assert "<script>" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


async def test_answers_are_neither_cached_nor_sniffed_and_do_not_name_what_serves_them() -> None:
    async with running() as admin:
        for path in ("/livez", "/api/v1/status", "/nothing", "/metrics"):
            async with admin.client.get(admin.url(path)) as response:
                assert response.headers["Cache-Control"] == "no-store"
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Server"] == "smtplb"


async def test_a_worker_that_does_not_answer_is_a_503() -> None:
    async with running(FakeControl(fails=TimeoutError())) as admin:
        status, body = await admin.get("/api/v1/status")
        assert (status, body["detail"]) == (503, "a worker does not answer")
        assert (await admin.get("/livez"))[0] == 200


async def test_a_bug_of_ours_tells_the_client_nothing_and_the_log_everything() -> None:
    async with running(FakeControl(fails=ValueError("secret detail"))) as admin:
        status, body = await admin.get("/api/v1/status")
        assert status == 500
        assert "secret" not in json.dumps(body)
        (notice,) = admin.control.events
        assert isinstance(notice, Notice)
        assert (notice.level, notice.what) == ("error", "bug")
        assert "secret detail" in str(notice.fields["exception"])


async def test_the_probe_port_serves_probes_and_metrics_alone() -> None:
    async with running(bind=None, probes_bind=LOOPBACK) as admin:
        assert admin.server.bound is None
        probes = admin.server.probes_bound
        assert isinstance(probes, Address)
        codes = {}
        for path in ("/livez", "/healthz", "/readyz", "/readyz/mx", "/metrics", "/", "/api/v1/status"):
            async with admin.client.get(f"http://{probes}{path}") as response:
                codes[path] = response.status
        assert codes == {
            "/livez": 200,
            "/healthz": 200,
            "/readyz": 200,
            "/readyz/mx": 200,
            "/metrics": 200,
            "/": 404,
            "/api/v1/status": 404,
        }
