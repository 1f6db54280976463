"""The prober with connections that do as they are told, on a clock that stands still: when, how many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.controlplane.prober import ProbeConnection, Prober, Stage, Subject
from smtplb.controlplane.registry import CheckResult
from smtplb.dataplane.connection import Failure
from smtplb.dataplane.deadlines import Deadlines
from smtplb.messages import BackendKey
from smtplb.observe.outcomes import Phase
from smtplb.policy.outcome import Reason
from smtplb.settings import BackendSettings, CheckLevel, CheckSettings
from smtplb.smtp.extensions import Capabilities
from smtplb.smtp.replies import Reply
from tests.controlplane.clock import FakeClock
from tests.controlplane.things import backend
from tests.dataplane.fakes import FakeLoop

LOOP = FakeLoop().as_loop  # connections here never use it


class Puppet:
    """A connection whose fate the test decides."""

    def __init__(self, stage: Probing, settings: BackendSettings, hello: bytes, owner: Subject) -> None:
        self.stage = stage
        self.settings = settings
        self.hello = hello
        self.owner = owner
        self.phase = Phase.GREETING
        self.greeted: Reply | None = None
        self.answered: Reply | None = None
        self.offered = Capabilities()
        self.tls_version = ""
        self.certificate: bytes | None = None
        self.opened = self.quitting = self.ended = self.leaving = False
        self.when_gone: Callable[[], None] | None = None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        assert not self.opened
        self.opened = True

    def quit(self) -> None:
        assert self.opened
        assert not self.quitting
        self.quitting = True

    def abort(self) -> None:
        self.stage.ended(self)

    def peer_certificate(self) -> bytes | None:
        return self.certificate

    # what the test lets happen

    def greet(self) -> None:
        self.greeted = Reply(220, [b"mx ESMTP"])
        self.phase = Phase.HELLO

    def answer(self, *keywords: bytes) -> None:
        self.answered = Reply(250, [b"mx at your service", *keywords])
        self.offered = Capabilities(self.answered)

    def ready(self, *keywords: bytes) -> None:
        self.greet()
        self.answer(*(keywords or (b"PIPELINING",)))
        self.owner.connection_ready(self)

    def fail(
        self,
        phase: Phase = Phase.CONNECT,
        reason: Reason = Reason.CONNECT,
        reply: Reply | None = None,
        detail: bytes = b"Connection refused",
    ) -> None:
        self.stage.ended(self)
        self.owner.connection_failed(self, Failure(phase, reason, detail, reply))

    def refuse(self) -> None:
        """The backend's greeting is an error: QUIT was said, and is not answered yet."""
        self.leaving = True
        self.owner.connection_failed(
            self, Failure(Phase.GREETING, Reason.GREETING, b"554 no", Reply(554, [b"no"]))
        )

    def gone(self) -> None:
        self.stage.ended(self)
        assert self.when_gone is not None
        self.when_gone()

    def close(self) -> None:
        self.stage.ended(self)
        self.owner.connection_closed(self)


class Probing:
    """A prober, its clock, its connections and its results. Every interval is `interval_s`."""

    def __init__(self, *backends: BackendSettings, max_probes: int = 64, interval_s: float = 10.0) -> None:
        self.clock = FakeClock()
        self.live: list[Puppet] = []
        self.count = 0
        self.results: list[tuple[BackendKey, CheckResult]] = []
        self.prober = Prober(
            backends,
            hello="lb1.test",
            deadlines=self.clock.deadlines,
            report=lambda key, result: self.results.append((key, result)),
            interval_s=lambda key: interval_s,
            connect=self._connect,
            max_probes=max_probes,
        )

    def _connect(
        self, settings: BackendSettings, hello: bytes, deadlines: Deadlines, owner: Subject
    ) -> ProbeConnection:
        assert settings.key not in [puppet.settings.key for puppet in self.live], "probes overlap"
        puppet = Puppet(self, settings, hello, owner)
        self.live.append(puppet)
        self.count += 1
        return puppet

    def ended(self, puppet: Puppet) -> None:
        assert not puppet.ended
        puppet.ended = True
        self.live.remove(puppet)

    def start(self) -> Probing:
        self.prober.start(LOOP)
        return self

    @property
    def only(self) -> Puppet:
        (puppet,) = self.live
        return puppet

    @property
    def texts(self) -> list[str]:
        return [("+ " if result.passed else "- ") + result.text for _, result in self.results]


