"""Problems of identity, TLS, certificates and routes; and what views show of offers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from smtplb.controlplane.problems import ANCHORS, DEGRADED, FAILING, find_problems
from smtplb.controlplane.registry import CheckResult, Seen
from smtplb.controlplane.views import CertificateView, ListenerView, Problem
from smtplb.messages import BackendKey
from smtplb.policy.health import STANDINGS, CheckState, OperatorState
from smtplb.settings import BackTlsMode, BackTlsSettings, IdentityMode, TrafficSettings
from tests.controlplane.test_problems import anchors, picture, problems
from tests.controlplane.test_registry import MX1, MX2, MX3, Desk, opened
from tests.controlplane.test_registry_offers import routed
from tests.controlplane.things import backend, listener, pool

DAY = 86_400
ALL = dict.fromkeys((b"8BITMIME", b"SMTPUTF8", b"DSN", b"BINARYMIME", b"REQUIRETLS", b"CHUNKING"), b"")


def with_settings(
    identity: IdentityMode = IdentityMode.NONE, tls: BackTlsSettings | None = None
) -> TrafficSettings:
    """Listener out -> pool west with one backend, mx3."""
    one = backend("west", "mx3", identity=identity, tls=tls)
    return TrafficSettings("lb1.test", (listener("out", "west"),), (pool("west", one),))


def see(desk: Desk, key: BackendKey, offers: dict[bytes, bytes], expires_in_s: float | None = None) -> None:
    expires = None if expires_in_s is None else desk.clock.wall() + expires_in_s
    desk.registry.check_result(key, CheckResult(True, "250 mx", 0.01, True, Seen(offers, "TLSv1.3", expires)))


class TestIdentity:
    @pytest.mark.parametrize(
        ("mode", "advice"),
        [
            (IdentityMode.XCLIENT, "smtpd_authorized_xclient_hosts"),
            (IdentityMode.XFORWARD, "smtpd_authorized_xforward_hosts"),
            (IdentityMode.PROXY_V1, "smtpd_upstream_proxy_protocol"),
            (IdentityMode.PROXY_V2, "hosts_proxy"),
        ],
    )
    def test_a_backend_without_it_says_why_and_what_to_do(self, mode: IdentityMode, advice: str) -> None:
        desk = Desk(with_settings(mode))
        desk.registry.open()
        desk.lacks_identity(MX3, "identity: does not offer it")
        desk.go(120)
        listening, found = problems(desk)
        assert (found.where, found.anchor, found.severity) == ("west/mx3", "identity-unproven", DEGRADED)
        assert found.text == "gets no mail for 2 min: identity: does not offer it"
        assert advice in found.hint
        assert listening.severity == FAILING
        assert "none may be tried: clients are answered 421 4.3.2" in listening.text

    def test_what_became_of_it_since_is_told_too(self) -> None:
        desk = Desk(with_settings(IdentityMode.XCLIENT))
        desk.registry.open()
        desk.lacks_identity(MX3)
        desk.check("---", MX3, text="connection refused")
        assert problems(desk)[1].text.endswith("identity: does not offer XCLIENT; now: connection refused")

    def test_it_is_not_taken_for_one_that_was_not_checked(self) -> None:
        desk = Desk(with_settings())
        desk.registry.open()
        assert anchors(desk) == [("out", "listener-unusable"), ("west/mx3", "backend-unproven")]


@pytest.mark.parametrize(("operator", "check"), list(product(OperatorState, CheckState)))
def test_every_standing_that_takes_no_mail_is_a_problem_and_no_other_is(
    operator: OperatorState, check: CheckState
) -> None:
    desk = Desk(with_settings(IdentityMode.XCLIENT))
    desk.registry.open()
    record = desk.registry.backends[MX3]
    desk.registry.set_operator(MX3, operator, "", None)
    record.track.state = check  # forgotten by the change to maint
    desk.registry._settle(record)
    found = [problem.anchor for problem in problems(desk) if problem.where == "west/mx3"]
    assert bool(found) is not STANDINGS[operator, check].usable
    assert set(found) <= set(ANCHORS)


class TestTls:
    @pytest.mark.parametrize(
        ("text", "advice"),
        [
            ("TLS: does not offer STARTTLS", "smtpd_tls_cert_file"),
            ("TLS: certificate verify failed: unable to get local issuer certificate", "tls.ca must hold"),
            ("TLS: CA file: No such file or directory", "tls.ca cannot be read"),
            ("TLS: wrong version number", "TLS 1.2"),
        ],
    )
    def test_the_words_choose_the_advice(self, text: str, advice: str) -> None:
        desk = opened()
        desk.check("---", MX1, text=text)
        (found,) = problems(desk)
        assert found.anchor == "tls-backend"
        assert found.text == f"down for 0 s: {text}"
        assert advice in found.hint

    @pytest.mark.parametrize(
        ("expires_in_s", "text"),
        [
            (15 * DAY, None),
            (13.5 * DAY, "its certificate expires in 13 d"),
            (-7200, "its certificate expired 2 h ago"),
        ],
    )
    def test_the_end_of_a_certificate_that_is_verified(self, expires_in_s: float, text: str | None) -> None:
        desk = Desk(with_settings(tls=BackTlsSettings(BackTlsMode.REQUIRED)))
        desk.registry.open()
        see(desk, MX3, ALL, expires_in_s)
        assert [(found.where, found.anchor, found.text) for found in problems(desk)] == (
            [] if text is None else [("west/mx3", "certificate", text)]
        )

    @pytest.mark.parametrize("mode", [BackTlsMode.OPPORTUNISTIC, BackTlsMode.REQUIRED])
    def test_nobody_cares_for_the_end_of_one_that_is_not(self, mode: BackTlsMode) -> None:
        desk = Desk(with_settings(tls=BackTlsSettings(mode, verify=mode is BackTlsMode.OPPORTUNISTIC)))
        desk.registry.open()
        see(desk, MX3, ALL, -DAY)
        assert problems(desk) == []

    def test_views_show_version_end_and_whether_it_is_verified(self) -> None:
        desk = Desk(with_settings(tls=BackTlsSettings(BackTlsMode.IMPLICIT)))
        desk.registry.open()
        see(desk, MX3, {b"SIZE": b"1000"}, DAY)
        (view,) = picture(desk).pools()[0].backends
        assert (view.tls, view.tls_verified, view.certificate_expires) == (
            "TLSv1.3",
            True,
            desk.clock.wall() + DAY,
        )
        assert (view.offers, view.seen, view.identity) == (["SIZE 1000"], True, "none")


def of_certificates(tls: str, *certificates: CertificateView) -> list[Problem]:
    view: ListenerView = picture(opened()).listeners()[0]
    told = replace(view, targets={}, tls=tls, certificates=list(certificates))
    return find_problems([told], [], [], now=0, phase="serving")


def good(expires: float = 90 * DAY) -> CertificateView:
    return CertificateView("mx.pem", expires, "", True)


class TestCertificates:
    def test_one_that_ends_later_is_no_problem(self) -> None:
        assert of_certificates("starttls", good()) == []

    def test_one_that_ends_soon_degrades_and_one_that_has_ended_fails(self) -> None:
        (soon,) = of_certificates("starttls", good(6.5 * DAY))
        assert (soon.severity, soon.where, soon.anchor) == (DEGRADED, "mx", "certificate")
        assert soon.text == "certificate mx.pem expires in 6 d"
        (over,) = of_certificates("starttls", good(-3 * DAY))
        assert over.severity == FAILING
        assert over.text == "certificate mx.pem expired 3 d ago: clients that verify it send nothing"

    def test_one_that_cannot_be_used_while_the_old_one_is(self) -> None:
        (found,) = of_certificates("starttls", CertificateView("mx.pem", 90 * DAY, "no key", True))
        assert found.severity == DEGRADED
        assert found.text == (
            "certificate mx.pem cannot be used: no key; "
            "the one that was read before stays in use until the next start"
        )

    @pytest.mark.parametrize(
        ("tls", "end"), [("starttls", "STARTTLS is answered 454"), ("implicit", "no session can begin")]
    )
    def test_one_that_never_could_be_used(self, tls: str, end: str) -> None:
        (found,) = of_certificates(tls, CertificateView("mx.pem", None, "no key", False))
        assert found.severity == FAILING
        assert found.text.endswith(end)

    def test_one_of_several_that_never_could_be_used(self) -> None:
        (found,) = of_certificates("starttls", good(), CertificateView("out.pem", None, "no key", False))
        assert found.severity == DEGRADED
        assert found.text.endswith("clients that ask for its names are shown another one")

    def test_a_ca_file_is_told_once_for_a_pool(self) -> None:
        drawn = picture(opened())
        pools = drawn.pools()
        for each in pools[0].backends:
            each.ca_problem = "cannot read ca.pem"
        (found,) = find_problems([], [], pools, now=0, phase="serving")
        assert (found.where, found.anchor, found.severity) == ("east", "certificate", DEGRADED)
        assert "cannot read ca.pem" in found.text


class TestRoutes:
    def test_each_target_without_a_backend_is_told_and_what_its_recipients_hear(self) -> None:
        desk = opened(routed())
        desk.check("+", ("lab", "l1"))
        assert problems(desk) == []
        desk.registry.set_operator(("lab", "l1"), OperatorState.MAINT, "", None)
        found = problems(desk)
        assert [(each.where, each.anchor) for each in found] == [
            ("mx", "listener-unusable"),
            ("lab/l1", "operator-drain"),
        ]
        assert found[0].severity == FAILING
        assert found[0].text.startswith("no backend of lab is usable; all are in drain or maint: ")
        assert "451 4.4.1" in found[0].text

    def test_a_view_tells_where_mail_can_go(self) -> None:
        (view,) = picture(opened(routed())).listeners()
        assert view.targets == {"lab": ["lab"], "site": ["east", "west"]}
        assert view.usable_backends == 3


class TestOffers:
    def out(self, desk: Desk) -> ListenerView:
        """Listener out -> pool west, mx3 alone."""
        return picture(desk).listeners()[1]

    def test_nothing_is_offered_while_a_backend_was_not_seen(self) -> None:
        view = self.out(opened())
        assert view.offers == []
        assert view.withheld["DSN"] == ["west/mx3 (not seen yet)"]

    def test_what_all_have_is_offered_and_who_lacks_the_rest_is_told(self) -> None:
        desk = opened()
        for key in (MX1, MX2):
            see(desk, key, ALL)
        see(desk, MX3, {b"DSN": b"", b"8BITMIME": b"", b"BINARYMIME": b"", b"SMTPUTF8": b""})
        mx = picture(desk).listeners()[0]
        assert mx.offers == ["8BITMIME", "SMTPUTF8", "DSN"]
        assert mx.withheld == {
            "BINARYMIME": ["west/mx3 (lacks CHUNKING)"],
            "REQUIRETLS": ["east/mx1 (TLS not verified)", "east/mx2 (TLS not verified)", "west/mx3"],
        }

    def test_all_of_them_where_tls_is_verified(self) -> None:
        desk = Desk(with_settings(tls=BackTlsSettings(BackTlsMode.REQUIRED)))
        desk.registry.open()
        see(desk, MX3, ALL)
        (view,) = picture(desk).listeners()
        assert view.offers == ["8BITMIME", "SMTPUTF8", "DSN", "BINARYMIME", "REQUIRETLS"]
        assert view.withheld == {}

    def test_smtputf8_needs_8bitmime(self) -> None:
        desk = Desk(with_settings())
        desk.registry.open()
        see(desk, MX3, {b"SMTPUTF8": b""})
        (view,) = picture(desk).listeners()
        assert view.withheld["SMTPUTF8"] == ["west/mx3 (lacks 8BITMIME)"]
        assert view.offers == []
