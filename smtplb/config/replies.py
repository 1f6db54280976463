"""What a `refuse` rule answers, as it is written: `550 5.7.1 not here`.

Owns its form. Does not own where it occurs (routes.py) nor when it is given (dataplane).
Invariant: one lawful SMTP reply line; nothing in it can end the line early.
"""

from __future__ import annotations

import re

from smtplb.config.errors import quote
from smtplb.settings import RefuseReply

EXAMPLE = '"550 5.7.1 not here"'
MAX_TEXT_CHARS = 200  # RFC 5321 4.5.3.1.5: 512 octets a line, and a log line is read

# RFC 5321 4.2: second digit 0 to 5. RFC 3463 2: subject and detail have up to three digits.
_REPLY = re.compile(r"([0-9]{3}) ([0-9])\.((?:0|[1-9][0-9]{0,2})\.(?:0|[1-9][0-9]{0,2})) (.+)", re.DOTALL)
_CODE = re.compile(r"[45][0-5][0-9]")
_TEXT = re.compile(r"[!-~](?:[ -~]*[!-~])?")


def refuse_reply(value: object) -> RefuseReply:
    """Code, enhanced code, text. ValueError: words for the operator."""
    match = _REPLY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{quote(value)}: write code, enhanced code and text, such as {EXAMPLE}")
    code, kind, detail, text = match.groups()
    if not _CODE.fullmatch(code):
        raise ValueError(f"{quote(code)} refuses nothing: write 450 (later), 550 (never) or the like")
    if code == "421":  # RFC 5321 4.2.2: it says that the connection closes, and it does not
        raise ValueError("`421` ends a session, a rule refuses a recipient: write 450 or 451")
    if kind != code[0]:
        raise ValueError(f"`{kind}.{detail}` does not fit {code}: the first digits must be the same")
    if len(text) > MAX_TEXT_CHARS or not _TEXT.fullmatch(text):
        raise ValueError(f"the text must be printable ASCII, at most {MAX_TEXT_CHARS} characters")
    return RefuseReply(int(code), f"{kind}.{detail}", text)
