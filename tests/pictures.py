"""Pictures that a test compares: PNG and PPM files, and frames from a VNC server.

Sources: PNG (W3C, third edition), ppm(5), RFC 6143 (RFB 3.8).
"""

import socket
import struct
import zlib
from collections import Counter
from pathlib import Path

from attrs import frozen


@frozen
class Picture:
    """``pixels`` are rows of red, green, blue from the top left, a byte each."""

    width: int
    height: int
    pixels: bytes

    def __attrs_post_init__(self) -> None:
        assert len(self.pixels) == 3 * self.width * self.height

    def share_of(self, red: int, green: int, blue: int) -> float:
        """Return how much of the picture has that colour, 0 to 1."""
        triples = zip(self.pixels[::3], self.pixels[1::3], self.pixels[2::3], strict=True)
        return Counter(triples)[red, green, blue] / (self.width * self.height)


def read_png(content: bytes) -> Picture:
    """Return a PNG of eight bits a channel without transparency or interlacing, as QEMU writes."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    position, packed, header = 8, b"", b""
    while position < len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        data = content[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack(">I", content[position + 8 + length :][:4])
        assert checksum == zlib.crc32(kind + data)
        header = data if kind == b"IHDR" else header
        packed += data if kind == b"IDAT" else b""
        position += 12 + length
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", header)
    assert (depth, colour) == (8, 2)
    raw, stride, rows = zlib.decompress(packed), 3 * width, [bytes(3 * width)]
    for start in range(0, len(raw), stride + 1):
        line = bytearray(raw[start + 1 : start + 1 + stride])
        _unfilter(raw[start], line, rows[-1])
        rows.append(bytes(line))
    return Picture(width, height, b"".join(rows[1:]))


def _unfilter(kind: int, line: bytearray, above: bytes) -> None:
    for index, value in enumerate(line):
        left = line[index - 3] if index >= 3 else 0
        up, corner = above[index], above[index - 3] if index >= 3 else 0
        line[index] = (value + _predict(kind, left, up, corner)) & 0xFF


def _predict(kind: int, left: int, up: int, corner: int) -> int:
    if kind < 4:
        return (0, left, up, (left + up) // 2)[kind]
    estimate = left + up - corner
    return min((left, up, corner), key=lambda near: abs(estimate - near))


def read_ppm(file: Path) -> Picture:
    """Return a binary PPM."""
    magic, width, height, most, pixels = file.read_bytes().split(maxsplit=4)
    assert (magic, most) == (b"P6", b"255")
    # A first pixel that looks like white space would be eaten with it.
    size = 3 * int(width) * int(height)
    return Picture(int(width), int(height), pixels.rjust(size, b"\n"))


def fetch_vnc_frame(path: Path, seconds: float = 30) -> Picture:
    """Connect to a VNC server on a unix socket and return one whole frame."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(str(path))
        with connection.makefile("rb") as stream:
            assert stream.read(12) == b"RFB 003.008\n"
            connection.sendall(b"RFB 003.008\n")
            assert 1 in stream.read(stream.read(1)[0]), "it asks for a password"
            connection.sendall(b"\x01")
            assert stream.read(4) == bytes(4)
            connection.sendall(b"\x01")
            width, height = struct.unpack(">HH", stream.read(4))
            stream.read(16)
            stream.read(struct.unpack(">I", stream.read(4))[0])
            # 32 bits a pixel, true colour: blue, green, red, nothing. Only raw rectangles.
            form = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
            connection.sendall(struct.pack(">B3x", 0) + form + struct.pack(">BxHi", 2, 1, 0))
            connection.sendall(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
            rows = [bytearray(3 * width) for _ in range(height)]
            seen = 0
            while seen < width * height:
                kind, count = struct.unpack(">BxH", stream.read(4))
                assert kind == 0
                for _ in range(count):
                    x, y, wide, high, encoding = struct.unpack(">HHHHi", stream.read(12))
                    assert encoding == 0
                    for row in rows[y : y + high]:
                        line = stream.read(4 * wide)
                        for channel in range(3):
                            row[3 * x + channel : 3 * (x + wide) : 3] = line[2 - channel :: 4]
                    seen += wide * high
    return Picture(width, height, b"".join(rows))
