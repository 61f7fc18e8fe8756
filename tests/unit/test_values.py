"""How values are written for others to read."""

import json

from hypothesis import given
from hypothesis import strategies as st

from batcher.values import json_line


@given(st.text(st.characters() | st.sampled_from("\u2028\u2029\x85\x0b\x0c\x1c\r\n"), max_size=20))
def test_json_line_is_one_line_to_every_reader(text: str) -> None:
    line = json_line({text: [text]})

    assert line.splitlines() == [line]
    assert json.loads(line) == {text: [text]}
