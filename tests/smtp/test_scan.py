"""The scanner: what it says is what the octets say one by one; and both of its forms, Python and C, say the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtplb.observe.outcomes import TransactionOutcome
from smtplb.smtp import scan
from smtplb.smtp.address import _BRACKETED

FORMS = {
    "python": scan.in_python,
    "in use": (
        scan.find_end,
        scan.is_lawful,
        scan.is_plain,
        scan.plain_path,
        scan.line_end,
        scan.count_traces,
        scan.fill,
    ),
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


@both
@pytest.mark.parametrize("before", [*range(8), *range(4088, 4100), *range(8185, 8196), 70_000])
@pytest.mark.parametrize("behind", [0, 1, 3, 5000])
def test_the_end_is_found_wherever_it_is(form: str, before: int, behind: int) -> None:
    find_end = FORMS[form][0]
    assert find_end(b"x" * before + b"\r\n.\r\n" + b"y" * behind) == before
    for wrong in (b"\r\n.\r", b"\n.\r\n", b"\r\n.\n", b"\r\n..\r\n", b"\r\n.\r\r\n", b"\r.\r\n"):
        assert find_end(b"x" * before + wrong + b"y" * behind) == -1


@both
@given(text=st.text() | st.binary() | st.sampled_from(["a b", 'a"b', "a\\b", "\x7f", "\xa0", "", b"", b"\0"]))
def test_plain_is_what_every_octet_says(form: str, text: str | bytes) -> None:
    octets = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    assert FORMS[form][2](text) is all(0x20 <= octet < 0x7F and octet not in b'"\\' for octet in octets)


PIECES = [
    b"<",
    b">",
    b"@",
    b".",
    b"a",
    b"A-1",
    b"_",
    b" ",
    b"\t",
    b'"',
    b"!#$%&'*+-/=?^`{|}~",
    b"\xff",
    b"\0",
    b"[",
    b"<a@b.c>",
]


@both
@given(argument=st.lists(st.sampled_from(PIECES)).map(b"".join) | st.binary())
def test_a_plain_path_is_one_that_the_grammar_reads_alike(form: str, argument: bytes) -> None:
    plain = FORMS[form][3](argument)
    if plain is not None:
        found = _BRACKETED.match(argument)
        assert found is not None
        assert found[1] == plain
        assert argument[found.end() : found.end() + 1] in (b"", b" ")


@both
@pytest.mark.parametrize(
    ("argument", "path"),
    [
        (b"<a@b>", b"a@b"),
        (b"<a.b+c@mx-1.b_c.test> SIZE=1", b"a.b+c@mx-1.b_c.test"),
        (b"<a@b>\t", None),
        (b"<a@b.>", None),  # lawful, not plain
        (b"<a@>", None),
        (b"<@b>", None),
        (b"<a@b@c>", None),
        (b"<>", None),
        (b"", None),
        (b"<", None),
        (b"<a@b", None),
    ],
)
def test_what_is_a_plain_path(form: str, argument: bytes, path: bytes | None) -> None:
    assert FORMS[form][3](argument) == path


@both
def test_words_of_an_enumeration_are_plain(form: str) -> None:
    assert FORMS[form][2](TransactionOutcome.OK) is True


@both
@given(data=TEXT, share=st.floats(0, 1))
def test_a_line_ends_at_the_next_lf(form: str, data: bytes, share: float) -> None:
    at = round(share * len(data))
    assert FORMS[form][4](data, at) == next((n for n in range(at, len(data)) if data[n] == 0x0A), -1)


OURS = b"by lb.test (smtplb) with "
HEADER = st.lists(
    st.sampled_from(
        [
            b"\r\n",
            b"\r",
            b"\n",
            b"Received:",
            b"ReceIVED: ",
            b"received",
            b" x",
            b"By LB.test (SMTPlb) with ",
            b"\xff",
            b"\0",
        ]
    )
).map(b"".join)


def traces_by_lines(data: bytes) -> int:
    lines = (b"\r\n" + data).split(b"\r\n")[1:]
    if b"" not in lines[:-1]:
        return -1
    header = lines[: lines.index(b"")]
    total = sum(line[:9].lower() == b"received:" for line in header)
    return (total << 16) + (sum(line.lower().count(OURS) for line in header) if total else 0)


@both
@given(data=HEADER)
def test_traces_are_what_the_lines_of_the_header_say(form: str, data: bytes) -> None:
    assert FORMS[form][5](data, OURS) == traces_by_lines(data)


@both
def test_more_marks_than_can_be_counted(form: str) -> None:
    assert FORMS[form][5](b"Received:\r\n" + OURS * 70_000 + b"\r\n\r\n", OURS) == 0x1FFFF


WORDS = st.text("ab <>", max_size=30) | st.binary(max_size=4) | st.text(max_size=4) | st.integers(-5, 1 << 64)


@both
@given(values=st.lists(WORDS, max_size=6))
def test_plain_words_are_filled_in_as_they_are(form: str, values: list[str | bytes | int]) -> None:
    template = tuple(b"<%d>" % at for at in range(len(values) + 1))
    line = FORMS[form][6](template, tuple(values))
    said = [value if isinstance(value, bytes) else str(value).encode("utf-8", "replace") for value in values]
    plain = all(
        0 <= value < 1 << 63 if isinstance(value, int) else FORMS[form][2](value) is True for value in values
    )
    expected = template[0] + b"".join(word + piece for word, piece in zip(said, template[1:], strict=True))
    assert line == (expected if plain else None)


@both
def test_what_is_too_long_is_not_filled_in(form: str) -> None:
    fill = FORMS[form][6]
    assert fill((b"", b""), ("x" * 1024,)) == b"x" * 1024
    assert fill((b"", b"", b""), (b"x" * 1024, 7)) == b"x" * 1024 + b"7"
    assert fill((b"", b"", b""), (b"x" * 1024, "y")) is None
    assert fill((b"z" * 4096,), ()) == b"z" * 4096
    assert fill((b"z" * 4096, b""), (7,)) is None
    assert fill((b"z" * 4096, b""), ("y",)) is None
    assert fill((b"z" * 4095, b"z"), ("",)) == b"z" * 4096
    assert fill((b"z" * 4095, b"zz"), ("",)) is None
    assert fill((b"", b""), (TransactionOutcome.OK,)) == b"ok"
    assert fill((b"", b"", b""), (0, (1 << 63) - 1)) == b"09223372036854775807"


@both
def test_only_octets_and_text_are_taken(form: str) -> None:
    functions: tuple[Any, ...] = FORMS[form]
    for function in functions:
        with pytest.raises((TypeError, AttributeError)):
            function(*([1] * (2 if function.__name__ in ("line_end", "count_traces", "fill") else 1)))
    for wrong in [(None,), (1.5,)]:
        with pytest.raises((TypeError, AttributeError)):
            functions[6]((b"", b""), wrong)
    for pieces in [(b"",), (b"", b"", b"")]:
        with pytest.raises((TypeError, ValueError)):
            functions[6](pieces, ("x",))
