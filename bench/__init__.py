"""Side by side with nothing in between, HAProxy, nginx, Haraka and a bare relay: how fast, and at what cost. `python -m bench`

docs/performance.md says how to read the figures. Needs the mail programs that the tests need (`make mtas`).

    cases.py     what is sent through whom, a row each        reach.py    the goals, a row each
    subjects.py  how each subject is made, what is behind it  report.py   tables, JSON
    programs.py  HAProxy, nginx, Haraka, ... as instances     pages.py    tables in docs/
    rounds.py    measuring                                    plot.py     the picture in docs/
    memory.py    of idle sessions                             scaling.py  messages a day, machines
    quota.py     a part of a core for each worker             failover.py what clients notice of killed servers
    load/        a load of its own                            relay.py, sink.py, wire.py  programs that take part
"""
