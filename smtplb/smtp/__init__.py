"""The grammar of SMTP without any I/O: commands, addresses, replies, bodies, extensions.

Bytes in, values out; nothing here knows of sockets, clocks or configuration. Errors are values, not exceptions.
"""