A = backend("p", "a")


def many(count: int) -> list[BackendSettings]:
    return [backend("p", f"b{number}") for number in range(count)]


def test_every_backend_is_probed_at_once_when_checks_start() -> None:
    assert len(Probing(*many(5)).start().live) == 5


def test_backends_whose_checks_are_off_are_never_probed() -> None:
    probing = Probing(backend("p", "a", level=CheckLevel.OFF)).start()
    assert probing.live == []
    assert probing.prober.first_round_over.is_set()
    assert probing.prober.next_in_s(("p", "a")) is None


def test_a_success_is_told_before_the_221_and_the_probe_ends_with_it() -> None:
    probing = Probing(A).start()
    probing.only.ready()
    assert probing.texts == ["+ 250 mx at your service"]
    assert probing.only.quitting
    assert probing.prober.held == 1
    probing.only.close()
    assert probing.prober.held == 0


def test_the_next_probe_starts_an_interval_after_the_result() -> None:
    probing = Probing(A, interval_s=10).start()
    probing.only.ready()
    probing.only.close()
    assert probing.prober.next_in_s(A.key) == pytest.approx(10)
    probing.clock.go(9.8)
    assert probing.live == []
    probing.clock.go(0.3)
    assert len(probing.live) == 1


def test_a_backend_slow_to_say_221_is_not_probed_until_it_has() -> None:
    probing = Probing(A, interval_s=1).start()
    probing.only.ready()
    probing.clock.go(4)
    assert probing.count == 1
    probing.only.close()
    assert probing.count == 2


def test_a_probe_that_hangs_is_cut_at_its_timeout() -> None:
    probing = Probing(backend("p", "a", check=CheckSettings(timeout_s=8))).start()
    probing.clock.go(7.9)
    assert probing.results == []
    probing.clock.go(0.2)
    assert probing.texts == ["- no greeting within 8 s"]
    assert probing.live == []
    probing.clock.go(10)
    probing.only.greet()
    probing.clock.go(8.2)
    assert probing.texts[1] == "- no answer to EHLO within 8 s"


def test_the_221_may_come_after_the_timeout_of_the_check() -> None:
    probing = Probing(backend("p", "a", check=CheckSettings(timeout_s=1))).start()
    probing.only.ready()
    probing.clock.go(3)
    probing.only.close()
    assert probing.texts == ["+ 250 mx at your service"]


def test_no_phase_outlasts_the_probe_and_connecting_ends_before_it() -> None:
    probing = Probing(backend("p", "a", check=CheckSettings(timeout_s=2))).start()
    timeouts = probing.only.settings.timeouts
    assert timeouts.connect_s < 2
    assert timeouts.greeting_s == 2


def test_the_name_in_ehlo_is_the_checks_own_or_else_our_host_name() -> None:
    own = backend("p", "b", check=CheckSettings(hello="check.test"))
    probing = Probing(A, own).start()
    assert [puppet.hello for puppet in probing.live] == [b"lb1.test", b"check.test"]


