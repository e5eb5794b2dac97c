"""Finds, adds and removes the XMP of JPEG, PNG and WebP files, while every other byte is kept.

Nothing is decoded: the compressed image data, other metadata and whatever follows the image (the other images of an
MPO, the video of a motion photo) are copied. Offsets in a JPEG's multi-picture index are updated.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
PNG_XMP = b"XML:com.adobe.xmp\0"
LARGEST_JPEG_PACKET = 65533 - len(JPEG_XMP)
"""Bytes; a longer one would need extended XMP, which is not written."""

LARGEST_UNPACKED = 2**24
"""Bytes of a compressed packet."""

XMP_FLAG, ALPHA_FLAG = 0x04, 0x10
"""Flag in a WebP's extended header."""

CREDENTIALS = "it has Content Credentials (C2PA), whose signature a change of the file would break"

Kind = Literal["JPEG", "PNG", "WebP"]


class XmpError(ValueError):
    """XMP cannot be written into a file safely; the message gives the reason, and continues the file's name."""


@dataclass(frozen=True)
class Place:
    """Where a file's XMP is.

    Attributes:
        kind: Format of the file.
        start: Offset of the segment or chunk that holds the packet; or of the place for a new one.
        end: Offset of its end.
        packet: The packet, or None.
    """

    kind: Kind
    start: int
    end: int
    packet: bytes | None


def find_xmp(data: bytes) -> Place:
    """The place of a file's XMP, or for a new one.

    Args:
        data: The whole file.

    Raises:
        XmpError: It is none of the three formats, it is damaged, or a change would do harm.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _find_in_jpeg(data)
    if data.startswith(PNG_SIGNATURE):
        return _find_in_png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _find_in_webp(data)
    raise XmpError("only JPEG, PNG and WebP take XMP here")


def put_xmp(data: bytes, packet: bytes) -> bytes:
    """The file with another packet, or with its first one.

    Args:
        data: The whole file.
        packet: In UTF-8.

    Raises:
        XmpError: As for `find_xmp`; or the packet is too long for a JPEG.
    """
    place = find_xmp(data)
    if place.kind == "JPEG":
        if len(packet) > LARGEST_JPEG_PACKET:
            raise XmpError(f"its XMP would be larger than a JPEG segment holds ({LARGEST_JPEG_PACKET:,} bytes)")
        segment = b"\xff\xe1" + struct.pack(">H", 2 + len(JPEG_XMP) + len(packet)) + JPEG_XMP + packet
        return _splice_jpeg(data, place, segment)
    if place.kind == "PNG":
        return _splice(data, place, _png_chunk(b"iTXt", PNG_XMP + b"\0\0\0\0" + packet))
    if not is_extended_webp(data):
        data = _extend_webp(data)
        place = find_xmp(data)
    return _splice_webp(data, place, _webp_chunk(b"XMP ", packet))


def take_xmp(data: bytes, *, extended: bool = False) -> bytes:
    """The file without its packet.

    Args:
        data: The whole file.
        extended: A WebP's extended header was added for the packet, and is removed with it if nothing else needs it.

    Raises:
        XmpError: As for `find_xmp`.
    """
    place = find_xmp(data)
    if place.packet is None:
        return data
    if place.kind == "JPEG":
        return _splice_jpeg(data, place, b"")
    if place.kind == "PNG":
        return _splice(data, place, b"")
    rest = _splice_webp(data, place, b"")
    if extended and not rest[20] & ~ALPHA_FLAG and rest[30:34] in (b"VP8 ", b"VP8L"):
        rest = _grow_riff(rest[:12] + rest[30:], -18)
    return rest


def _splice(data: bytes, place: Place, new: bytes) -> bytes:
    return data[: place.start] + new + data[place.end :]


# JPEG


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the segments before the first scan; fill bytes between them belong to none."""
    place = 2
    while True:
        while data[place : place + 2] == b"\xff\xff":
            place += 1
        head = data[place : place + 4]
        if len(head) < 4 or head[0] != 0xFF or head[1] in (0x00, 0xD8, 0xD9):
            raise XmpError("its JPEG segments are damaged")
        if head[1] == 0xDA:
            return
        if 0xD0 <= head[1] <= 0xD7 or head[1] == 0x01:  # these have no length
            place += 2
            continue
        length = struct.unpack_from(">H", head, 2)[0]
        end = place + 2 + length
        if length < 2 or end > len(data):
            raise XmpError("its JPEG segments are damaged")
        yield head[1], place, end
        place = end


