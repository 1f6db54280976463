"""A load of our own, for what smtp-source cannot: TLS, pipelining clients, a fixed rate with latencies, sessions that wait.

`python -m bench.load --help`. It runs as a process of its own and prints one line of JSON.
"""
