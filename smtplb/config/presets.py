"""What `mta:` presets: values for kept connections that suit the documented defaults of an MTA.

Owns the numbers and their sources. Does not own merging (pools.py).
Invariant: a preset is only a lower layer: any key that is written wins over it.
"""

from __future__ import annotations

from collections.abc import Mapping

from smtplb.config.schema import Mta

CONNECTIONS: Mapping[Mta, Mapping[str, int | float]] = {
    # smtpd_timeout 300 s is above our defaults, and one session may carry any number of messages: nothing to
    # change.
    Mta.POSTFIX: {},
    Mta.EXIM: {
        # smtp_accept_max 20 (globals.c), over all clients: kept connections must leave room.
        "idle": 8,
        # smtp_accept_queue_per_connection 10: from the 11th message of a session on Exim only queues, and
        # delivery waits for the next queue run. (smtp_accept_max_per_connection 1000 says 421, far later.)
        "max_transactions": 10,
    },
    # The daemon forks a child for each connection, and MaxDaemonChildren counts them (operations guide 4.11).
    Mta.SENDMAIL: {"idle": 8},
    Mta.EXCHANGE: {
        # Receive connector: MaxInboundConnectionPerSource 20, and we are one source.
        "idle": 10,
        # ConnectionInactivityTimeout: 1 min on Edge Transport, 5 min elsewhere.
        "idle_timeout_s": 45.0,
        # ConnectionTimeout ends also busy connections: 5 min on Edge Transport, 10 min elsewhere.
        "max_age_s": 240.0,
    },
}