class TestLevels:
    @pytest.mark.parametrize(
        ("level", "phase", "text"),
        [
            (CheckLevel.TCP, Phase.CONNECT, "- Connection refused"),
            (CheckLevel.TCP, Phase.GREETING, "+ connected"),
            (CheckLevel.TCP, Phase.HELLO, "+ connected"),
            (CheckLevel.BANNER, Phase.CONNECT, "- Connection refused"),
            (CheckLevel.BANNER, Phase.GREETING, "- connection closed before the greeting"),
            (CheckLevel.BANNER, Phase.HELLO, "+ 220 mx ESMTP"),
            (CheckLevel.EHLO, Phase.CONNECT, "- Connection refused"),
            (CheckLevel.EHLO, Phase.GREETING, "- connection closed before the greeting"),
            (CheckLevel.EHLO, Phase.HELLO, "- connection closed before the answer to EHLO"),
        ],
    )
    def test_how_far_a_backend_must_come(self, level: CheckLevel, phase: Phase, text: str) -> None:
        probing = Probing(backend("p", "a", level=level)).start()
        if phase is Phase.HELLO:
            probing.only.greet()
        probing.only.fail(phase, Reason.CONNECT if phase is Phase.CONNECT else Reason.LOST)
        assert probing.texts == [text]

    @pytest.mark.parametrize(
        ("level", "text"),
        [
            (CheckLevel.TCP, "+ connected"),
            (CheckLevel.BANNER, "+ 220 mx ESMTP"),
            (CheckLevel.EHLO, "+ 250 mx at your service"),
        ],
    )
    def test_what_a_success_says(self, level: CheckLevel, text: str) -> None:
        probing = Probing(backend("p", "a", level=level)).start()
        probing.only.ready()
        assert probing.texts == [text]

    def test_a_refusal_is_told_in_the_backends_words_at_every_level_that_it_fails(self) -> None:
        for level in (CheckLevel.BANNER, CheckLevel.EHLO):
            probing = Probing(backend("p", "a", level=level)).start()
            reply = Reply(421, [b"4.3.2 All server ports are busy"])
            probing.only.fail(Phase.GREETING, Reason.GREETING, reply)
            assert probing.texts == ["- 421 4.3.2 All server ports are busy"]

    def test_a_silent_backend_passes_a_tcp_check_at_its_timeout(self) -> None:
        probing = Probing(backend("p", "a", level=CheckLevel.TCP)).start()
        probing.clock.go(8.1)
        assert probing.texts == ["+ connected"]


class TestManyAtOnce:
    def test_three_hundred_backends_never_have_more_than_the_limit_under_way(self) -> None:
        probing = Probing(*many(300), max_probes=64).start()
        assert len(probing.live) == 64
        for _ in range(300):
            probing.live[0].fail()
            assert len(probing.live) <= 64
        assert len(probing.results) == 300
        assert {key for key, _ in probing.results} == {backend.key for backend in many(300)}
        assert probing.prober.first_round_over.is_set()

    def test_a_probe_that_waits_for_its_221_holds_its_place(self) -> None:
        probing = Probing(*many(2), max_probes=1).start()
        probing.only.ready()
        assert probing.count == 1
        probing.only.close()
        assert probing.count == 2

    def test_those_that_hang_do_not_keep_the_others_from_their_first_check_forever(self) -> None:
        probing = Probing(*many(100), max_probes=10).start()
        probing.clock.go(85)
        assert len({key for key, _ in probing.results}) == 100


