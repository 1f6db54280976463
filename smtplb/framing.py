"""Messages of messages.py on a stream between two processes of ours.

Owns length prefix and encoding. Does not own the stream, nor what a message says.
Invariant: what is read is what was written, whole and in order. Pickle is safe here and only here: both ends are our own
processes, joined by a socket pair that nobody else ever had.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any

_LENGTH = struct.Struct("!I")
MAX_FRAME_BYTES = 256 * 1024 * 1024  # a broken stream, not a message


def frame(message: object) -> bytes:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


class FrameReader:
    """Cuts a stream into messages."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that are whole now. ValueError: the stream is broken."""
        buffer = self._buffer
        buffer += data
        messages: list[Any] = []
        at = 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > MAX_FRAME_BYTES:
                raise ValueError("frame of an impossible length")
            end = at + _LENGTH.size + length
            if len(buffer) < end:
                break
            messages.append(pickle.loads(memoryview(buffer)[at + _LENGTH.size : end]))
            at = end
        del buffer[:at]
        return messages
