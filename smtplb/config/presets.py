"""What `mta:` presets: values for connections that suit the documented defaults of an MTA.

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

# Of all that an MTA takes by default; the rest is for checks, for other clients, or for a second balancer.
MAX_CONNECTIONS: Mapping[Mta, int | None] = {
    # smtpd_client_connection_count_limit 50 for an address that is not in mynetworks; default_process_limit 100
    # is for all clients, so two balancers fit (postconf(5)).
    Mta.POSTFIX: 40,
    # smtp_accept_max 20, as above; the 21st hears 421.
    Mta.EXIM: 16,
    # MaxDaemonChildren is not set by default: no limit (operations guide 4.11).
    Mta.SENDMAIL: None,
    # MaxInboundConnectionPerSource 20, as above; the 21st hears 421 4.3.2.
    Mta.EXCHANGE: 18,
}
