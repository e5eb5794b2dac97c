"""Scores as XMP in image files, or in sidecars beside them, so that photo managers and browsers can sort by them.

A tag is one `rdf:Description` that is added to the existing packet; no byte of other programs' properties is changed,
except the value of `xmp:Rating` if it is 0 (not rated) or to be overwritten. So a tag can be removed byte for byte, and
if another program has rewritten the packet since, still property by property.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from . import __version__
from .constants import BAND_NAMES
from .files import FileStamp, atomic_write, stamp_file
from .xmp_containers import XmpError as XmpError
from .xmp_containers import find_png_text, find_xmp, is_extended_webp, put_png_text, put_xmp, take_xmp

if TYPE_CHECKING:
    from .checkpoint import ModelInfo
    from .results import ImageScore

NAMESPACE = "https://github.com/comfyui-rali/rali/xmp/1.0/"
"""Namespace of our properties; their prefix is `rali`."""

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
RATING = "http://ns.adobe.com/xap/1.0/ Rating"
WINDOWS_RATING = "http://ns.microsoft.com/photo/1.0/ Rating"
EXIF_RATING = 0x4746
TIFF_XMP = 700

AESTHETIC_KEY = "aesthetic_score"
"""Keyword of a PNG text, 0 to 10, that other scorers of generated images write and Diffusion Toolkit sorts by."""

SIDECAR_SUFFIX = ".xmp"

PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
{}
<?xpacket end="w"?>"""
SIDECAR = """<?xml version="1.0" encoding="UTF-8"?>
{}
"""
BODY = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="RALI {__version__}">
 <rdf:RDF xmlns:rdf="{RDF}">
</rdf:RDF>
</x:xmpmeta>"""

START_TAG = re.compile(rb"<([^\s<>/]+)((?:\s+[^\s<>=/]+\s*=\s*(?:\"[^\"]*\"|'[^']*'))*)\s*/?>")
ATTRIBUTE = re.compile(rb"\s+([^\s<>=/]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)')")
FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold."""


@dataclass(frozen=True)
class Tag:
    """The tag of an image.

    Attributes:
        score: The model's score.
        unit_score: The same, 0 (worst) to 1 (best).
        band: bad, poor, fair, good or excellent; empty if the model has none.
        percentile: Percentage of the model's reference images that score lower; None if it has none.
        model: Name of the model.
        reasons: What is wrong with the image, in words, if that was asked for; or "no content".
    """

    score: float
    unit_score: float
    band: str
    percentile: float | None
    model: str
    reasons: tuple[str, ...] = ()

    @classmethod
    def from_score(cls, result: ImageScore, info: ModelInfo) -> Tag:
        """The tag of an image that was scored.

        Raises:
            ValueError: The image has an error instead of a score.
        """
        if result.error is not None:
            raise ValueError(f"an image without a score cannot be tagged: {result.error}")
        low, high = info.score_range
        percentile = result.percentile if result.percentile == result.percentile else None
        share = min(max((result.score - low) / (high - low), 0.0), 1.0)
        words = result.attributes.words if result.attributes is not None else ()
        reasons = (result.reason,) if result.reason is not None else words
        return cls(result.score, share, result.band, percentile, info.name, reasons)

    @property
    def stars(self) -> int | None:
        """1 (bad) to 5 (excellent); never 0, which means not rated. None without a band."""
        return BAND_NAMES.index(self.band) + 1 if self.band in BAND_NAMES else None

    @property
    def aesthetic_score(self) -> str:
        """0 to 10, two decimals."""
        return f"{10 * self.unit_score:.2f}"

    def properties(self) -> dict[str, str]:
        """The properties of our namespace, without those that only serve to remove the tag."""
        values = {
            "Score": f"{self.score:.4f}",
            "Band": self.band,
            "Percentile": "" if self.percentile is None else f"{self.percentile:.1f}",
            "AestheticScore": self.aesthetic_score,
            "Stars": str(self.stars or ""),
            "Reasons": ", ".join(self.reasons),
            "Model": self.model,
            "Version": __version__,
        }
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class Tagged:
    """The outcome of tagging one image.

    Attributes:
        sidecar: The tag is in a sidecar.
        reason: Why, if the image itself was to be tagged.
        kept_rating: A person had rated the image, and that rating was kept.
        broke_hard_link: The file had other hard links, which keep the untagged file.
    """

    sidecar: bool = False
    reason: str | None = None
    kept_rating: bool = False
    broke_hard_link: bool = False


