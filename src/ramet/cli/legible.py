"""What a guest wrote to its terminal, for ours: text, line ends and colours, and nothing that moves, asks or answers.

A firmware or a shell asks its terminal where the cursor is (``ESC [ 6 n``); if that reached ours, the answer would be typed at
the user's prompt. Sequences are those of ECMA-48; the 8-bit ones are looked for as the characters U+0080 to U+009F.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

COLOUR: Final = re.compile(r"\x1b\[[0-9;:]*m")
RESET: Final = "\x1b[0m"
_CSI: Final = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*"
_STRING: Final = r"(?:\x1b[PX\]^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*"
"""A title, what goes to the clipboard, a query of settings; a line's end ends it here, so that none swallows the log."""
_STEERING: Final = re.compile(
    rf"(?P<line>\r*\n|\r+)|(?P<csi>{_CSI}[@-~])|{_STRING}(?:\x07|\x1b\\|\x9c)?|\x1b[ -/]*[0-~]?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_UNFINISHED: Final = re.compile(rf"(?:\r+|\x1b[ -/]*|{_CSI}|{_STRING}\x1b?)\Z")
HELD_MAX: Final = 4096
"""Characters of a sequence that may come to its end yet."""


class Legible:
    """A stream that is made legible piece by piece; a sequence may begin in one and end in the next."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.is_coloured = False
        """It has shown a colour, which may still be on."""

    def piece(self, data: bytes) -> str:
        """The next bytes as text; what may be the beginning of a sequence comes with the next ones, or never."""
        text = self._held + self._decoder.decode(data)
        unfinished = _UNFINISHED.search(text, max(len(text) - HELD_MAX, 0))
        self._held = unfinished.group() if unfinished else ""
        return _STEERING.sub(self._shown, text.removesuffix(self._held))

    def _shown(self, found: re.Match[str]) -> str:
        if found["line"]:
            return "\n"
        if found["csi"] and COLOUR.fullmatch(found["csi"]):
            self.is_coloured = True
            return found["csi"]
        return ""
