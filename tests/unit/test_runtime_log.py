"""The log of every role: one event is one line."""

from io import StringIO

import pytest

from edgewise.runtime.log import StreamLog
from edgewise.testing.clock import ManualClock


@pytest.mark.parametrize("as_json", [False, True])
def test_a_name_with_line_breaks_and_colours_forges_no_line(as_json: bool) -> None:
    stream = StringIO()
    log = StreamLog(ManualClock(), "hub", stream=stream, as_json=as_json)
    log.decision("join refused", because="forged", name="x\n2026 info hub joined\x1b[31m ü")
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()
    assert "ü" in stream.getvalue()