def _find_in_jpeg(data: bytes) -> Place:
    found, insert, leading = None, 2, True
    for marker, start, end in _segments(data):
        payload = data[start + 4 : end]
        if marker == 0xE1 and payload.startswith(JPEG_XMP) and found is None:
            found = Place("JPEG", start, end, payload[len(JPEG_XMP) :])
        if marker == 0xEB and payload.startswith(b"JP") and b"c2pa" in payload:
            raise XmpError(CREDENTIALS)
        # JFIF and Exif must come first.
        leading = leading and (marker == 0xE0 or (marker == 0xE1 and payload.startswith(b"Exif\0")))
        insert = end if leading else insert
    return found or Place("JPEG", insert, insert, None)


def _splice_jpeg(data: bytes, place: Place, new: bytes) -> bytes:
    made = bytearray(_splice(data, place, new))
    grown = len(new) - (place.end - place.start)
    for marker, start, end in _segments(bytes(made)):
        payload = made[start + 4 : end]
        if marker == 0xE2 and payload.startswith(b"MPF\0"):
            index = bytearray(payload[4:])
            _shift_mpf(index, grown, moves=start < place.start)
            made[end - len(index) : end] = index
    return bytes(made)


def _shift_mpf(index: bytearray, grown: int, *, moves: bool) -> None:
    """Update a multi-picture index (CIPA DC-007) after the first image has grown.

    Args:
        index: The index, a TIFF structure, which its offsets are relative to; changed in place.
        grown: Bytes.
        moves: The other images moved relative to the index, which is before the inserted bytes.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(index[:4]))
    if order is None:
        return
    try:
        directory = struct.unpack_from(order + "I", index, 4)[0]
        for entry in range(struct.unpack_from(order + "H", index, directory)[0]):
            tag, _, size, at = struct.unpack_from(order + "HHII", index, directory + 2 + 12 * entry)
            for image in range(at, at + size if tag == 0xB002 else at, 16):
                length, offset = struct.unpack_from(order + "II", index, image + 4)
                if offset == 0 and length:
                    struct.pack_into(order + "I", index, image + 4, (length + grown) % 2**32)
                elif offset and moves:
                    struct.pack_into(order + "I", index, image + 8, (offset + grown) % 2**32)
    except struct.error:  # a damaged index is not changed
        return


# PNG


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the chunks up to the last one."""
    place = len(PNG_SIGNATURE)
    while True:
        if place + 12 > len(data):
            raise XmpError("its PNG chunks are damaged")
        end = place + 12 + struct.unpack_from(">I", data, place)[0]
        kind = bytes(data[place + 4 : place + 8])
        if end > len(data) or (place == len(PNG_SIGNATURE) and kind != b"IHDR"):
            raise XmpError("its PNG chunks are damaged")
        yield kind, place, end
        if kind == b"IEND":
            return
        place = end


def _png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def _find_in_png(data: bytes) -> Place:
    found, insert = None, 0
    for kind, start, end in _png_chunks(data):
        if kind == b"IHDR":
            insert = end
        elif kind == b"caBX":
            raise XmpError(CREDENTIALS)
        elif kind == b"iTXt" and data.startswith(PNG_XMP, start + 8) and found is None:
            if data[end - 4 : end] != struct.pack(">I", zlib.crc32(data[start + 4 : end - 4])):
                raise XmpError("its XMP chunk is damaged")
            found = Place("PNG", start, end, _png_packet(data[start + 8 : end - 4]))
        elif kind in (b"tEXt", b"zTXt") and data.startswith(b"Raw profile type xmp\0", start + 8):
            raise XmpError("it holds XMP in ImageMagick's form (Raw profile type xmp), beside which no other may stand")
    return found or Place("PNG", insert, insert, None)


