"""Side by side with nothing in between and with HAProxy: how fast, and at what cost. `python -m bench`

docs/performance.md says how to read the figures. Needs the mail programs that the tests need (`make mtas`).
"""