def tag_file(
    path: str | os.PathLike[str],
    tag: Tag,
    *,
    sidecar: bool = False,
    overwrite_rating: bool = False,
    keep_times: bool = False,
    scored: FileStamp | None = None,
) -> Tagged:
    """Write a tag into an image file, or into its sidecar; an earlier tag is replaced.

    Args:
        path: JPEG, PNG or WebP; any other file, or one whose XMP cannot be changed safely, gets a sidecar.
        tag: What to write.
        sidecar: A sidecar (`a.jpg.xmp` beside `a.jpg`) in any case.
        overwrite_rating: Replace also stars that a person gave; `untag_file` restores those.
        keep_times: Keep the file's times of modification and access.
        scored: The `files.stamp_file` of the image when it was scored.

    Raises:
        XmpError: The existing sidecar is not XMP.
        OSError: A file cannot be read or written, was changed since it was scored, or meanwhile; it is not changed.
    """
    path = Path(path)
    before = stamp_file(path)
    if scored is not None and scored != before:
        raise OSError(f"{path} was changed since it was scored, so it is not tagged: score it again")
    data = path.read_bytes()
    beside, rated = sidecar_of(path), _is_rated(path, data)
    reason = None
    if not sidecar:
        try:
            made, kept = put_tag(data, tag, overwrite_rating=overwrite_rating, rated=rated)
            broke_hard_link = _replace(path, data, made, before, keep_times)
            if _is_tagged(beside):  # an older tag there must not contradict
                _tag_sidecar(beside, tag, overwrite_rating, keep_times, rated=rated)
            return Tagged(kept_rating=kept, broke_hard_link=broke_hard_link)
        except XmpError as error:
            reason = str(error)
    kept = _tag_sidecar(beside, tag, overwrite_rating, keep_times, rated=rated)
    return Tagged(sidecar=True, reason=reason, kept_rating=kept)


def untag_file(path: str | os.PathLike[str], *, keep_times: bool = False) -> bool:
    """Remove our tags from an image file and its sidecar; a sidecar with nothing else in it is deleted.

    A rating that was overwritten is restored, unless it has been changed since.

    Args:
        path: The image.
        keep_times: As for `tag_file`.

    Returns:
        Whether there was a tag.

    Raises:
        XmpError: XMP that holds our tag is damaged.
        OSError: A file cannot be read or written.
    """
    path = Path(path)
    before = stamp_file(path)
    data = path.read_bytes()
    made = take_tag(data)
    _replace(path, data, made, before, keep_times)
    beside = sidecar_of(path)
    tagged = _is_tagged(beside)
    if tagged:
        before = stamp_file(beside)
        data_beside = beside.read_bytes()
        with _named(beside):
            rest, _ = _without_tag(data_beside)
        if rest is None:
            _check_writable(beside)
            beside.unlink()
        else:
            _replace(beside, data_beside, rest, before, keep_times)
    return tagged or made != data


def read_tag(data: bytes) -> dict[str, str]:
    """Our properties in an image file or a sidecar, by name (Score, Band, Percentile, ...); empty without a tag.

    Args:
        data: The whole file.
    """
    packet = data
    with contextlib.suppress(XmpError):
        packet = find_xmp(data).packet or b""
    if NAMESPACE.encode() not in packet:
        return {}
    try:
        return _Packet(packet).ours()
    except XmpError:
        return {}


def put_tag(data: bytes, tag: Tag, *, overwrite_rating: bool = False, rated: bool = False) -> tuple[bytes, bool]:
    """An image file's bytes with a tag, and whether a person's rating kept ours out.

    Args:
        data: The whole file: JPEG, PNG or WebP.
        tag: What to write.
        overwrite_rating: As for `tag_file`.
        rated: A person has rated the image elsewhere.

    Raises:
        XmpError: The file cannot take XMP safely.
    """
    data = take_tag(data, strict=True)
    place = find_xmp(data)
    added = []
    if place.kind == "WebP" and not is_extended_webp(data):
        added.append("VP8X")
    if place.kind == "PNG" and not find_png_text(data, AESTHETIC_KEY):
        added.append(AESTHETIC_KEY)
    packet, kept = _with_tag(place.packet, PACKET, tag, added, overwrite_rating, rated)
    data = put_xmp(data, packet)
    if AESTHETIC_KEY in added:
        data = put_png_text(data, AESTHETIC_KEY, tag.aesthetic_score)
    return data, kept


