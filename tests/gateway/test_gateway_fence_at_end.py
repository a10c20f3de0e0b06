"""A call quoted in a code block that is the end of a streamed answer is text, however the stream is cut."""

from __future__ import annotations

import pytest

from gateway.coding.text_filters import CallFilter

CALL = '<tool_call>{"name":"Bash","arguments":{"command":"ls"}}</tool_call>'


@pytest.mark.parametrize("size", [1, 3, 7, 500])
@pytest.mark.parametrize("end", ["", "\n", "  "])
@pytest.mark.parametrize("fence", ["```", "~~~", "````"])
def test_a_quoted_call_before_the_last_fence_is_text(size, end, fence):
    text = f"So:\n{fence}\n{CALL}\n{fence}{end}"
    read = CallFilter()
    pieces = [piece for at in range(0, len(text), size) for piece in read.feed(text[at : at + size])] + read.finish()
    assert all(isinstance(piece, str) for piece in pieces)
    assert "".join(map(str, pieces)) == text
