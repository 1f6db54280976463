"""The lab: real mail servers and peers on loopback, for tests and benchmarks.

Each manager is a blocking context manager with a directory and a port of its own:

    with Postfix() as one, Postfix(transport="smtp:[127.0.0.1]:20025") as other: ...

`Manager.available()` tells why a program cannot run here (scripts/mtas installs them). In tests use the fixtures `lab` and
`module_lab` of tests/conftest.py instead: they skip, or fail, where a program is missing.
"""

from tests.lab.exim import Exim
from tests.lab.haproxy import HAProxy
from tests.lab.mta import AcceptedMessage, Mta, TlsFiles
from tests.lab.ports import free_port, free_ports, is_listening
from tests.lab.postfix import LoggedMessage, Postfix
from tests.lab.process import Instance, LabError, wait_until
from tests.lab.sendmail import Sendmail
from tests.lab.smtp_sink import SinkCounts, SmtpSink
from tests.lab.smtp_source import LoadResult, SmtpSource

__all__ = [
    "AcceptedMessage",
    "Exim",
    "HAProxy",
    "Instance",
    "LabError",
    "LoadResult",
    "LoggedMessage",
    "Mta",
    "Postfix",
    "Sendmail",
    "SinkCounts",
    "SmtpSink",
    "SmtpSource",
    "TlsFiles",
    "free_port",
    "free_ports",
    "is_listening",
    "wait_until",
]