def take_tag(data: bytes, *, strict: bool = True) -> bytes:
    """An image file's bytes without our tag: the input of `put_tag`.

    Args:
        data: The whole file; without a tag it is returned unchanged.
        strict: Refuse a damaged packet; otherwise it counts as one without a tag.

    Raises:
        XmpError: The packet that holds the tag is damaged.
    """
    try:
        packet = find_xmp(data).packet
    except XmpError:
        return data
    if packet is None or NAMESPACE.encode() not in packet:
        return data
    try:
        rest, ours = _without_tag(packet)
    except XmpError:
        if strict:
            raise
        return data
    added = ours.get("Added", "").split()
    data = take_xmp(data, extended="VP8X" in added) if rest is None else put_xmp(data, rest)
    if AESTHETIC_KEY in added:
        for start, end, text in find_png_text(data, AESTHETIC_KEY):
            if text == ours.get("AestheticScore"):
                return data[:start] + data[end:]
    return data


def sidecar_of(path: Path) -> Path:
    """Where an image's sidecar is: `a.jpg.xmp`, as darktable and digiKam name it; `a.xmp` may belong to `a.raw`."""
    return path.with_name(path.name + SIDECAR_SUFFIX)


def _is_tagged(path: Path) -> bool:
    return path.is_file() and NAMESPACE.encode() in path.read_bytes()


@contextlib.contextmanager
def _named(sidecar: Path) -> Iterator[None]:
    try:
        yield
    except XmpError as error:
        raise XmpError(f"{sidecar} is not changed: {error}") from error


def _tag_sidecar(path: Path, tag: Tag, overwrite_rating: bool, keep_times: bool, *, rated: bool) -> bool:
    before, data, packet = None, b"", None
    with _named(path):
        if path.exists():
            before, data = stamp_file(path), path.read_bytes()
            packet = _without_tag(data)[0] if NAMESPACE.encode() in data else data
        made, kept = _with_tag(packet, SIDECAR, tag, [], overwrite_rating, rated)
    _replace(path, data, made, before, keep_times)
    return kept


def _replace(path: Path, old: bytes, new: bytes, before: FileStamp | None, keep_times: bool) -> bool:
    """Replace a file that was read; returns whether it had other names, which keep the old content."""
    if old == new:
        return False
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    links = 1
    if before is not None:
        _check_writable(target)
        links = target.stat().st_nlink
    with atomic_write(target, replaces=before, keep_times=keep_times) as temporary:
        temporary.write_bytes(new)
    return links > 1


def _check_writable(path: Path) -> None:
    if not path.stat().st_mode & 0o222 or not os.access(path, os.W_OK):
        raise PermissionError(f"{path} is read-only, so it is not changed: make it writable, or use sidecars")


# Ratings that people gave


def _is_rated(path: Path, data: bytes) -> bool:
    """Whether a person has rated an image, in its XMP or EXIF or in a sidecar of either name."""
    sidecars = (sidecar_of(path), path.with_suffix(SIDECAR_SUFFIX))
    packets = [other.read_bytes() for other in sidecars if other.is_file()]
    with contextlib.suppress(XmpError):
        packets.append(find_xmp(data).packet or b"")
    rating, packet = _read_with_pillow(data)
    return _is_given(rating) or any(map(_holds_rating, [*packets, packet]))


def _read_with_pillow(data: bytes) -> tuple[Any, bytes]:
    """EXIF's rating, and the XMP of formats that only Pillow reads."""
    from .images import ImageError, open_image

    try:
        with open_image(data) as image:
            rating = None if image.format == "PNG" else image.getexif().get(EXIF_RATING)  # a PNG would be decoded
            packet = image.info.get("xmp") or getattr(image, "tag_v2", {}).get(TIFF_XMP)
            return rating, packet if isinstance(packet, bytes) else b""
    except ImageError:
        return None, b""


def _holds_rating(packet: bytes) -> bool:
    try:
        rest = _without_tag(packet)[0] if NAMESPACE.encode() in packet else packet
        return bool(rest) and _Packet(rest or b"").is_rated()
    except XmpError:
        return False


