"""A state machine over Backend, Pool, Queue and Search: connections are fakes whose fate hypothesis decides.

What must hold after every step: containers part the connections, no lease is shared, nothing idle owes a reply, no identity
meets another session, no more connections than allowed, nobody waits while there is room, and who waits is served in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from smtplb.dataplane.backend import Backend, Seeker
from smtplb.dataplane.binding import Binding
from smtplb.dataplane.connection import Connection, Failure, Holder, Owner, State
from smtplb.dataplane.deadlines import Deadlines
from smtplb.dataplane.identity import Identity
from smtplb.dataplane.outbox import Outbox
from smtplb.dataplane.pool import Pool
from smtplb.dataplane.router import Target
from smtplb.dataplane.runtime import Runtime
from smtplb.dataplane.search import Search
from smtplb.dataplane.waiting import Place
from smtplb.messages import BackendStanding, BackendState
from smtplb.observe.outcomes import Phase
from smtplb.policy.outcome import Reason
from smtplb.settings import (
    Address,
    BackendSettings,
    ConnectionSettings,
    IdentityMode,
    PoolSettings,
    QueueSettings,
)
from smtplb.smtp.extensions import Capabilities
from tests.compiled import interpreted_only
from tests.dataplane.fakes import FakeLoop
from tests.effort import examples

pytestmark = interpreted_only

QUEUE_LENGTH = 4
READY = (State.IDLE, State.BOUND, State.LEASED, State.RESETTING, State.QUITTING)


class FakeConnection:
    """What Backend asks of a Connection; what happens to it the machine says."""

    made: list[FakeConnection] = []

    def __init__(
        self,
        settings: BackendSettings,
        *,
        hello: bytes,
        deadlines: Deadlines,
        outbox: Outbox,
        owner: Owner,
        binding: Binding | None,
        clear: bool,
    ) -> None:
        self.settings = settings
        self.owner = owner
        self.binding = binding
        self.clear = clear
        self.state = State.CONNECTING
        self.holder: Holder | None = None
        self.transactions = 0
        self.errors = 0
        self.resets = 0
        self.born_s = deadlines.clock()
        self.capabilities = Capabilities()
        self.transaction_open = False
        self.owes = False
        self.served: set[Binding] = set()
        self.leaving = False
        self.when_gone: Callable[[], None] | None = None
        self.made.append(self)

    def open(self, loop: object) -> None: ...

    def leased(self, holder: Holder) -> None:
        assert self.state is State.LEASED
        assert self.holder is None, "a lease is shared"
        assert self.owes_nothing
        self.holder = holder
        self.transactions += 1
        assert isinstance(holder, Txn)
        self.served.add(holder.binding)

    @property
    def owes_nothing(self) -> bool:
        return not self.owes and not self.transaction_open

    def drop_unsent(self) -> list[object]:
        return []

    def released(self) -> None:
        assert self.state is State.RESETTING
        self.holder, self.transaction_open, self.owes = None, False, True

    def quit(self) -> None:
        assert self.state is State.QUITTING
        self.holder, self.owes = None, True

    def abort(self) -> None:
        self.state, self.holder = State.CLOSED, None

    def keep_until(self, deadline_s: float) -> None:
        assert self.owes_nothing
        assert self.holder is None

    def no_longer_wanted(self) -> None:
        if self.state is State.BOUND:
            self.owner.connection_expired(cast("Connection", self))


class Txn(Seeker):
    """A transaction, as far as leases go: what course.py and attempt.py do about them, and nothing else."""

    def __init__(self, machine: Machine, binding: Binding, *, auth: bool = False) -> None:
        super().__init__(binding, wants_fresh=auth)
        self.machine = machine
        self.auth = auth
        self.search = Search(machine.target, binding, 3, frozenset(), 0, None)
        self.backend: Backend | None = None  # where it seeks or has a lease
        self.connection: FakeConnection | None = None
        self.place: Place | None = None
        self.over = ""

    def start(self) -> None:
        backend = self.search.next_backend()
        if backend is not None:
            self._begin(backend)
        elif self.search.busy:
            self.place = self.machine.target.queue.join(self)
            if self.place is None:
                self.over = "queue full"
            else:
                self.machine.queued.append(self)
        else:
            self.over = "nobody left"

    def _begin(self, backend: Backend) -> None:
        self.backend = backend
        connection = backend.lease(self)
        if connection is not None:
            self._hold(connection)

    def _hold(self, connection: Connection) -> None:
        assert not self.over
        assert self.connection is None
        self.connection = cast("FakeConnection", connection)

    # Seeker and Holder
    def lease_granted(self, connection: Connection) -> None:
        self._hold(connection)

    def lease_failed(self, failure: Failure) -> None:
        assert self.connection is None
        self.backend = None
        if self.auth or self.search.attempts.count >= 3 or not self.search.another_left:
            self.over = "failed"
        else:
            self.start()

    def connection_broken(self, connection: Connection, failure: Failure) -> None:
        assert self.connection is cast("Any", connection)
        self.connection, self.backend, self.over = None, None, "broken"

    def reply_received(self, *_: object) -> None: ...
    def replies_done(self) -> None: ...
    def backend_writable(self, writable: bool) -> None: ...

    # Waiting
    @property
    def choosy(self) -> bool:
        return self.search.choosy

    def room_found(self) -> bool:
        backend = self.search.next_backend()
        if backend is None:
            return False
        before = [t for t in self.machine.queued[: self.machine.queued.index(self)] if not t.choosy]
        assert not before, "somebody who waited longer was passed over"
        self.machine.queued.remove(self)
        self.place = None
        self._begin(backend)
        return True

    def waited_too_long(self) -> None:
        self.machine.queued.remove(self)
        self.place, self.over = None, "queue timeout"

    def leave(self) -> None:
        """The client reset it, or is gone."""
        if self.place is not None:
            self.machine.target.queue.leave(self.place)
            self.machine.queued.remove(self)
            self.place = None
        elif self.connection is None and self.backend is not None:
            self.backend.cancel(self)
        self.over = self.over or "left"


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        FakeConnection.made = []
        self._patch = mock.patch("smtplb.dataplane.backend.Connection", FakeConnection)
        self._patch.start()
        self.now = 1000.0
        self.deadlines = Deadlines(
            lambda: self.now, lambda delay, callback: cast("asyncio.TimerHandle", mock.Mock())
        )
        self.txns: dict[Binding, Txn] = {}
        self.alive: list[Binding] = []
        self.queued: list[Txn] = []
        self.states: dict[str, BackendState] = {}

    def teardown(self) -> None:
        self._patch.stop()

    @initialize(
        identity=st.sampled_from([IdentityMode.NONE, IdentityMode.XCLIENT]),
        names=st.sampled_from(["a", "a", "ab"]),
        limit=st.sampled_from([1, 2, 2, 3, None]),
        idle=st.sampled_from([0, 1, 5]),
        warm=st.sampled_from([0, 0, 1, 3]),
        polite=st.booleans(),
    )
    def begin(
        self, identity: IdentityMode, names: str, limit: int | None, idle: int, warm: int, polite: bool
    ) -> None:
        self.logins_wait_for_room = polite
        self.limit, self.binds = limit, identity.binds
        self.states = dict.fromkeys(names, BackendState.UP)
        runtime = Runtime(
            FakeLoop().as_loop,
            self.deadlines,
            lambda event: None,
            log=lambda event: None,
            hello=b"lb.test",
            session_prefix="s",
        )
        backends = tuple(
            BackendSettings(
                "p",
                name,
                Address("192.0.2.1", 25),
                identity=identity,
                max_connections=limit,
                connections=ConnectionSettings(idle=idle, warm=min(warm, idle), max_transactions=4),
            )
            for name in names
        )
        settings = PoolSettings("p", backends, queue=QueueSettings(QUEUE_LENGTH, 10.0))
        self.target = Target(runtime)
        self.pool = Pool(runtime, settings, lambda pool: self.target.queue.serve())
        self.stand()

    def stand(self) -> None:
        usable = (BackendState.UP,)
        self.pool.apply(
            {
                ("p", name): BackendStanding(state, usable=state in usable, last_resort=False, weight=1)
                for name, state in self.states.items()
            }
        )
        self.target.apply([(self.pool, 1)])

    @property
    def backends(self) -> list[Backend]:
        return list(self.pool.backends.values())

    def choose(self, among: list[Any], number: int) -> Any:
        return among[number % len(among)] if among else None

    # -- clients -----------------------------------------------------------------------------------

    @rule()
    def session_begins(self) -> None:
        self.new_session()

    def new_session(self) -> Binding:
        binding = Binding(Identity("s"))
        self.alive.append(binding)
        return binding

    @rule(login=st.booleans())
    def session_that_gets_a_lease_begins(self, login: bool) -> None:
        """A short cut to states that take many steps; and, with `login`, to an authenticated session that is idle."""
        binding = self.new_session()
        if login:
            self.authentication_begins(binding)
        else:
            self.transaction_begins(binding)
        txn = self.txns.get(binding)
        backend = txn.backend if txn is not None else None
        if txn is not None and backend is not None and txn.connection is None:
            coming = [c for c in backend._connecting if c.binding in (None, binding)]
            if coming:
                self.comes_up(cast("Any", coming[-1]))
        if txn is not None and txn.connection is not None and login:
            self.transaction_ends(binding, "clean", True)

    def idle_session(self, binding: Binding) -> bool:
        txn = self.txns.get(binding)
        return binding in self.alive and (txn is None or bool(txn.over))

    def idle_sessions(self) -> list[Binding]:
        return [binding for binding in self.alive if self.idle_session(binding)]

    @rule(number=st.integers(0, 50))
    def some_transaction_begins(self, number: int) -> None:
        if self.idle_sessions():
            self.transaction_begins(self.choose(self.idle_sessions(), number))

    def transaction_begins(self, binding: Binding) -> None:
        if self.idle_session(binding) and not binding.pinned_lost:
            txn = self.txns[binding] = Txn(self, binding)
            txn.start()

    @rule(number=st.integers(0, 50))
    def some_authentication_begins(self, number: int) -> None:
        if self.idle_sessions():
            self.authentication_begins(self.choose(self.idle_sessions(), number))

    def authentication_begins(self, binding: Binding) -> None:
        """authentication.py takes what the target chooses and waits there."""
        if self.idle_session(binding) and binding.pinned is None:
            backend = self.target.choose(())
            if backend is not None and (not self.logins_wait_for_room or backend.has_room(binding)):
                txn = self.txns[binding] = Txn(self, binding, auth=True)
                txn._begin(backend)

    @rule(
        number=st.integers(0, 50),
        how=st.sampled_from(["clean", "clean", "open", "owing", "retire", "abort"]),
        login=st.booleans(),
    )
    def some_transaction_ends(self, number: int, how: str, login: bool) -> None:
        running = [binding for binding in self.alive if not self.idle_session(binding)]
        if running:
            self.transaction_ends(self.choose(running, number), how, login)

    def transaction_ends(self, binding: Binding, how: str, login: bool) -> None:
        txn = self.txns.get(binding)
        if txn is None or txn.over:
            return
        connection, backend = txn.connection, txn.backend
        if connection is None:
            txn.leave()
            return
        assert backend is not None
        txn.connection, txn.over = None, "done"
        real = cast("Connection", connection)
        if txn.auth:
            if login:
                connection.binding = binding
                binding.pinned, binding.pinned_on = backend, cast("Any", connection)
                backend.release(real)
            else:
                backend.retire(real)
        elif how == "abort":
            backend.abort(real)
        elif how == "retire":
            backend.retire(real)
        else:
            connection.transaction_open = how == "open"
            connection.owes = how == "owing"
            backend.release(real)

    @rule(number=st.integers(0, 50))
    def session_resets_and_begins_again(self, number: int) -> None:
        """RSET and the next envelope in one segment: the RSET for the backend is still under way."""
        idle = self.idle_sessions()
        binding = self.choose([b for b in idle if b.pinned is not None] or idle, number)
        if binding is None:
            return
        self.transaction_begins(binding)
        txn = self.txns.get(binding)
        if txn is not None and txn.connection is not None:
            self.transaction_ends(binding, "open", False)
            self.transaction_begins(binding)

    @rule(number=st.integers(0, 50))
    def some_session_ends(self, number: int) -> None:
        if self.alive:
            self.session_ends(self.choose(self.alive, number))

    def session_ends(self, binding: Binding) -> None:
        """Or facts of its client change: session.rebind()."""
        txn = self.txns.get(binding)
        if txn is not None and not txn.over:
            self.transaction_ends(binding, "open", False)
        self.alive.remove(binding)
        binding.end()

    # -- backends ----------------------------------------------------------------------------------

    def connections(self, *states: State) -> list[FakeConnection]:
        return [c for c in FakeConnection.made if c.state in states]

    @rule(number=st.integers(0, 50))
    def connection_comes_up(self, number: int) -> None:
        self.comes_up(self.choose(self.connections(State.CONNECTING), number))

    def comes_up(self, connection: FakeConnection | None) -> None:
        if connection is not None:
            connection.owner.connection_ready(cast("Connection", connection))

    @rule(number=st.integers(0, 50), told=st.booleans())
    def connection_does_not_come_up(self, number: int, told: bool) -> None:
        connection = self.choose(self.connections(State.CONNECTING), number)
        if connection is not None:
            connection.state = State.CLOSED
            connection.owner.connection_failed(
                connection, Failure(Phase.CONNECT, Reason.CONNECT, b"refused", identity_sent=told)
            )

    @rule(number=st.integers(0, 50))
    def reset_is_answered(self, number: int) -> None:
        connection = self.choose(self.connections(State.RESETTING), number)
        if connection is not None:
            connection.owes = False
            connection.owner.connection_cleared(connection)

    @rule(number=st.integers(0, 50))
    def quit_is_answered(self, number: int) -> None:
        self.closes(self.choose(self.connections(State.QUITTING), number))

    @rule(number=st.integers(0, 50))
    def connection_is_lost(self, number: int) -> None:
        self.closes(self.choose(self.connections(*READY), number))

    def closes(self, connection: FakeConnection | None) -> None:
        if connection is not None:
            holder, connection.holder, connection.state = connection.holder, None, State.CLOSED
            real = cast("Connection", connection)
            connection.owner.connection_closed(real)
            if holder is not None:
                holder.connection_broken(real, Failure(Phase.RCPT, Reason.LOST, b"lost"))

    @rule(number=st.integers(0, 50))
    def connection_expires(self, number: int) -> None:
        idle = [
            c
            for c in self.connections(State.IDLE, State.BOUND)
            if c.binding is None or c.binding.pinned_on is not c
        ]
        connection = self.choose(idle, number)
        if connection is not None:
            connection.owner.connection_expired(connection)

    # -- the world ---------------------------------------------------------------------------------

    @rule()
    def connections_are_opened_ahead(self) -> None:
        for warming in self.pool.warmings:
            warming.top_up(self.now)

    @rule(seconds=st.sampled_from([1.0, 11.0, 300.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.deadlines.advance(self.now)

    @rule(
        number=st.integers(0, 1),
        state=st.sampled_from([BackendState.UP, BackendState.DRAIN, BackendState.DOWN]),
    )
    def the_operator_or_a_check_speaks(self, number: int, state: BackendState) -> None:
        self.states[self.choose(list(self.states), number)] = state
        self.stand()

    @precondition(lambda self: self.queued)
    @rule()
    def an_unneeded_serve_changes_nothing(self) -> None:
        before = list(self.queued)
        self.target.queue.serve()
        assert self.queued == before, "there was room and nobody was told"

    # -- what holds --------------------------------------------------------------------------------

    @invariant()
    def containers_part_the_connections(self) -> None:
        if not hasattr(self, "pool"):
            return
        for backend in self.backends:
            containers = {
                State.CONNECTING: backend._connecting,
                State.IDLE: backend._idle,
                State.BOUND: backend._bound,
                State.LEASED: backend._leased,
                State.RESETTING: backend._resetting,
                State.QUITTING: backend._quitting,
            }
            for state, container in containers.items():
                mine = [c for c in FakeConnection.made if c.owner is backend and c.state is state]
                assert sorted(map(id, mine)) == sorted(map(id, container)), (state, mine, container)
            assert self.limit is None or backend.connections <= self.limit
            assert len(backend._idle) <= backend.settings.connections.idle

    @invariant()
    def leases_are_not_shared_and_nothing_idle_owes(self) -> None:
        holders = [c.holder for c in self.connections(State.LEASED)]
        assert all(holders)
        assert len(set(map(id, holders))) == len(holders)
        having = {id(t.connection) for t in self.txns.values() if t.connection is not None}
        assert having == {id(c) for c in self.connections(State.LEASED)}
        for connection in self.connections(State.IDLE, State.BOUND):
            assert connection.owes_nothing
            assert connection.holder is None

    @invariant()
    def identities_do_not_meet(self) -> None:
        for connection in FakeConnection.made:
            if connection.binding is not None:
                assert connection.served <= {connection.binding}
        for connection in self.connections(State.BOUND):
            binding = connection.binding
            assert binding is not None
            assert binding in self.alive
            assert connection in binding.kept.values()
        for binding in self.alive:
            assert all(cast("Any", c).state is State.BOUND for c in binding.kept.values())
            if binding.pinned_on is not None:
                assert cast("Any", binding.pinned_on).state not in (State.QUITTING, State.CLOSED)

    @invariant()
    def an_authenticated_session_is_served_on_its_own_connection_only(self) -> None:
        for binding, txn in self.txns.items():
            if binding.pinned is not None and txn.connection is not None:
                assert txn.connection is cast("Any", binding.pinned_on)

    @invariant()
    def nobody_seeks_while_there_is_room(self) -> None:
        if not hasattr(self, "pool"):
            return
        for backend in self.backends:
            seekers = [s for s in backend._seekers if s.binding.pinned is not backend]
            if not seekers:
                continue
            coming = len(backend._connecting)
            if self.limit is None or backend.connections < self.limit:
                if self.binds:
                    assert {s.binding for s in seekers} <= {c.binding for c in backend._connecting}
                else:
                    assert coming >= len(seekers)
            spare = [
                c
                for c in [*backend._idle, *backend._bound]
                if c.binding is None or c.binding.pinned_on is not c
            ]
            if spare:
                assert coming + len(backend._quitting) >= len(seekers), "an idle connection is in the way"
            if self.limit is not None and self.logins_wait_for_room:
                bound = [cast("Any", c) for c in backend._bound]
                pinned = sum(c.binding.pinned_on is c for c in bound)
                in_use = len(backend._leased) + len(backend._resetting) + pinned
                assert len(seekers) <= self.limit - in_use, "somebody seeks where there was no room"

    @invariant()
    def nobody_queues_while_there_is_room(self) -> None:
        if not hasattr(self, "pool") or not self.queued:
            return
        assert [place.who for place in self.target.queue._places] == self.queued
        for txn in self.queued:
            for backend in self.backends:
                if backend.standing.usable and backend not in txn.search._skip:
                    assert not backend.has_room(txn.binding), "a wake-up was lost"
            if not txn.choosy:
                break


TestBackend = Machine.TestCase
TestBackend.settings = settings(max_examples=examples(400), stateful_step_count=50)
