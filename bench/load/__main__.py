"""`python -m bench.load`: one run of a plan; prints its figures as one line of JSON, 1 if anything went wrong."""

from __future__ import annotations

import argparse
import json
import sys

import uvloop

from bench.load.traffic import Outcome, Plan, Traffic
from bench.wire import client_context


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("port", type=int, help="on 127.0.0.1")
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--sessions", type=int, default=20, help="at a time")
    parser.add_argument("--size", type=int, default=4096, help="octets of a message")
    parser.add_argument("--recipients", type=int, default=1, help="of a message")
    parser.add_argument("--keep", action="store_true", help="many messages in a session, else one")
    parser.add_argument("--pipelining", action="store_true", help="MAIL, RCPT and DATA in one piece")
    parser.add_argument("--tls", action="store_true", help="STARTTLS first")
    parser.add_argument("--rate", type=float, help="messages a second; as many as go if it is not given")
    options = parser.parse_args()
    plan = Plan(
        port=options.port,
        messages=options.messages,
        sessions=options.sessions,
        size_bytes=options.size,
        recipients=options.recipients,
        keep_sessions=options.keep,
        pipelining=options.pipelining,
        rate=options.rate,
    )
    outcome = uvloop.run(_run(plan, options.tls))
    print(json.dumps(outcome.figures()))
    return 0 if not outcome.errors and len(outcome.latencies_s) == plan.messages else 1


async def _run(plan: Plan, tls: bool) -> Outcome:
    return await Traffic(plan, client_context() if tls else None).run()


if __name__ == "__main__":
    sys.exit(main())
