"""What the admin API lets change, by whom, and how it says no."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.admin import api
from smtplb.admin.changes import duration_s, read_change
from smtplb.admin.errors import ApiError
from smtplb.controlplane.supervisor import WouldStrand
from smtplb.observe.events import Notice
from tests.admin.control import TOKEN, FakeControl, Running, running

MX1 = "/api/v1/pools/east/backends/mx1"


async def test_the_token_lets_a_backend_be_drained() -> None:
    async with running() as admin:
        body = {"state": "drain", "weight": 0, "reason": "kernel", "for": "2h", "force": True}
        status, backend = await admin.change("PATCH", MX1, json=body)
        assert (status, backend["state"], backend["operator"]["reason"]) == (200, "drain", "kernel")
        assert admin.control.changes == [
            {
                "key": "east/mx1",
                "state": "drain",
                "weight": 0,
                "reason": "kernel",
                "for_s": 7200.0,
                "force": True,
            }
        ]


async def test_a_change_is_logged_with_who_made_it() -> None:
    async with running() as admin:
        await admin.change("PATCH", MX1, json={"state": "drain", "weight": 1, "reason": "kernel"})
        (notice,) = admin.control.events
        assert isinstance(notice, Notice)
        assert (notice.level, notice.what) == ("info", "admin-change")
        assert notice.text == "operator set east/mx1: drain, weight 1"
        assert str(notice.fields["from"]).startswith("127.0.0.1 port ")
        assert notice.fields["reason"] == "kernel"


@asynccontextmanager
async def over_socket(path: Path, **changes: Any) -> AsyncIterator[tuple[Running, aiohttp.ClientSession]]:
    connector = aiohttp.UnixConnector(str(path))
    async with (
        running(socket=str(path), **changes) as admin,
        aiohttp.ClientSession(connector=connector) as client,
    ):
        yield admin, client


async def test_the_unix_socket_needs_no_token(tmp_path: Path) -> None:
    async with over_socket(tmp_path / "admin.sock", token=None, bind=None) as (admin, client):
        async with client.patch(f"http://any.name{MX1}", json={"state": "maint"}) as response:
            assert response.status == 200
        (notice,) = admin.control.events
        assert isinstance(notice, Notice)
        assert notice.fields["from"] == f"socket, uid {os.getuid()}, pid {os.getpid()}"


async def test_without_the_token_nothing_changes() -> None:
    async with running() as admin:
        async with admin.client.patch(admin.url(MX1), json={"state": "drain"}) as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="smtplb"'
            assert response.content_type == "application/problem+json"
        assert admin.control.changes == []


@pytest.mark.parametrize(
    "said",
    [
        "Bearer wrong",
        "Bearer ",
        "Bearer",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer x{TOKEN}",
        TOKEN,
        "Bearer t\u00f6ken",
        f"Bearer {TOKEN} {TOKEN}",
    ],
)
async def test_a_wrong_token_is_refused_and_logged(said: str) -> None:
    async with running() as admin:
        status, _ = await admin.change("PATCH", MX1, json={"state": "drain"}, headers={"Authorization": said})
        assert status == 401
        assert admin.control.changes == []
        (notice,) = admin.control.events
        assert isinstance(notice, Notice)
        assert (notice.level, notice.what) == ("warning", "admin-denied")
        assert notice.text.startswith("wrong admin token from 127.0.0.1 port ")


@pytest.mark.parametrize("token", [None, ""])
async def test_where_no_token_is_set_nobody_changes_anything_over_tcp(token: str | None) -> None:
    async with running(token=token) as admin:
        for given in (None, "", "None", TOKEN):
            status, body = await admin.change("PATCH", MX1, json={"state": "drain"}, token=given)
            assert status == 403
            assert "admin.token_file" in body["detail"]


async def test_whether_a_backend_exists_is_not_told_without_the_token() -> None:
    async with running() as admin:
        path = "/api/v1/pools/nowhere/backends/mx1"
        assert (await admin.change("PATCH", path, json={"state": "drain"}, token=None))[0] == 401
        assert (await admin.change("PATCH", path, json={"state": "drain"}))[0] == 404


async def test_a_change_that_strands_a_listener_is_a_409_that_names_it() -> None:
    async with running(FakeControl(fails=WouldStrand(["mx", "submission"]))) as admin:
        status, body = await admin.change("PATCH", MX1, json={"state": "drain"})
        assert (status, body["listeners"]) == (409, ["mx", "submission"])
        assert '"force": true' in body["detail"]
        assert admin.control.events == []


async def test_a_change_that_makes_no_sense_to_the_pool_is_a_422() -> None:
    control = FakeControl()
    control.view.pools[0].policy = "round-robin"
    async with running(control) as admin:
        status, body = await admin.change("PATCH", MX1, json={"weight": 3})
        assert (status, body["detail"]) == (422, "pool east is round-robin")


# -- bodies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"", 400, "the body is not JSON: line 1, column 1"),
        (b"{", 400, "the body is not JSON: line 1, column 2"),
        (b"[]", 400, "the body is not a JSON object"),
        (b"null", 400, "the body is not a JSON object"),
        (b'{"weight": NaN}', 400, "NaN is not JSON"),
        (b'{"weight": ' + b"9" * 5000 + b"}", 400, "the body is not JSON: a number is too long"),
        (b'{"state": "drain", "state": "ready"}', 400, "a key comes twice"),
        (b'{"reason": "\xff"}', 400, "the body is not UTF-8"),
        (b"[" * 60_000, 400, "the body is nested too deeply"),
        (b"{}", 422, "state: nothing to change: give state or weight"),
        (b'{"reason": "why"}', 422, "state: nothing to change: give state or weight"),
        (b'{"state": "DRAIN"}', 422, "state: is ready, drain or maint"),
        (b'{"state": null}', 422, "state: is ready, drain or maint"),
        (b'{"state": ["drain"]}', 422, "state: is ready, drain or maint"),
        (b'{"weight": true}', 422, "weight: is a whole number, 0 to 256"),
        (b'{"weight": -1}', 422, "weight: is a whole number, 0 to 256"),
        (b'{"weight": 257}', 422, "weight: is a whole number, 0 to 256"),
        (b'{"weight": 1.0}', 422, "weight: is a whole number, 0 to 256"),
        (b'{"weight": "1"}', 422, "weight: is a whole number, 0 to 256"),
        (b'{"state": "drain", "for": 3600}', 422, 'for: is written as "90s", "15m" or "2h"'),
        (b'{"state": "drain", "for": "2 h"}', 422, 'for: is written as "90s", "15m" or "2h"'),
        (b'{"state": "drain", "for": "0s"}', 422, "for: is more than 0 and at most a year"),
        (b'{"state": "drain", "for": "366d"}', 422, "for: is more than 0 and at most a year"),
        (b'{"state": "ready", "for": "2h"}', 422, "for: goes with state drain or maint"),
        (b'{"weight": 3, "for": "2h"}', 422, "for: goes with state drain or maint"),
        (b'{"state": "drain", "force": 1}', 422, "force: is true or false"),
        (b'{"state": "drain", "reason": "a\\nb"}', 422, "reason: is at most 200 printable characters"),
        (b'{"state": "drain", "reason": "\\u001b[2J"}', 422, "reason: is at most 200 printable characters"),
        (b'{"state": "drain", "reason": "\\ud800"}', 422, "reason: is at most 200 printable characters"),
        (
            b'{"state": "drain", "weigth": 1}',
            422,
            "weigth: unknown key; there are: state, weight, reason, for, force",
        ),
    ],
)
async def test_a_body_that_is_wrong_is_refused_and_says_where(body: bytes, status: int, detail: str) -> None:
    async with running() as admin:
        given, problem = await admin.change(
            "PATCH", MX1, data=body, headers={"Content-Type": "application/json"}
        )
        assert (given, problem["detail"]) == (status, detail)
        assert problem["status"] == status
        assert admin.control.changes == []


async def test_all_that_is_wrong_is_told_at_once() -> None:
    async with running() as admin:
        body = {"state": "off", "weight": 1000, "reason": "x" * 201, "colour": 1}
        status, problem = await admin.change("PATCH", MX1, json=body)
        assert status == 422
        assert [error["key"] for error in problem["errors"]] == ["colour", "state", "weight", "reason"]


@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_no_body_whatever_is_more_than_refused(body: bytes) -> None:
    try:
        read_change(body)
    except ApiError as error:
        status = error.response().status
    else:
        status = 200
    assert status in (200, 400, 422)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2),
)


@given(st.dictionaries(st.sampled_from(["state", "weight", "reason", "for", "force", "x"]), json_values))
def test_a_change_that_is_taken_is_in_range(body: dict[str, Any]) -> None:
    try:
        change = read_change(json.dumps(body).encode())
    except ApiError:
        return
    assert change.state in (None, "ready", "drain", "maint")
    assert change.weight is None or 0 <= change.weight <= 256
    assert change.reason.isprintable()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("90s", 90.0),
        ("15m", 900.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("2h\n", None),
        ("\u0662h", None),
    ],
)
def test_durations_are_a_number_and_a_unit(text: str, seconds: float | None) -> None:
    assert duration_s(text) == seconds


async def test_a_body_beyond_the_limit_is_a_413() -> None:
    async with running() as admin:
        body = b'{"reason": "' + b"x" * (api.MAX_BODY_BYTES + 1) + b'"}'
        status, problem = await admin.change(
            "PATCH", MX1, data=body, headers={"Content-Type": "application/json"}
        )
        assert (status, problem["title"]) == (413, "Request Entity Too Large")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml"])
async def test_a_change_is_json_or_a_415(kind: str) -> None:
    async with running() as admin:
        status, _ = await admin.change(
            "PATCH", MX1, data=b'{"state": "drain"}', headers={"Content-Type": kind}
        )
        assert status == 415
        assert admin.control.changes == []


async def test_a_body_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BODY_WITHIN_S", 0.02)

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await forever

    forever: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with running() as admin:
        headers = {"Content-Type": "application/json"}
        status, _ = await admin.change("PATCH", MX1, data=never(), headers=headers)
        assert status == 408
        forever.cancel()


# -- fail-back --------------------------------------------------------------------------------------------


async def test_a_group_is_brought_back_by_hand() -> None:
    async with running() as admin:
        status, body = await admin.change("POST", "/api/v1/groups/site/failback")
        assert (status, body["name"]) == (200, "site")
        assert (await admin.change("POST", "/api/v1/groups/site/failback", json={}))[0] == 200


async def test_a_group_with_nothing_to_bring_back_is_a_409() -> None:
    async with running(FakeControl(brings_back=False)) as admin:
        status, body = await admin.change("POST", "/api/v1/groups/site/failback")
        assert (status, body["detail"]) == (409, "group site has nothing to bring back")


async def test_a_fail_back_needs_the_token_and_a_group() -> None:
    async with running() as admin:
        assert (await admin.change("POST", "/api/v1/groups/site/failback", token=None))[0] == 401
        assert (await admin.change("POST", "/api/v1/groups/nowhere/failback"))[0] == 404
        assert (await admin.change("POST", "/api/v1/groups/site/failback", json={"to": "east"}))[0] == 422


# -- other sites ------------------------------------------------------------------------------------------


async def test_a_page_of_another_site_changes_nothing_even_with_the_token() -> None:
    async with running() as admin:
        headers = {"Origin": "http://evil.example"}
        status, _ = await admin.change("PATCH", MX1, json={"state": "drain"}, headers=headers)
        assert status == 403
        own = {"Origin": admin.url("")}
        assert (await admin.change("PATCH", MX1, json={"state": "drain"}, headers=own))[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("evil.example:8025", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("[::1", 200),
        ("[::1]:8025", 200),
        ("127.0.0.1", 200),
        ("localhost:8025", 200),
        ("LB1.example.net:8025", 200),
        ("lb1.example.net.", 200),
    ],
)
async def test_on_loopback_a_foreign_name_reads_nothing(host: str, status: int) -> None:
    async with running() as admin:
        for path in ("/api/v1/status", "/", "/metrics"):
            assert (await admin.get(path, headers={"Host": host}))[0] == status
        assert (await admin.get("/livez", headers={"Host": host}))[0] == 200
