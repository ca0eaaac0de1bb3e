"""Write a PNG with nothing but zlib."""

import struct
import zlib


def png(width: int, height: int, rgb: bytes) -> bytes:
    """Return `width` × `height` pixels of three bytes as a PNG file."""
    assert len(rgb) == width * height * 3
    stride = width * 3
    # Each row starts with its filter; 0: none.
    lines = b"".join(b"\0" + rgb[y * stride : (y + 1) * stride] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
