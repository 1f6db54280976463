"""A model MTA for the data plane's tests: sans I/O, exact about SMTP, faulty where it is told to be.

Owns the ledger of messages it took. Does not own transports.
Invariant: a message is in `taken` if and only if all of it came and it was not refused; a 250 to the final dot is said
only for such a one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.dataplane.parties import Wire

PHASES = ("connect", "greeting", "hello", "mail", "rcpt", "data", "body", "final")
ACCEPTING = ("extra", "extra later", "then close", "then reset")  # faults that come with the usual answer
OFFERS = ("PIPELINING", "SIZE 10240000", "8BITMIME", "ENHANCEDSTATUSCODES")


@dataclass
class Fault:
    """What goes wrong at a phase. `act`: a reply line ("421 4.3.2 busy"), or one of the names in _Session._misbehave.

    `times`: only so often; None: always. `at`: which command of that phase on the connection, 0 the first; None: every one.
    `taken`: with a fault at `final`, the message was queued all the same.
    """

    phase: str
    act: str
    times: int | None = None
    at: int | None = None
    taken: bool = False


@dataclass
class Taken:
    """A message in the queue; `body` without the dots of DATA."""

    sender: str
    recipients: tuple[str, ...]
    body: bytes


@dataclass
class ModelMta:
    """One backend. `verdicts`: replies by recipient or sender address instead of 250."""

    name: str
    offers: tuple[str, ...] | None = OFFERS  # None: knows HELO only
    verdicts: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)  # of all connections, in order
    sessions: list[MtaSession] = field(default_factory=list)
    later: Callable[[Callable[[], None]], object] | None = None  # runs a callback in a turn of its own
    told: Callable[[], None] = lambda: None  # something was heard, or is over
    broken: list[str] = field(default_factory=list)  # what smtplb may never do to a backend
    takes_data_for_nobody: bool = False  # 354 though it refused every recipient

    def session(self) -> MtaSession:
        session = MtaSession(self)
        self.sessions.append(session)
        return session

    def fault(self, phase: str, nth: int, *, look: bool = False) -> Fault | None:
        for fault in self.faults:
            if fault.phase == phase and fault.at in (None, nth) and fault.times != 0:
                if fault.times is not None and not look:
                    fault.times -= 1
                return fault
        return None


class MtaSession:
    """One connection (a Peer)."""

    def __init__(self, mta: ModelMta) -> None:
        self.mta = mta
        self.wire: Wire | None = None
        self.ended = ""
        self.deaf = False  # hangs, or closed by us
        self._buffer = b""
        self._in_body = False
        self._body_began = False
        self._looked_at = 0  # how far the body has no end
        self._refused = False  # while it came
        self._out_of_step = False  # by its own fault: what it hears may then not fit
        self._seen: dict[str, int] = {}
        self._chunk: tuple[int, bool] | None = None  # octets of a BDAT that are on their way, LAST
        self._chunks = b""
        self._greeted = False
        self.mails = 0  # MAIL commands that were taken
        self.resets = 0
        self._sender: str | None = None
        self._recipients: list[str] = []
        self._asked = False  # RCPT was said in this transaction

    def connected(self, wire: Wire) -> None:
        self.wire = wire
        self._answer("greeting", f"220 {self.mta.name} ESMTP")

    def over(self, how: str) -> None:
        self.ended = how
        self.mta.told()

    def heard(self, data: bytes) -> None:
        self._hear(data)
        self.mta.told()

    def _hear(self, data: bytes) -> None:
        if self.deaf:
            return
        self._buffer += data
        while not self.deaf:
            if self._in_body or self._chunk is not None:
                if not (self._body() if self._in_body else self._take_chunk()):
                    return
                continue
            line, end, rest = self._buffer.partition(b"\n")
            if not end:
                return
            self._buffer = rest
            if not line.endswith(b"\r") or b"\r" in line[:-1] or b"\0" in line:
                self.mta.broken.append(f"command line {line!r}")
            self._command(line[:-1].decode("latin-1"))
            if self._buffer and self.mta.offers is None:
                self.mta.broken.append(f"pipelined without leave: {self._buffer!r}")

    # -- commands ------------------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        self.mta.commands.append(line)
        verb = line.split(" ", 1)[0].upper()
        handler = getattr(self, f"_on_{verb.lower()}", None)
        if handler is None:
            self.mta.broken.append(f"unknown command {line!r}")
            self._say("500 5.5.2 what?")
        else:
            handler(line)

    def _on_ehlo(self, line: str) -> None:
        offers = self.mta.offers
        if offers is None:
            self._greeted = self._due_act("hello").startswith("2")
            self._answer("hello", "502 5.5.1 HELO, please")
            return
        lines = [self.mta.name, *offers]
        reply = "\r\n".join(
            f"250{' ' if at == len(lines) - 1 else '-'}{text}" for at, text in enumerate(lines)
        )
        self._answer("hello", reply)
        self._greeted = True

    def _on_helo(self, line: str) -> None:
        self._answer("hello", f"250 {self.mta.name}")
        self._greeted = True

    def _on_mail(self, line: str) -> None:
        if (not self._greeted or self._sender is not None) and not self._out_of_step:
            self.mta.broken.append(f"out of order: {line!r}")
        sender = _path(line)
        self._asked = False

        def accept() -> None:
            self.mails += 1
            self._sender = sender
            self._recipients = []
            self._chunks = b""
            self._refused = self._body_began = False

        self._verdict("mail", self.mta.verdicts.get(sender, "250 2.1.0 sender ok"), accept)

    def _on_rcpt(self, line: str) -> None:
        recipient = _path(line)
        self._asked = True
        if self._sender is None:
            self._say("503 5.5.1 MAIL first")
            return
        verdict = self.mta.verdicts.get(recipient, f"250 2.1.5 {recipient} ok at {self.mta.name}")
        self._verdict("rcpt", verdict, lambda: self._recipients.append(recipient))

    def _on_data(self, line: str) -> None:
        if self._buffer:
            self.mta.broken.append(f"bytes behind DATA before 354: {self._buffer!r}")
        if not self._recipients:
            # RFC 2920 3.1: along with RCPT it may be sent before the answers are known, and some servers say 354 all the same.
            if not self._asked and not self._out_of_step:
                self.mta.broken.append("DATA without a recipient")
            if not (self.mta.takes_data_for_nobody and self._sender is not None):
                self._say("503 5.5.1 RCPT first")
                return

        def accept() -> None:
            self._in_body = True
            self._body_began = False
            self._looked_at = 0
            self._refused = False

        self._verdict("data", "354 go on", accept)

    def _on_rset(self, line: str) -> None:
        self.resets += 1
        self._sender = None
        self._recipients = []
        self._answer("rset", "250 2.0.0 reset")

    def _on_quit(self, line: str) -> None:
        if self._answer("quit", "221 2.0.0 bye"):
            self._close()

    def _body(self) -> bool:
        """True if the end of data was found."""
        if self._dies_in_body(len(self._buffer)):
            return False
        if not self._body_began and self._buffer:
            self._body_began = True
            fault = (
                self._due("body") if not self._whole else None
            )  # what comes behind the end is no early reply
            if fault is not None and not self._misbehave(fault, ""):
                self._refused = True  # the rest is read, and that is all
        if self._buffer.startswith(b".\r\n"):
            end = 0
        else:
            end = self._buffer.find(b"\r\n.\r\n", self._looked_at) + 2
        if end == 1:
            self._looked_at = max(len(self._buffer) - 4, 0)
            return False
        body, self._buffer = self._buffer[:end], self._buffer[end + 3 :]
        self._in_body = False
        return self._complete(unstuffed(body))

    def _on_bdat(self, line: str) -> None:
        words = line.split()
        self._chunk = (int(words[1]), words[2:] == ["LAST"])

    def _take_chunk(self) -> bool:
        """True if all octets of a chunk were there."""
        assert self._chunk is not None
        size, last = self._chunk
        if self._dies_in_body(len(self._chunks) + len(self._buffer)):
            return False
        if len(self._buffer) < size:
            return False
        octets, self._buffer = self._buffer[:size], self._buffer[size:]
        self._chunk = None
        if self._refused or self._sender is None:
            self._say("503 5.5.1 RSET first")
            return True
        if not self._recipients and not self._out_of_step:
            self.mta.broken.append("BDAT without a recipient")
        self._chunks += octets
        if last:
            return self._complete(self._chunks)
        fault = self._due("body") if not self._body_began else None
        self._body_began = True
        if fault is None:
            self._say(f"250 2.0.0 {size} octets")
        elif not self._misbehave(fault, f"250 2.0.0 {size} octets"):
            self._refused = True
        return True

    def _dies_in_body(self, octets: int) -> bool:
        """A fault "dead N": the connection is reset as soon as so many octets of the body were read."""
        fault = self.mta.fault("body", self._seen.get("body", 0), look=True)
        if fault is None or not fault.act.startswith("dead ") or octets < int(fault.act[5:]):
            return False
        assert self.wire is not None
        self.deaf = True
        self.wire.reset()
        return True

    def _complete(self, body: bytes) -> bool:
        if (
            b"\0" in body
            or body.count(b"\r\n") != body.count(b"\n")
            or body.count(b"\r\n") != body.count(b"\r")
        ):
            self.mta.broken.append(f"an unlawful body: {body[:200]!r}")
        taken = Taken(self._sender or "", tuple(self._recipients), body)
        if not self._recipients and not self._out_of_step:
            self.mta.broken.append("a message for nobody")
        self._sender = None
        if self._refused:
            return True
        fault = self._due("final") if not self._out_of_step else None  # a 250 too early is kept to
        if fault is None:
            self.mta.taken.append(taken)
            self._say(f"250 2.0.0 queued at {self.mta.name} as {len(self.mta.taken)}")
            return True
        if fault.taken or fault.act.startswith("2") or fault.act in ACCEPTING:
            self.mta.taken.append(taken)
        self._misbehave(fault, f"250 2.0.0 queued at {self.mta.name} as {len(self.mta.taken)}")
        return True

    @property
    def _whole(self) -> bool:
        return self._buffer.startswith(b".\r\n") or b"\r\n.\r\n" in self._buffer

    # -- replies and faults --------------------------------------------------------------------------

    def _due(self, phase: str) -> Fault | None:
        nth = self._seen.get(phase, 0)
        self._seen[phase] = nth + 1
        return self.mta.fault(phase, nth)

    def _due_act(self, phase: str) -> str:
        fault = self.mta.fault(phase, self._seen.get(phase, 0), look=True)
        return fault.act if fault is not None else ""

    def _verdict(self, phase: str, reply: str, accept: Callable[[], None]) -> None:
        fault = self._due(phase)
        if fault is None:
            if reply[0] in "23":
                accept()
            self._say(reply)
            return
        if fault.act[0] in "23" or fault.act in ACCEPTING:
            accept()
        self._misbehave(fault, reply)

    def _answer(self, phase: str, reply: str) -> bool:
        fault = self._due(phase)
        if fault is not None:
            return self._misbehave(fault, reply)
        self._say(reply)
        return True

    def _misbehave(self, fault: Fault, reply: str) -> bool:
        """Commit the fault; False if the connection is of no further use."""
        assert self.wire is not None
        act = fault.act
        self._out_of_step = self._out_of_step or act.startswith(("2", "3", "e"))
        if act[0].isdigit():
            self._say(act)
            if act.startswith("421"):
                self._close()
            return act[0] in "23"
        match act:
            case "close":
                self._close()
            case "then close":
                if reply:
                    self._say(reply)
                self._close()
            case "then reset":
                # In a turn of its own: with the reply it would overtake it, as RST does.
                if reply:
                    self._say(reply)
                self.deaf = True
                assert self.mta.later is not None
                self.mta.later(self.wire.reset)
            case "stall":
                self.wire.stall()
                if reply:
                    self._say(reply)
                return True
            case "slow":
                self.wire.stall()
                if reply:
                    self._say(reply)
                assert self.mta.later is not None
                self.mta.later(self.wire.unstall)
                return True
            case _ if act.startswith("dead "):
                return True  # _dies_in_body() sees to it
            case "reset":
                self.deaf = True
                self.wire.reset()
            case "hang":
                self.deaf = True
            case "garbage":
                self.wire.say(b"\x00\xffwhat is this\r\n")
            case "half":
                self.wire.say(reply.encode()[:2] or b"25")
                self._close()
            case "long":
                self.wire.say(b"220 " + b"x" * 200_000)
            case "extra":
                self.wire.say(f"{reply}\r\n250 2.0.0 extra\r\n".lstrip("\r\n").encode())
                return True
            case "extra later":
                if reply:
                    self._say(reply)
                assert self.mta.later is not None
                self.mta.later(lambda: self._say("250 2.0.0 extra"))
                return True
            case "early":
                self.wire.say(b"250 2.0.0 early\r\n")
                return True
            case _:
                raise AssertionError(f"no such fault: {act}")
        return False

    def _say(self, reply: str) -> None:
        assert self.wire is not None
        if not self.deaf:
            self.wire.say(reply.encode("latin-1") + b"\r\n")

    def _close(self) -> None:
        assert self.wire is not None
        self.deaf = True
        self.wire.eof()


def stuffed(content: bytes) -> bytes:
    """As sent behind DATA (RFC 5321 4.5.2), without the terminator."""
    return (b"." if content.startswith(b".") else b"") + content.replace(b"\r\n.", b"\r\n..")


def unstuffed(body: bytes) -> bytes:
    return (body[1:] if body.startswith(b".") else body).replace(b"\r\n.", b"\r\n")


def _path(line: str) -> str:
    return line[line.index("<") + 1 : line.index(">")]