def _png_packet(payload: bytes) -> bytes:
    flags, parts = payload[len(PNG_XMP) :][:2], payload[len(PNG_XMP) + 2 :].split(b"\0", 2)
    if len(parts) < 3:  # language, translated keyword, text
        raise XmpError("its XMP chunk is damaged")
    if flags == b"\0\0":
        return parts[2]
    try:
        unpacker = zlib.decompressobj()
        packet = unpacker.decompress(parts[2], LARGEST_UNPACKED)
    except zlib.error as error:
        raise XmpError("its XMP chunk is damaged") from error
    if not unpacker.eof:
        raise XmpError("its XMP chunk is damaged or very large")
    return packet


def find_png_text(data: bytes, key: str) -> list[tuple[int, int, str]]:
    """Start, end and text of a PNG's chunks of one keyword.

    Args:
        data: The whole file.
        key: The keyword. Compressed and UTF-8 texts are found too, but not read: they count as empty.

    Raises:
        XmpError: The chunks are damaged.
    """
    found = []
    name = key.encode("latin-1") + b"\0"
    for kind, start, end in _png_chunks(data):
        if kind in (b"tEXt", b"zTXt", b"iTXt") and data.startswith(name, start + 8):
            text = data[start + 8 + len(name) : end - 4] if kind == b"tEXt" else b""
            found.append((start, end, text.decode("latin-1")))
    return found


def put_png_text(data: bytes, key: str, text: str) -> bytes:
    """The file with one more text, after its header."""
    header = next(_png_chunks(data))[2]
    chunk = _png_chunk(b"tEXt", key.encode("latin-1") + b"\0" + text.encode("latin-1"))
    return data[:header] + chunk + data[header:]


# WebP


def is_extended_webp(data: bytes) -> bool:
    """Whether a file is a WebP with the header that metadata need."""
    return data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X"


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end (with padding) of the chunks."""
    stop = 8 + struct.unpack_from("<I", data, 4)[0]
    place = 12
    while place < stop:
        if place + 8 > min(stop, len(data)):
            raise XmpError("its WebP chunks are damaged")
        size = struct.unpack_from("<I", data, place + 4)[0]
        end = place + 8 + size + size % 2
        if end > min(stop, len(data)):
            raise XmpError("its WebP chunks are damaged")
        yield data[place : place + 4], place, end
        place = end


def _webp_chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)


def _find_in_webp(data: bytes) -> Place:
    found, end = None, 12
    for kind, start, end in _webp_chunks(data):
        if kind == b"XMP " and found is None:
            size = struct.unpack_from("<I", data, start + 4)[0]
            found = Place("WebP", start, end, data[start + 8 : start + 8 + size])
        elif kind == b"C2PA":
            raise XmpError(CREDENTIALS)
    return found or Place("WebP", end, end, None)


def _extend_webp(data: bytes) -> bytes:
    kind, frame = data[12:16], data[20:30]
    if kind == b"VP8 " and frame[3:6] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", frame, 6))
        flags = 0
    elif kind == b"VP8L" and frame[:1] == b"\x2f":
        bits = struct.unpack_from("<I", frame, 1)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        flags = ALPHA_FLAG if bits >> 28 & 1 else 0
    else:
        raise XmpError("its WebP chunks are damaged")
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height) if side)
    if len(sides) != 6:
        raise XmpError("its WebP chunks are damaged")
    return _grow_riff(data[:12] + _webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sides) + data[12:], 18)


def _splice_webp(data: bytes, place: Place, new: bytes) -> bytes:
    made = bytearray(_grow_riff(_splice(data, place, new), len(new) - (place.end - place.start)))
    made[20] = made[20] | XMP_FLAG if new else made[20] & ~XMP_FLAG
    return bytes(made)


def _grow_riff(data: bytes, grown: int) -> bytes:
    size = struct.unpack_from("<I", data, 4)[0] + grown
    if size >= 2**32:
        raise XmpError("it has the maximum size of a WebP")
    return data[:4] + struct.pack("<I", size) + data[8:]
