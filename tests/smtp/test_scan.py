"""The scanner: what it says is what the octets say one by one; and both of its forms, Python and C, say the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.smtp import scan

FORMS = {
    "python": scan.in_python,
    "in use": (scan.find_end, scan.is_lawful),
}  # in a compiled wheel the second is C
TEXT = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"\0", b"x", b"\r\n.\r\n", b"\xff", b"y" * 100])
).map(b"".join)

both = pytest.mark.parametrize("form", FORMS)


def lawful_by_octets(segment: bytes) -> bool:
    for at, octet in enumerate(segment):
        before, after = segment[at - 1 : at] if at else b"", segment[at + 1 : at + 2]
        if octet == 0 or (octet == 0x0A and before != b"\r") or (octet == 0x0D and after != b"\n"):
            return False
    return True


def end_by_octets(work: bytes) -> int:
    return next((at for at in range(len(work)) if work[at : at + 5] == b"\r\n.\r\n"), -1)


@both
@given(text=TEXT)
def test_lawful_is_what_every_octet_says(form: str, text: bytes) -> None:
    assert FORMS[form][1](text) is lawful_by_octets(text)


@both
@given(text=TEXT)
def test_the_end_is_the_first_one(form: str, text: bytes) -> None:
    assert FORMS[form][0](text) == end_by_octets(text)


@both
@pytest.mark.parametrize("size", [0, 1, 2, 65_534, 65_535, 65_536, 65_537, 131_072, 200_000])
@pytest.mark.parametrize("wrong", [b"\n", b"\r", b"\0"])
def test_one_wrong_octet_is_found_wherever_it_is(form: str, size: int, wrong: bytes) -> None:
    """Around the parts in which the C form goes through long text, too."""
    is_lawful = FORMS[form][1]
    text = (b"x" * 70 + b"\r\n") * (size // 72 + 1)
    assert is_lawful(text)
    for at in {0, size // 2, max(size - 1, 0), size}:
        place = at - at % 72 + 3
        assert not is_lawful(text[:place] + wrong + text[place + 1 :]), place
    assert is_lawful(text[: len(text) - 2])
    assert not is_lawful(text[: len(text) - 1]), "its last CR is open"


@both
def test_a_dot_at_the_very_edges_is_no_end(form: str) -> None:
    find_end = FORMS[form][0]
    for text in (b"\n.\r\n", b".\r\n", b"\r\n.\r", b"\r\n.\n", b"\r\n..\r\n", b""):
        assert find_end(text) == -1
    assert find_end(b"\r\n.\r\n") == 0
    assert find_end(b"x\r\n\r\n.\r\n") == 3