def _is_given(rating: Any) -> bool:
    """Whether it is a person's rating: 0 means not rated, and -1 rejected."""
    try:
        return float(rating or 0) != 0
    except (TypeError, ValueError):
        return True


# Packets


@dataclass(frozen=True)
class _Property:
    """A property of the image in a packet.

    Attributes:
        name: Namespace and local name, with a space between.
        value: None if it is not plain text.
        span: Span of the attribute or element.
        value_span: Span of the value's text.
        owner: 0-based number of its `rdf:Description`.
    """

    name: str
    value: str | None
    span: tuple[int, int]
    value_span: tuple[int, int]
    owner: int


class _Packet:
    """A packet's properties, and their positions in its bytes.

    Args:
        data: XML in an encoding that holds ASCII.

    Raises:
        XmpError: It is not such XML, or holds no RDF.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.properties: list[_Property] = []
        self.descriptions: list[tuple[int, int]] = []
        self.declarations: list[tuple[int, int, int]] = []
        """Description, and span, of declarations of our namespace."""
        self.about = b""
        self.rdf: tuple[bytes, int, bool] | None = None
        """The element's name, where its content ends, and whether it is an empty tag."""
        self._open: list[_Open] = []
        body = data.rstrip(b"\0")
        self._parser = parser = expat.ParserCreate(namespace_separator=" ")
        parser.ordered_attributes = True
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        if b"\0" in body:
            raise XmpError("its XMP is UTF-16 or damaged")
        try:
            parser.Parse(body, True)
        except expat.ExpatError as error:
            raise XmpError(f"its XMP is damaged ({error})") from error
        if self.rdf is None:
            raise XmpError("its XMP is damaged (there is no rdf:RDF)")

    def ours(self) -> dict[str, str]:
        """Our properties by their local names."""
        found = [(each.name.partition(" "), each.value) for each in self.properties]
        return {local: value or "" for (space, _, local), value in found if space == NAMESPACE}

    def find(self, name: str) -> _Property | None:
        """The first property of a name."""
        return next((each for each in self.properties if each.name == name), None)

    def is_rated(self) -> bool:
        """Whether it holds a person's rating."""
        return any(
            each.value is None or _is_given(each.value)
            for each in self.properties
            if each.name in (RATING, WINDOWS_RATING)
        )

    def edited(self, edits: Iterable[tuple[tuple[int, int], bytes]]) -> bytes:
        """The packet with other bytes at some spans, none of which overlap."""
        data = self.data
        for (start, end), new in sorted(edits, reverse=True):
            data = data[:start] + new + data[end:]
        return data

    def _refuse(self, *_: object) -> None:
        raise XmpError("its XMP is damaged (it declares a document type)")

    def _start(self, name: str, attributes: list[str]) -> None:
        start = self._parser.CurrentByteIndex
        match = START_TAG.match(self.data, start)
        if match is None:  # an encoding whose bytes are not those of ASCII
            raise XmpError("its XMP is in an encoding that is not read")
        parent = self._open[-1].name if self._open else ""
        self._open.append(_Open(name, start, match.end(), match[0].endswith(b"/>")))
        if parent == f"{RDF} RDF" and name == f"{RDF} Description":
            self._open[-1].number = len(self.descriptions)
            self.descriptions.append((start, start))
            self._read_attributes(match, attributes)
        elif len(self._open) > 1:
            self._open[-2].plain = False

    def _read_attributes(self, tag: re.Match[bytes], attributes: list[str]) -> None:
        owner = len(self.descriptions) - 1
        names = iter(zip(attributes[::2], attributes[1::2], strict=True))
        for match in ATTRIBUTE.finditer(self.data, *tag.span(2)):
            span, value_span = match.span(), match.span(2 if match[2] is not None else 3)
            if match[1] == b"xmlns" or match[1].startswith(b"xmlns:"):
                if self.data[slice(*value_span)] == NAMESPACE.encode():
                    self.declarations.append((owner, *span))
                continue
            name, value = next(names)
            if name in (f"{RDF} about", "about"):
                self.about = self.about or self.data[slice(*value_span)]
            elif not name.startswith(RDF):
                self.properties.append(_Property(name, value, span, value_span, owner))

    def _end(self, name: str) -> None:
        element, end = self._open.pop(), self._parser.CurrentByteIndex
        content_end = element.tag_end if element.empty else end
        end = element.tag_end if element.empty else self.data.index(b">", end) + 1
        if name == f"{RDF} RDF" and self.rdf is None:
            match = START_TAG.match(self.data, element.start)
            self.rdf = (match[1] if match else b"", content_end, element.empty)
        elif element.number is not None:
            self.descriptions[element.number] = (element.start, end)
        elif self._open and (owner := self._open[-1].number) is not None:
            value = "".join(element.text).strip() if element.plain and not element.empty else None
            self.properties.append(_Property(name, value, (element.start, end), (element.tag_end, content_end), owner))

    def _text(self, text: str) -> None:
        if self._open:
            self._open[-1].text.append(text)