class TestSetAside:
    def test_a_backend_set_aside_is_probed_no_more_and_at_once_when_it_is_back(self) -> None:
        probing = Probing(A).start()
        probing.only.fail()
        probing.prober.want(A.key, False)
        probing.clock.go(100)
        assert probing.count == 1
        assert probing.prober.next_in_s(A.key) is None
        probing.prober.want(A.key, True)
        assert probing.count == 2

    def test_a_probe_under_way_ends_in_peace_and_counts_no_more(self) -> None:
        probing = Probing(A).start()
        probing.prober.want(A.key, False)
        probing.only.ready()
        assert probing.only.quitting
        probing.only.close()
        assert probing.results == []
        probing.clock.go(100)
        assert probing.count == 1

    def test_after_a_short_absence_the_result_of_the_old_probe_is_not_taken(self) -> None:
        probing = Probing(A).start()
        probing.prober.want(A.key, False)
        probing.prober.want(A.key, True)
        probing.only.ready()
        probing.only.close()
        assert probing.results == []
        assert probing.count == 2

    def test_one_set_aside_before_checks_start_is_left_out(self) -> None:
        probing = Probing(A, backend("p", "b"))
        probing.prober.want(A.key, False)
        probing.start()
        assert probing.only.settings.name == "b"

    def test_the_first_round_does_not_wait_for_it(self) -> None:
        probing = Probing(A, backend("p", "b")).start()
        probing.live[1].fail()
        assert not probing.prober.first_round_over.is_set()
        probing.prober.want(A.key, False)
        assert probing.prober.first_round_over.is_set()


class TestStop:
    async def test_probes_under_way_end_with_quit(self) -> None:
        probing = Probing(*many(3), max_probes=2).start()
        stopping = asyncio.ensure_future(probing.prober.stop(60))
        await asyncio.sleep(0)
        for puppet in probing.live.copy():
            puppet.ready()
            puppet.close()
        await stopping
        assert (probing.count, probing.results) == (2, [])
        probing.clock.go(100)
        assert probing.count == 2

    async def test_a_probe_that_was_refused_has_a_result_and_is_waited_for(self) -> None:
        """Its QUIT is on its way: an end before the 221 is a lost connection in the backend's log."""
        probing = Probing(*many(2)).start()
        refused, other = probing.live
        refused.refuse()
        other.fail()
        assert len(probing.results) == 2
        stopping = asyncio.ensure_future(probing.prober.stop(60))
        await asyncio.sleep(0)
        assert not stopping.done()
        refused.gone()
        await stopping
        assert probing.prober.held == 0

    async def test_a_probe_that_was_refused_is_cut_like_any_other(self) -> None:
        probing = Probing(A).start()
        probing.only.refuse()
        puppet = probing.only
        await probing.prober.stop(0.01)
        assert puppet.ended
        assert puppet.when_gone is None

    async def test_what_has_not_ended_in_time_is_cut(self) -> None:
        probing = Probing(*many(3)).start()
        await probing.prober.stop(0.01)
        assert probing.live == []
        assert probing.prober.held == 0


steps = st.lists(
    st.tuples(
        st.sampled_from(["ready", "fail", "refuse", "close", "go", "aside", "back"]), st.integers(0, 7)
    ),
    max_size=80,
)


@given(steps)
def test_law_whatever_happens_one_probe_for_a_backend_and_no_more_than_the_limit(
    happenings: list[tuple[str, int]],
) -> None:
    backends = many(8)
    probing = Probing(*backends, max_probes=3, interval_s=1.0).start()
    for what, number in happenings:
        key = backends[number].key
        puppet = probing.live[number % len(probing.live)] if probing.live else None
        match what:
            case "ready" if puppet and not puppet.quitting and not puppet.leaving:
                puppet.ready()
            case "fail" if puppet and not puppet.quitting and not puppet.leaving:
                puppet.fail()
            case "refuse" if puppet and not puppet.quitting and not puppet.leaving:
                puppet.refuse()
            case "close" if puppet and puppet.leaving:
                puppet.gone()
            case "close" if puppet and puppet.quitting:
                puppet.close()
            case "go":
                probing.clock.go(number / 2)
            case "aside":
                probing.prober.want(key, False)
            case "back":
                probing.prober.want(key, True)
        assert (
            probing.prober.held == len(probing.live) <= 3
        )  # overlapping is asserted where connections are made
        subjects = probing.prober._subjects.values()
        assert sum(subject.stage in (Stage.PROBING, Stage.CLOSING) for subject in subjects) == len(
            probing.live
        )
        if len(probing.live) < 3:
            assert not [subject for subject in subjects if subject.stage is Stage.DUE]
