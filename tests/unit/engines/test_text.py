"""Stop strings and UTF-8 across token boundaries."""

from hypothesis import given
from hypothesis import strategies as st

from workers.engines.llama.sampling.text import TextBuffer


def fill(pieces: list[bytes], stop: list[str]) -> tuple[str, bool]:
    """Feed pieces until a stop string is complete, as the engine does."""
    buffer = TextBuffer(stop)
    stopped = any(buffer.append(piece) for piece in pieces)
    return buffer.text(), stopped


def test_stop_string_spanning_tokens_ends_the_text_before_it() -> None:
    assert fill([b"one", b" E", b"N", b"D two"], ["END"]) == ("one ", True)


def test_first_of_several_stops_wins() -> None:
    assert fill([b"a; b\nc"], ["\n", ";"]) == ("a", True)


def test_stop_inside_multibyte_text_split_between_bytes() -> None:
    data = "日本語。続き".encode()
    assert fill([data[i : i + 1] for i in range(len(data))], ["。"]) == ("日本語", True)


def test_stop_at_the_very_beginning_gives_empty_text() -> None:
    assert fill([b"\n\n", b"x"], ["\n"]) == ("", True)


def test_without_stop_everything_is_text() -> None:
    assert fill([b"a", b"b"], []) == ("ab", False)


def test_unfinished_character_at_the_end_is_dropped() -> None:
    euro = "€".encode()
    for cut in (1, 2):
        assert fill([b"5 ", euro[:cut]], []) == ("5 ", False)
    assert fill([b"5 ", euro], []) == ("5 €", False)


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    assert fill([b"a\xffb"], []) == ("a\ufffdb", False)
    assert fill([b"a\xf9"], []) == ("a\ufffd", False)


@given(
    st.text(alphabet="ab€😀", max_size=30), st.lists(st.text("ab€😀", min_size=1, max_size=4), max_size=3), st.data()
)
def test_any_split_into_pieces_gives_the_text_before_the_first_stop(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    """Compared with the definition: the shortest prefix that contains a stop, cut where its first stop begins."""
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=10)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    consumed = b""
    expected, stopped = text, False
    for piece in pieces:
        consumed += piece
        found = [consumed.find(s.encode()) for s in stop if s.encode() in consumed]
        if found:
            expected, stopped = consumed[: min(found)].decode(), True
            break
    assert fill(pieces, stop) == (expected, stopped)