@dataclass
class _Open:
    """An element whose end has not been read yet; `number` is that of an `rdf:Description`."""

    name: str
    start: int
    tag_end: int
    empty: bool
    number: int | None = None
    plain: bool = True
    text: list[str] = field(default_factory=list)


def _with_tag(
    data: bytes | None, wrapper: str, tag: Tag, added: list[str], overwrite_rating: bool, rated: bool
) -> tuple[bytes, bool]:
    """A packet with a tag, and whether a person's rating kept ours out.

    Args:
        data: A packet without a tag; None creates one.
        wrapper: What a new one stands in.
        tag: What to write.
        added: What else was added to the file, to be removed with the tag.
        overwrite_rating: As for `tag_file`.
        rated: A person has rated the image elsewhere.
    """
    added = added if data is not None else [*added, "packet"]
    packet = _Packet(wrapper.format(BODY).encode() if data is None else data)
    assert packet.rdf is not None
    name, place, empty = packet.rdf
    values = {f"rali:{key}": value for key, value in tag.properties().items()}
    rating = packet.find(RATING)
    kept = tag.stars is not None and not overwrite_rating and (rated or packet.is_rated())
    edits: list[tuple[tuple[int, int], bytes]] = []
    if tag.stars is not None and not kept:
        if rating is None:
            values["xmp:Rating"] = str(tag.stars)
            added = [*added, "Rating"]
        elif rating.value is not None:
            values["rali:FormerRating"] = rating.value
            edits.append((rating.value_span, str(tag.stars).encode()))
    if added:
        values["rali:Added"] = " ".join(added)
    prefix, _, _ = name.rpartition(b":")
    element = (prefix + b":" if prefix else b"") + b"Description"
    about = (prefix + b":" if prefix else b"") + b'about="' + packet.about.replace(b'"', b"&quot;") + b'"'
    spaces = {"rali": NAMESPACE, **({"xmp": RATING.partition(" ")[0]} if "xmp:Rating" in values else {})}
    written = {**{f"xmlns:{key}": value for key, value in spaces.items()}, **values}
    text = "".join(f"\n  {key}={quoteattr(FORBIDDEN.sub('?', value))}" for key, value in written.items())
    block = b"<" + element + b" " + about + text.encode("ascii", "xmlcharrefreplace") + b"/>"
    if empty:
        edits.append(((place - 2, place), b">" + block + b"</" + name + b">"))
    else:
        edits.append(((place, place), block))
    return packet.edited(edits), kept


def _without_tag(data: bytes) -> tuple[bytes | None, dict[str, str]]:
    """A packet without its tag, None if nothing is left of one that we created; and our former properties."""
    packet = _Packet(data)
    ours = packet.ours()
    added = ours.get("Added", "").split()
    removed = [each for each in packet.properties if each.name.startswith(NAMESPACE + " ")]
    edits: list[tuple[tuple[int, int], bytes]] = []
    rating = packet.find(RATING)
    if rating is not None and rating.value == ours.get("Stars"):  # otherwise it has been changed since
        if "FormerRating" in ours:
            edits.append((rating.value_span, ours["FormerRating"].encode()))
        elif "Rating" in added:
            removed.append(rating)
    for number, span in enumerate(packet.descriptions):
        there = [each for each in packet.properties if each.owner == number]
        leaving = [each for each in removed if each.owner == number]
        if leaving and len(leaving) == len(there):
            edits = [edit for edit in edits if not span[0] <= edit[0][0] < span[1]]
            edits.append((span, b""))
        elif leaving:
            edits += [(each.span, b"") for each in leaving]
            edits += [((start, end), b"") for owner, start, end in packet.declarations if owner == number]
    if "packet" in added and len(removed) == len(packet.properties):
        return None, ours
    return packet.edited(edits), ours
