"""Connections of one backend, by state. A connection is in exactly one container; only _move() changes that.

Owns opening, keeping, handing out and retiring connections, and who waits for one. Choosing a backend is pool.py's.
Invariant: a connection that is handed out owes nothing and has one holder; waiters are served in order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from smtplb.compiled import mypyc_attr
from smtplb.dataplane.binding import Binding
from smtplb.dataplane.connection import Connection, Failure, Holder, State
from smtplb.dataplane.deadlines import NEVER
from smtplb.dataplane.reply_counts import ReplyCounts
from smtplb.dataplane.runtime import Runtime
from smtplb.dataplane.scoreboard import Scoreboard
from smtplb.dataplane.warming import Warming
from smtplb.messages import BackendKey, BackendReport, BackendStanding, BackendState
from smtplb.observe.histogram import Histogram
from smtplb.observe.outcomes import AttemptOutcome, Phase
from smtplb.policy.outcome import ERRORS_BEFORE_A_421_IS_OURS, Reason
from smtplb.settings import BackendSettings, BackTlsMode, BalancePer, IdentityMode, PoolSettings
from smtplb.smtp.extensions import offered_size

REFUSED_CLIENTS: Final = 20  # remembered between two pulses; policy/black_hole.py asks for 10
RESETS_WITHOUT_A_MESSAGE: Final = (
    5  # servers count commands without mail (Exim smtp_accept_max_nonmail 10, Postfix junk)
)
CLEAR_AFTER_FAILED_TLS_S: Final = (
    600.0  # opportunistic: how long a failed handshake is remembered (design 4.4)
)


@mypyc_attr(allow_interpreted_subclasses=True)
class Seeker(Holder):
    """Who asks for a lease. Exactly one of the two follows a lease() that returned None, unless cancel() comes first.

    wants_fresh   only a connection that was never used will do
    binding       of the session; it decides which connections may be used at all
    """

    __slots__ = ("binding", "wants_fresh")

    def __init__(self, binding: Binding, *, wants_fresh: bool) -> None:
        super().__init__()
        self.binding = binding
        self.wants_fresh = wants_fresh

    @abstractmethod
    def lease_granted(self, connection: Connection) -> None: ...

    @abstractmethod
    def lease_failed(self, failure: Failure) -> None: ...


def _is_pinned(connection: Connection) -> bool:
    """A client was authenticated on it."""
    return connection.binding is not None and connection.binding.pinned_on is connection


class Backend:
    """One MTA address as a worker sees it."""

    __slots__ = (
        "_binds",
        "_bound",
        "_clear_until_s",
        "_connecting",
        "_idle",
        "_idle_timeout_s",
        "_leased",
        "_leaving",
        "_max_age_s",
        "_max_transactions",
        "_most_idle",
        "_quitting",
        "_resetting",
        "_runtime",
        "_seekers",
        "_shared",
        "_taken_out",
        "adds_received",
        "attempts",
        "budget",
        "dismissed",
        "final_s",
        "key",
        "offers",
        "on_room",
        "per_session",
        "refused_clients",
        "replies",
        "reuse",
        "settings",
        "standing",
        "tells_by_xforward",
        "timeouts",
        "warming",
    )

    def __init__(
        self,
        runtime: Runtime,
        settings: BackendSettings,
        pool: PoolSettings,
        scoreboard: Scoreboard | None = None,
    ) -> None:
        self._runtime = runtime
        # Shared with other workers; None: there are none.
        self._shared = scoreboard.view(settings.key) if scoreboard is not None else None
        self.settings = settings
        self.tells_by_xforward = settings.identity is IdentityMode.XFORWARD
        self._learn_limits()
        self._taken_out = False  # by the operator: DRAIN or MAINT
        self.budget = pool.budget
        self._binds = settings.identity.binds
        self.adds_received = settings.adds_received
        self.per_session = pool.balance_per is BalancePer.SESSION
        self.key: BackendKey = settings.key
        self.standing = BackendStanding(
            BackendState.UNPROVEN, usable=False, last_resort=True, weight=settings.weight
        )
        self._connecting: set[Connection] = set()
        self._idle: list[Connection] = []  # a stack: the last used is used first, the others may expire
        self._leased: set[Connection] = set()
        self._bound: set[Connection] = set()
        self._resetting: set[Connection] = set()
        self._quitting: set[Connection] = set()
        self._leaving: set[Connection] = set()  # did not come up, and say QUIT
        self._seekers: deque[Seeker] = deque()
        self._clear_until_s = 0.0
        self.dismissed = False  # a reload took it out: what is under way ends, and nothing is kept
        self.on_room: Callable[[], None] | None = None  # told when a further lease has become possible
        self.offers: dict[bytes, bytes] | None = None  # keywords of its last EHLO, a check's or ours
        # What carries a client's identity cannot be opened before the client is known.
        self.warming = self._warming()
        # counters, read when a report is asked for
        self.attempts: dict[AttemptOutcome, int] = dict.fromkeys(AttemptOutcome, 0)
        self.replies = ReplyCounts()
        self.reuse = {"new": 0, "reused": 0, "stale": 0}
        self.final_s = Histogram()
        self.refused_clients: set[str] = set()  # some whose recipients it refused, since that was last told

    # -- what policies see -------------------------------------------------------------------------

    @property
    def weight(self) -> int:
        return self.standing.weight

    @property
    def in_flight(self) -> int:
        """Attempts under way, those that wait for a connection included; other workers' too."""
        return self.in_use + (0 if self._shared is None else self._shared.in_flight_elsewhere)

    @property
    def in_use(self) -> int:
        """This worker's part of in_flight."""
        return len(self._leased) + len(self._seekers)

    @property
    def verifies_tls(self) -> bool:
        tls = self.settings.tls
        return tls.mode in (BackTlsMode.REQUIRED, BackTlsMode.IMPLICIT) and tls.verify

    def lacks(self, needs: frozenset[bytes], size_bytes: int) -> bool:
        """By its last EHLO it cannot take a transaction that needs these; unknown counts as able, the lease will tell."""
        offers = self.offers
        if offers is None:
            return False
        if needs and not all(need in offers for need in needs):
            return True
        return bool(size_bytes and 0 < offered_size(offers) < size_bytes)

    @property
    def connections(self) -> int:
        """Every connection that the backend sees, those that are ending included."""
        return (
            len(self._connecting)
            + len(self._idle)
            + len(self._bound)
            + len(self._leased)
            + len(self._resetting)
            + len(self._quitting)
            + len(self._leaving)
        )

    def has_room(self, binding: Binding) -> bool:
        """A lease is to be had without waiting for somebody else's to end. Idle ones of others make room for it."""
        limit = self.settings.max_connections
        if limit is None or binding.kept.get(self) is not None:
            return True
        idle = len(self._idle) + sum(not _is_pinned(connection) for connection in self._bound)
        spare = limit - self._connections_of_all + idle + len(self._connecting)
        return spare > len(self._seekers)

    # -- ahead of need (warming.py) ----------------------------------------------------------------

    def _warming(self) -> Warming | None:
        warm = 0 if self.settings.identity.binds else self.settings.connections.warm
        return Warming(self, warm) if warm else None

    @property
    def usable(self) -> bool:
        return self.standing.usable

    @property
    def ready(self) -> int:
        return len(self._idle)

    @property
    def coming(self) -> int:
        return len(self._connecting) - self._wanting

    def open_ahead(self) -> bool:
        """Not while another worker's transactions wait for room here."""
        shared = self._shared
        if (shared is not None and shared.waiting_elsewhere) or not self._below_limit():
            return False
        self._open(None)
        return True

    # -- leases ------------------------------------------------------------------------------------

    def lease(self, seeker: Seeker) -> Connection | None:
        """A kept connection at once, or None: then the seeker is told later, never inside this call."""
        connection = self._kept_for(seeker)
        if connection is not None:
            self.reuse["reused"] += 1
            self._move(connection, State.LEASED)
            connection.leased(seeker)
            return connection
        self._seekers.append(seeker)
        self._make_room()
        self._open_for_seekers()
        self._share()
        return None

    def _make_room(self) -> None:
        """At the limit, an idle connection that no seeker can use ends for the sake of one."""
        limit = self.settings.max_connections
        if limit is None or self._connections_of_all < limit:
            return
        if len(self._quitting) + len(self._connecting) >= self._wanting:
            return  # there will be room enough
        for connection in [*self._idle, *self._bound]:
            if not _is_pinned(connection):
                self.retire(connection)
                return

    @property
    def _wanting(self) -> int:
        """Seekers that a new connection would serve. One whose client is authenticated waits for its own."""
        return sum(seeker.binding.pinned is not self for seeker in self._seekers)

    def _kept_for(self, seeker: Seeker) -> Connection | None:
        binding = seeker.binding
        if self._binds or binding.pinned is self:
            bound = cast("Connection | None", binding.kept.get(self))
            if bound is not None and seeker.wants_fresh and binding.pinned is not self:
                self.retire(bound)
                return None
            return bound
        return self._idle[-1] if self._idle and not seeker.wants_fresh else None

    def cancel(self, seeker: Seeker) -> None:
        """The seeker no longer wants a connection. One that is coming up for it is kept."""
        self._seekers.remove(seeker)
        self._share()
        if self.on_room is not None:  # what would have been its connection
            self.on_room()

    def release(self, connection: Connection) -> None:
        """The holder is done and the connection is well; what is still due on it is swallowed, an open transaction reset."""
        if connection.state is not State.LEASED:
            return  # it ended meanwhile
        connection.drop_unsent()
        if self._worn(connection):
            self.retire(connection)
        elif connection.owes_nothing:
            connection.holder = None
            self._offer(connection)
        else:
            self._move(connection, State.RESETTING)
            connection.released()

    def retire(self, connection: Connection) -> None:
        """End it in peace: QUIT. Not after a 354 without a terminator."""
        if connection.state in (State.QUITTING, State.CLOSED):
            return
        self._unbind(connection)
        self._unpin(connection)
        self._move(connection, State.QUITTING)
        connection.quit()

    def abort(self, connection: Connection) -> None:
        """End it at once, so that nothing that was begun can be completed."""
        self._forget(connection)
        connection.abort()
        self._open_for_seekers()

    # -- state from the control plane --------------------------------------------------------------

    def stand(self, standing: BackendStanding) -> None:
        """Take a new standing. A backend that the operator took out keeps no idle connection."""
        self.standing = standing
        self._taken_out = standing.state in (BackendState.DRAIN, BackendState.MAINT)
        if standing.offers is not None:
            self.offers = standing.offers
        if self._taken_out:
            self.retire_idle()

    def change(self, settings: BackendSettings, pool: PoolSettings) -> None:
        """New settings by which it is reached as before: its connections stay."""
        warm, self.settings = self.settings.connections.warm, settings
        self._learn_limits()
        if warm != settings.connections.warm:
            self.warming = self._warming()
        self.budget = pool.budget
        self.per_session = pool.balance_per is BalancePer.SESSION
        self._open_for_seekers()  # there may be more room now

    def _learn_limits(self) -> None:
        """What each message asks for, as plain attributes."""
        self.timeouts = self.settings.timeouts
        limits = self.settings.connections
        self._most_idle = limits.idle
        self._idle_timeout_s = limits.idle_timeout_s
        self._max_age_s = limits.max_age_s
        self._max_transactions = limits.max_transactions

    def count_like(self, former: Backend) -> None:
        """Go on with the counters of one of the same name, together with what is still under way there."""
        self.attempts, self.replies, self.reuse = former.attempts, former.replies, former.reuse
        self.final_s = former.final_s

    def dismiss(self) -> None:
        """It is no longer in the configuration, or is reached in another way. Authenticated connections end as well: a further
        transaction would have nowhere to go."""
        self.dismissed = True
        for connection in [*self._idle, *self._bound]:
            self.retire(connection)

    def retire_idle(self) -> None:
        for connection in [*self._idle, *self._bound]:
            if not _is_pinned(connection):
                self.retire(connection)

    def close(self) -> None:
        """End every connection; transactions must have ended."""
        groups = (
            self._connecting,
            self._idle,
            self._bound,
            self._leased,
            self._resetting,
            self._quitting,
            self._leaving,
        )
        for connection in [connection for group in groups for connection in group]:
            connection.when_gone = None
            self._forget(connection)
            connection.abort()

    def refused(self, client: str) -> None:
        """It refused a recipient of this client."""
        if len(self.refused_clients) < REFUSED_CLIENTS:
            self.refused_clients.add(client)

    @property
    def holders(self) -> list[Holder]:
        return [connection.holder for connection in self._leased if connection.holder is not None]

    def report(self) -> BackendReport:
        return BackendReport(
            pool=self.settings.pool,
            backend=self.settings.name,
            in_flight=self.in_use,
            idle=len(self._idle) + len(self._bound),
            leased=len(self._leased),
            connecting=len(self._connecting),
            attempts={outcome.value: count for outcome, count in self.attempts.items()},
            replies=self.replies.by_phase(),
            reuse=dict(self.reuse),
            final=self.final_s.copy(),
        )

    # -- owner of connections ----------------------------------------------------------------------

    def connection_ready(self, connection: Connection) -> None:
        self.reuse["new"] += 1
        self.offers = connection.capabilities.keywords
        self._offer(connection)

    def connection_failed(self, connection: Connection, failure: Failure) -> None:
        self._connecting.discard(connection)
        if connection.leaving:
            self._leaving.add(connection)
            connection.when_gone = lambda: self._left(connection)
        self._share()
        if (
            failure.reason is Reason.TLS
            and self.settings.tls.mode is BackTlsMode.OPPORTUNISTIC
            and not connection.clear
        ):
            self._clear_until_s = self._runtime.deadlines.clock() + CLEAR_AFTER_FAILED_TLS_S
        else:
            if self.warming is not None:
                self.warming.failed(self._runtime.deadlines.clock())
            if connection.binding is not None or self.coming < 0:  # else enough of them are still coming
                self._tell_one_seeker(connection, failure)
        self._open_for_seekers()

    def _tell_one_seeker(self, connection: Connection, failure: Failure) -> None:
        for seeker in self._seekers:
            if self._may_use(seeker, connection):
                self._seekers.remove(seeker)
                self._share()
                seeker.lease_failed(failure)
                return

    def _left(self, connection: Connection) -> None:
        self._leaving.discard(connection)
        self._share()
        self._open_for_seekers()

    def connection_cleared(self, connection: Connection) -> None:
        if self._worn(connection):
            self.retire(connection)
        else:
            self._offer(connection)

    def connection_expired(self, connection: Connection) -> None:
        self.retire(connection)

    def connection_closed(self, connection: Connection) -> None:
        # connection.state is CLOSED by now: look everywhere, this is rare.
        if self.warming is not None and not connection.transactions and connection in self._idle:
            self.warming.failed(self._runtime.deadlines.clock())
        self._forget(connection)
        self._open_for_seekers()

    # -- inside ------------------------------------------------------------------------------------

    def _worn(self, connection: Connection) -> bool:
        """Not to be kept: too old, too often used, disliked by the backend, or the backend is being taken out."""
        if self.dismissed:
            return True
        if _is_pinned(connection):
            return False  # authenticated: it cannot be replaced
        mail_max = connection.capabilities.mail_max
        return (
            (mail_max is not None and connection.transactions >= mail_max)
            or connection.transactions >= self._max_transactions
            or connection.errors >= ERRORS_BEFORE_A_421_IS_OURS
            or connection.resets >= RESETS_WITHOUT_A_MESSAGE
            or self._runtime.deadlines.clock() - connection.born_s >= self._max_age_s
            or self._taken_out
        )

    def _offer(self, connection: Connection) -> None:
        """It is free: to the first who waits for such a one, else to those that are kept while there is room."""
        binding = connection.binding
        for seeker in self._seekers:
            if self._may_use(seeker, connection) and (connection.transactions == 0 or not seeker.wants_fresh):
                self._seekers.remove(seeker)
                self._move(connection, State.LEASED)
                connection.leased(seeker)
                seeker.lease_granted(connection)
                if self.on_room is not None:  # what was coming up for that one can be had
                    self.on_room()
                return
        if self._worn(connection):
            self.retire(connection)
            return
        if binding is not None:
            if not binding.alive or self in binding.kept:
                self.retire(connection)
                return
            binding.kept[self] = connection
            self._move(connection, State.BOUND)
        elif len(self._idle) >= self._most_idle or (
            self._shared is not None and self._shared.waiting_elsewhere
        ):
            self.retire(connection)
            return
        else:
            self._move(connection, State.IDLE)
        now = self._runtime.deadlines.clock()
        if _is_pinned(connection):
            connection.keep_until(
                NEVER
            )  # authenticated: it ends with the session, or when the backend ends it
        else:
            connection.keep_until(min(now + self._idle_timeout_s, connection.born_s + self._max_age_s))
            if self._seekers:  # none of them can use it
                self._make_room()
        if self.on_room is not None:
            self.on_room()

    def _open_for_seekers(self) -> None:
        """One connection under way for each seeker; where a connection carries an identity, one of the seeker's own."""
        if not self._binds:
            while len(self._connecting) < self._wanting and self._below_limit():
                self._open(None)
        else:
            under_way = {connection.binding for connection in self._connecting}
            for seeker in self._seekers:
                wants = seeker.binding.pinned is not self and seeker.binding not in under_way
                if wants and self._below_limit():
                    self._open(seeker.binding)
        if self.on_room is not None:
            self.on_room()

    @property
    def _connections_of_all(self) -> int:
        own = self.connections
        return own if self._shared is None else own + self._shared.connections_elsewhere

    def _below_limit(self) -> bool:
        """One more connection may be opened. Among workers: add first, then look, and undo if it was too many."""
        limit = self.settings.max_connections
        shared = self._shared
        if limit is None:
            return True
        if shared is None:
            return self.connections < limit
        shared.set_connections(self.connections + 1)
        allowed = self._connections_of_all < limit
        if not allowed:
            shared.set_connections(self.connections)
        return allowed

    def look_for_room(self) -> bool:
        """Another worker may have left some. True while somebody waits here."""
        if self._seekers:
            self._open_for_seekers()
        return bool(self._seekers)

    def yield_room(self, queued: int) -> None:
        """Among workers: tell how many wait here, and give up an idle connection while another worker's wait."""
        shared = self._shared
        if shared is None or self.settings.max_connections is None:
            return
        shared.set_waiting(queued + len(self._seekers))
        if (
            self._idle
            and shared.waiting_elsewhere
            and self._connections_of_all >= self.settings.max_connections
        ):
            self.retire(self._idle[0])

    def _share(self) -> None:
        """What other workers have to know of this one."""
        shared = self._shared
        if shared is not None:
            shared.set_connections(self.connections)
            shared.set_in_flight(self.in_use)

    def _open(self, binding: Binding | None) -> None:
        runtime = self._runtime
        connection = Connection(
            self.settings,
            hello=runtime.hello,
            deadlines=runtime.deadlines,
            outbox=runtime.outbox,
            owner=self,
            binding=binding,
            clear=self._clear_until_s > runtime.deadlines.clock(),
        )
        self._connecting.add(connection)
        connection.open(runtime.loop)
        self._share()

    def _unbind(self, connection: Connection) -> None:
        binding = connection.binding
        if binding is not None and binding.kept.get(self) is connection:
            del binding.kept[self]

    def _unpin(self, connection: Connection) -> None:
        """It ends: nobody else knows the client that was authenticated on it."""
        binding = connection.binding
        if binding is None or binding.pinned_on is not connection:
            return
        binding.pinned_on = None
        for seeker in self._seekers:
            if seeker.binding is binding:
                self._seekers.remove(seeker)
                seeker.lease_failed(
                    Failure(Phase.RSET, Reason.LOST, b"authenticated connection lost", identity_sent=True)
                )
                break

    def _may_use(self, seeker: Seeker, connection: Connection) -> bool:
        """Identity and authentication allow it (design 4.11)."""
        if seeker.binding.pinned is self:
            return seeker.binding.pinned_on is connection
        return connection.binding is None or connection.binding is seeker.binding

    def _move(self, connection: Connection, state: State) -> None:
        if connection.state is State.BOUND:
            self._unbind(connection)
        self._container(connection.state).remove(connection)
        connection.state = state
        container = self._container(state)
        if isinstance(container, list):
            container.append(connection)
        else:
            container.add(connection)
        self._share()

    def _container(self, state: State) -> set[Connection] | list[Connection]:
        match state:
            case State.LEASED:
                return self._leased
            case State.IDLE:
                return self._idle
            case State.BOUND:
                return self._bound
            case State.CONNECTING:
                return self._connecting
            case State.RESETTING:
                return self._resetting
            case State.QUITTING:
                return self._quitting
        raise AssertionError(f"no container for {state}")

    def _forget(self, connection: Connection) -> None:
        self._unbind(connection)
        self._remove(connection)
        self._unpin(connection)
        self._share()

    def _remove(self, connection: Connection) -> None:
        for container in (
            self._connecting,
            self._bound,
            self._leased,
            self._resetting,
            self._quitting,
            self._leaving,
        ):
            container.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
