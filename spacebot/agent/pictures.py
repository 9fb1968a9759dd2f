"""What kind of picture some bytes are, and how large: from the bytes, whatever their name says. Pure.

Floor:  agent
Source: PNG 11.2.2 (IHDR); GIF89a 18; ISO 10918-1 B.2.2 (frame header); RIFF container of WebP
"""

from dataclasses import dataclass

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that carry a size
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers without a length


@dataclass(frozen=True, slots=True)
class Picture:
    """A kind of picture that models see; the sides in pixels are 0 when they cannot be read."""

    media_type: str
    width: int = 0
    height: int = 0


def picture_of(data: bytes) -> Picture | None:
    """The picture that bytes are; None when they are none of JPEG, PNG, GIF and WebP."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        is_whole = data[12:16] == b"IHDR" and len(data) >= 33
        return Picture("image/png", *((_big(data[16:20]), _big(data[20:24])) if is_whole else ()))
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return Picture("image/gif", _little(data[6:8]), _little(data[8:10]))
    if data.startswith(b"\xff\xd8\xff"):
        return Picture("image/jpeg", *_jpeg_size(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Picture("image/webp", *_webp_size(data))
    return None


def _jpeg_size(data: bytes) -> tuple[int, int]:
    position = 2
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            return 0, 0
        marker = data[position + 1]
        if marker == 0xFF:  # filling
            position += 1
        elif marker in _BARE:
            position += 2
        elif marker in _FRAMES:
            return _big(data[position + 7 : position + 9]), _big(data[position + 5 : position + 7])
        else:
            position += 2 + max(_big(data[position + 2 : position + 4]), 2)
    return 0, 0


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if len(data) < 30:
        return 0, 0
    if kind == b"VP8X":
        return 1 + _little(data[24:27]), 1 + _little(data[27:30])
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = _little(data[21:25])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF
    return 0, 0


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
