from __future__ import annotations

import io
import json
import os
import re
import sqlite3
import struct
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rali_core.attributes import ImageAttributes
from rali_core.checkpoint import ModelInfo
from rali_core.cli import main
from rali_core.results import ImageScore
from rali_core.saved_score import read_saved_score
from rali_core.score_cache import FILE_NAME, bytes_key
from rali_core.xmp import Tag, Tagged, XmpError, put_tag, read_tag, sidecar_of, tag_file, take_tag, untag_file
from rali_core.xmp_containers import find_xmp, put_xmp

RANDOM = np.random.default_rng(0)
PICTURE = Image.fromarray(RANDOM.integers(0, 256, (41, 53, 3), dtype=np.uint8))
TURNED = [PICTURE.rotate(90), PICTURE.rotate(180)]
TAG = Tag(0.819, 0.819, "excellent", 92.31, 'rali <small> "ü"')
POOR = Tag(0.31, 0.31, "poor", None, "rali-small")

LIGHTROOM = b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000 1.000000, 0000/00/00-00:00:00        ">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
   xmp:CreatorTool="Adobe &gt; Lightroom"
   xmp:Rating="RATING"
   crs:Exposure2012="+0.35">
   <dc:subject><rdf:Bag><rdf:li>caf\xc3\xa9</rdf:li></rdf:Bag></dc:subject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
                              \n<?xpacket end="w"?>"""
DIGIKAM = b"""<?xpacket begin='\xef\xbb\xbf' id='W5M0MpCehiHzreSzNTczkc9d'?>
<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk='XMP Core 4.4.0-Exiv2'><!-- a comment -->
 <r:RDF xmlns:r='http://www.w3.org/1999/02/22-rdf-syntax-ns#' xmlns:ms='http://ns.microsoft.com/photo/1.0/'>
  <r:Description r:about='uuid:1' xmlns:digiKam='http://www.digikam.org/ns/1.0/' xmlns:xap='http://ns.adobe.com/xap/1.0/'>
   <digiKam:TagsList><r:Seq><r:li>Places/Rome</r:li></r:Seq></digiKam:TagsList>
   <xap:Rating>RATING</xap:Rating>
  </r:Description>
 </r:RDF>
</x:xmpmeta>
<?xpacket end='w'?>\0\0"""


def saved(form: str, image: Image.Image = PICTURE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def comfy_png() -> bytes:
    texts = PngInfo()
    texts.add_text("prompt", json.dumps({"3": {"class_type": "KSampler"}}))
    texts.add_text("workflow", "{}", zip=True)
    return saved("PNG", pnginfo=texts)


def with_alpha(value: int) -> Image.Image:
    image = PICTURE.copy()
    image.putalpha(value)
    return image


def text_after_pixels() -> bytes:
    data = saved("PNG")
    return data[:-12] + chunk(b"tEXt", b"Comment\0late") + data[-12:] + b"behind the end"


def exif(rating: int | None = None) -> bytes:
    made = Image.Exif()
    made[0x010E] = "a description"
    if rating is not None:
        made[0x4746] = rating
    return made.tobytes()


FILES = {
    "baseline.jpg": saved("JPEG", dpi=(72, 72)),
    "progressive.jpg": saved("JPEG", progressive=True, exif=exif()),
    "fill.jpg": saved("JPEG")[:2] + b"\xff\xff\xff" + saved("JPEG")[3:],
    "motion.jpg": saved("JPEG") + b"\0\0\0\x20ftypmp42" + bytes(range(256)),
    "two.mpo": saved("MPO", save_all=True, append_images=TURNED[:1]),
    "comfy.png": comfy_png(),
    "late.png": text_after_pixels(),
    "animated.png": saved("PNG", save_all=True, append_images=TURNED),
    "lossy.webp": saved("WEBP"),
    "lossless.webp": saved("WEBP", lossless=True),
    "alpha.webp": saved("WEBP", with_alpha(99), lossless=True),
    "lossy-alpha.webp": saved("WEBP", with_alpha(99)),
    "exif.webp": saved("WEBP", exif=exif(), icc_profile=b"a profile of odd size"),
    "animated.webp": saved("WEBP", save_all=True, append_images=TURNED),
}


def frames(data: bytes) -> list[bytes]:
    with Image.open(io.BytesIO(data)) as image:
        made = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            made.append(image.convert("RGBA").tobytes())
        return made


def compressed_pixels(data: bytes) -> list[bytes]:
    """What must stay byte for byte: scans, IDAT and frame chunks, and all behind them."""
    if data.startswith(b"\xff\xd8"):
        return [data[data.index(b"\xff\xdb") :]]  # from the first table on
    if data.startswith(b"RIFF"):
        return re.findall(rb"(?s)(?:VP8 |VP8L|ANMF).*(?=XMP )|(?:VP8 |VP8L|ANMF).*$", data)[:1]
    return [data[data.index(b"IDAT") :]]


@pytest.mark.parametrize("name", FILES)
def test_pixels_stay_and_untagged_is_byte_for_byte_what_was_there(name: str) -> None:
    data = FILES[name]
    tagged, kept = put_tag(data, TAG)
    assert not kept
    assert len(data) < len(tagged) < len(data) + 1200
    assert frames(tagged) == frames(data)
    assert compressed_pixels(tagged)[0].startswith(compressed_pixels(data)[0][:-1]), "nothing is encoded again"
    assert take_tag(tagged) == data
    assert put_tag(tagged, TAG)[0] == tagged, "a second time changes nothing"
    assert take_tag(put_tag(tagged, POOR)[0]) == data
    assert bytes_key(tagged) == bytes_key(data) != bytes_key(data + b"x"), "it is found again in the score cache"
    block = ElementTree.fromstring(find_xmp(tagged).packet or b"")[0][-1]
    assert block.attrib["{http://ns.adobe.com/xap/1.0/}Rating"] == "5"
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(tagged)) as after:
        assert dict(after.getexif()) == dict(before.getexif())
        after.load()
        before.load()
        assert {key for key, value in before.info.items() if after.info[key] != value} <= {"mp"}  # the index has moved
    assert read_tag(tagged) == {
        "Score": "0.8190", "Band": "excellent", "Percentile": "92.3", "AestheticScore": "8.19", "Stars": "5",
        "Model": TAG.model, "Version": read_tag(tagged)["Version"], "Added": read_tag(tagged)["Added"],
    }  # fmt: skip


def test_a_pngs_chunks_have_right_checksums_and_the_key_that_image_browsers_sort_by() -> None:
    tagged, _ = put_tag(FILES["comfy.png"], TAG)
    place = 8
    while place < len(tagged):
        size = struct.unpack_from(">I", tagged, place)[0]
        body = tagged[place + 4 : place + 8 + size]
        assert struct.unpack_from(">I", tagged, place + 8 + size)[0] == zlib.crc32(body)
        place += 12 + size
    with Image.open(io.BytesIO(tagged)) as image:
        assert image.info["aesthetic_score"] == "8.19"
        assert json.loads(image.info["prompt"])["3"]["class_type"] == "KSampler"
        assert image.info["workflow"] == "{}"
    texts = PngInfo()
    texts.add_text("aesthetic_score", "6.50")
    theirs = saved("PNG", pnginfo=texts)
    tagged, _ = put_tag(theirs, TAG)
    with Image.open(io.BytesIO(tagged)) as image:
        assert image.info["aesthetic_score"] == "6.50", "another scorer's stays"
    assert take_tag(tagged) == theirs


@pytest.mark.parametrize("behind", [False, True])
def test_the_other_image_of_a_jpeg_is_found_where_its_index_says(behind: bool) -> None:
    def index(data: bytes) -> list[tuple[int, int]]:
        with Image.open(io.BytesIO(data)) as image:
            return [(each["Size"], each["DataOffset"]) for each in image.mpinfo[0xB002]]  # type: ignore[attr-defined]

    data = FILES["two.mpo"]
    if behind:  # the packet lies behind the index, so that the second image moves away from that
        start = data.index(b"MPF\0") - 4
        end = start + 2 + struct.unpack_from(">H", data, start + 2)[0]
        packet = b"http://ns.adobe.com/xap/1.0/\0" + DIGIKAM.replace(b"RATING", b"0")
        data = data[:end] + b"\xff\xe1" + struct.pack(">H", 2 + len(packet)) + packet + data[end:]
    tagged, _ = put_tag(data, TAG)
    grown = len(tagged) - len(data)
    (size, _), (second_size, offset) = index(data)
    assert index(tagged) == [(size + grown, 0), (second_size, offset + grown * behind)]
    if not behind:
        second = tagged.index(b"MPF\0") + 4 + offset
        assert tagged[second : second + second_size] == data[-second_size:]
    assert take_tag(tagged) == data


@pytest.mark.parametrize("packet", [LIGHTROOM, DIGIKAM], ids=["Lightroom", "digiKam"])
@pytest.mark.parametrize("name", ["baseline.jpg", "two.mpo", "comfy.png", "late.png", "lossy.webp", "animated.webp"])
def test_packets_of_other_programs_keep_every_byte(name: str, packet: bytes) -> None:
    unrated, rated = (put_xmp(FILES[name], packet.replace(b"RATING", value)) for value in (b"0", b"3"))
    tagged, kept = put_tag(unrated, TAG)
    made = find_xmp(tagged).packet or b""
    block = re.search(rb"<r(df)?:Description r(df)?:about=\"(uuid:1)?\"\s+xmlns:rali.*?/>", made, re.DOTALL)
    assert block is not None
    assert made.replace(block[0], b"") == packet.replace(b"RATING", b"5")
    assert (kept, frames(tagged), take_tag(tagged)) == (False, frames(unrated), unrated)
    tagged, kept = put_tag(rated, POOR)
    assert kept, "a person's rating stays"
    assert b"3" in re.findall(rb"Rating[=>\"]+(.)", find_xmp(tagged).packet or b"")
    assert take_tag(tagged) == rated
    tagged, kept = put_tag(rated, POOR, overwrite_rating=True)
    assert not kept
    assert read_tag(tagged)["FormerRating"] == "3"
    assert re.findall(rb"(?<!Former)Rating[=>\"]+(.)", find_xmp(tagged).packet or b"") == [b"2"]
    assert take_tag(tagged) == rated, "and comes back"


def test_what_other_programs_made_of_our_tag_is_taken_away_property_by_property() -> None:
    elements = b"""<rdf:Description rdf:about='' xmlns:rali='https://github.com/comfyui-rali/rali/xmp/1.0/'>
  <rali:Added>packet Rating</rali:Added><rali:Score>0.8190</rali:Score><rali:Stars>5</rali:Stars>
 </rdf:Description>"""
    merged = (
        LIGHTROOM.replace(b"xmp:Rating=", b'xmlns:rali="https://github.com/comfyui-rali/rali/xmp/1.0/" '
                          b'rali:Added="packet Rating" rali:Stars="5" rali:Score=\'0.8\' xmp:Rating='),
        LIGHTROOM.replace(b" </rdf:RDF>", elements + b" </rdf:RDF>"),
    )  # fmt: skip
    for packet in merged:
        ours, theirs = (put_xmp(FILES["baseline.jpg"], packet.replace(b"RATING", value)) for value in (b"5", b"4"))
        assert read_tag(ours)["Stars"] == "5"
        for data, ratings in ((ours, []), (theirs, [b"4"])):  # somebody has changed 5 to 4
            rest = find_xmp(take_tag(data)).packet or b""
            assert b"rali" not in rest
            assert re.findall(rb"Rating=\"(.)", rest) == ratings
            for kept in (b"Adobe &gt; Lightroom", b"+0.35", "café".encode()):
                assert kept in rest
            assert put_tag(data, POOR)[1] == bool(ratings)
    changed = put_tag(FILES["baseline.jpg"], TAG)[0].replace(b'xmp:Rating="5"', b'xmp:Rating="1"')
    assert b'xmp:Rating="1"' in (find_xmp(take_tag(changed)).packet or b"")


def broken(name: str, old: bytes, new: bytes) -> bytes:
    assert old in FILES[name]
    return FILES[name].replace(old, new, 1)


def raw_profile() -> bytes:
    return FILES["comfy.png"][:33] + chunk(b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(b"x")) + FILES["comfy.png"][33:]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved("TIFF"), "only JPEG, PNG and WebP"),
        (saved("GIF"), "only JPEG, PNG and WebP"),
        (b"", "only JPEG, PNG and WebP"),
        (FILES["baseline.jpg"][:100], "its JPEG segments are damaged"),
        (b"\xff\xd8\xff\xd9", "its JPEG segments are damaged"),
        (FILES["comfy.png"][:-6], "its PNG chunks are damaged"),
        (broken("comfy.png", b"IHDR", b"CgBI"), "its PNG chunks are damaged"),
        (FILES["lossy.webp"][:-5], "its WebP chunks are damaged"),
        (broken("lossy.webp", b"\x9d\x01\x2a", b"\x9d\x01\x2b"), "its WebP chunks are damaged"),
        (put_xmp(FILES["late.png"], LIGHTROOM).replace(b"Exposure", b"exposure"), "its XMP chunk is damaged"),
        (raw_profile(), "ImageMagick"),
        (FILES["comfy.png"][:33] + chunk(b"caBX", b"jumb") + FILES["comfy.png"][33:], "Content Credentials"),
        (FILES["baseline.jpg"][:2] + b"\xff\xeb\0\x0cJP\0\x01\0\0c2pa" + FILES["baseline.jpg"][2:], "Content Cred"),
        (put_xmp(FILES["baseline.jpg"], b"<x:xmpmeta"), r"its XMP is damaged \("),
        (put_xmp(FILES["comfy.png"], b"<a/>"), "there is no rdf:RDF"),
        (put_xmp(FILES["lossy.webp"], b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'), "declares a document type"),
        (put_xmp(FILES["lossy.webp"], LIGHTROOM.decode().encode("utf-16")), "UTF-16 or damaged"),
        (put_xmp(FILES["baseline.jpg"], LIGHTROOM + b" " * (65504 - len(LIGHTROOM))), "larger than a JPEG segment holds"),
    ],
)  # fmt: skip
def test_what_cannot_take_xmp_safely_gets_a_sidecar_and_stays_as_it_is(
    data: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(XmpError, match=message):
        put_tag(data, TAG)
    assert take_tag(data) == data
    (path := tmp_path / "a.tif").write_bytes(data)
    done = tag_file(path, TAG)
    assert done.sidecar
    assert re.search(message, done.reason or "")
    assert path.read_bytes() == data
    assert read_tag((tmp_path / "a.tif.xmp").read_bytes())["Score"] == "0.8190"
    assert untag_file(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.tif"]
    assert not untag_file(path)


def test_a_tag_says_what_the_scorer_said() -> None:
    info = ModelInfo("twenty", "Apache-2.0", score_range=(0.0, 20.0))
    words = ImageAttributes({"noise": 0.9, "blur": 0.8}, ("noisy", "blurred"))
    tag = Tag.from_score(ImageScore(0, 15.0, "", float("nan"), attributes=words), info)
    assert (
        tag.properties().items() >= {"Score": "15.0000", "AestheticScore": "7.50", "Reasons": "noisy, blurred"}.items()
    )
    assert not {"Band", "Percentile", "Stars"} & tag.properties().keys()
    tagged, _ = put_tag(FILES["comfy.png"], tag)
    assert b"xmp:Rating" not in tagged, "no bands, no stars"
    assert take_tag(tagged) == FILES["comfy.png"]
    blank = Tag.from_score(ImageScore(0, 0.02, "bad", 0.0, reason="no content"), info)
    assert (blank.properties()["Reasons"], blank.stars) == ("no content", 1)
    with pytest.raises(ValueError, match="cannot be tagged: no such file"):
        Tag.from_score(ImageScore(0, float("nan"), "", float("nan"), "no such file"), info)


def test_unusual_packets_take_the_tag() -> None:
    latin = DIGIKAM.replace(b"RATING", b"").decode().replace("\ufeff", "").replace("Rome", "Nîmes").encode("latin-1")
    marked = b"\xef\xbb\xbf" + LIGHTROOM.replace(b"RATING", b"")
    for packet in (b'<?xml version="1.0" encoding="ISO-8859-1"?>' + latin, marked):
        data = put_xmp(FILES["fill.jpg"], packet).replace(b"\xff\xe1", b"\xff\xff\xff\xe1")
        tagged, kept = put_tag(data, TAG)
        ElementTree.fromstring((find_xmp(tagged).packet or b"").rstrip(b"\0"))
        assert (kept, read_tag(tagged)["FormerRating"], take_tag(tagged)) == (False, "", data)
    empty = b'<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>'
    tagged, _ = put_tag(put_xmp(FILES["baseline.jpg"], empty), TAG)
    assert read_tag(tagged)["Band"] == "excellent"
    assert read_tag(take_tag(tagged)) == {}
    packed = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LIGHTROOM.replace(b"RATING", b"0"))
    data = FILES["late.png"][:33] + chunk(b"iTXt", packed) + FILES["late.png"][33:]
    tagged, _ = put_tag(data, TAG)
    assert (find_xmp(take_tag(tagged)).packet, frames(tagged)) == (LIGHTROOM.replace(b"RATING", b"0"), frames(data))


@pytest.mark.parametrize("place", ["exif", "own", "darktable", "lightroom", "tiff"])
def test_a_rating_that_a_person_gave_anywhere_stays_the_only_one(place: str, tmp_path: Path) -> None:
    packet = LIGHTROOM.replace(b"RATING", b"-1")
    data = {"exif": saved("JPEG", exif=exif(4)), "own": put_xmp(FILES["baseline.jpg"], packet),
            "tiff": saved("TIFF", tiffinfo={700: packet})}.get(place, FILES["baseline.jpg"])  # fmt: skip
    (path := tmp_path / "a.jpg").write_bytes(data)
    beside = tmp_path / {"darktable": "a.jpg.xmp", "lightroom": "a.xmp"}.get(place, "none")
    if place in ("darktable", "lightroom"):
        beside.write_bytes(packet)
    for sidecar in (False, True):
        assert tag_file(path, TAG, sidecar=sidecar).kept_rating
        for file in {path, sidecar_of(path)} - {beside}:
            assert b'xmp:Rating="5"' not in (file.read_bytes() if file.exists() else b"")
        assert read_saved_score(path).score == 0.819  # type: ignore[union-attr]
        assert untag_file(path)
        assert path.read_bytes() == data
        assert beside.name == "none" or beside.read_bytes() == packet
        assert not sidecar_of(path).exists() or sidecar_of(path) == beside


def test_links_modes_and_times_of_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(FILES["motion.jpg"])
    path.chmod(0o640)
    os.utime(path, ns=(10**18, 10**18 + 123_456_700))
    (link := tmp_path / "link.jpg").symlink_to("a.jpg")
    assert tag_file(link, TAG, keep_times=True) == Tagged()
    assert link.is_symlink()
    assert (path.stat().st_mode & 0o777, path.stat().st_mtime_ns) == (0o640, 10**18 + 123_456_700)
    assert untag_file(path)
    assert path.read_bytes() == FILES["motion.jpg"]
    assert path.stat().st_mtime_ns > 10**18 + 10**9
    (other := tmp_path / "b.jpg").hardlink_to(path)
    assert tag_file(path, TAG).broke_hard_link
    assert (read_tag(path.read_bytes())["Band"], other.read_bytes()) == ("excellent", FILES["motion.jpg"])
    path.chmod(0o444)
    before = path.read_bytes()
    for change in (lambda: tag_file(path, POOR), lambda: untag_file(path)):
        with pytest.raises(PermissionError, match=r"a\.jpg is read-only, so it is not changed"):
            change()
    assert path.read_bytes() == before
    assert tag_file(path, POOR, sidecar=True).sidecar
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.jpg", "a.jpg.xmp", "b.jpg", "link.jpg"]


def test_a_file_that_changes_meanwhile_stays_as_somebody_else_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(FILES["comfy.png"])
    with pytest.raises(OSError, match="was changed since it was scored"):
        tag_file(path, TAG, scored=(1, 2))
    fsync = os.fsync

    def write_too(handle: int) -> None:
        path.write_bytes(b"theirs")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", write_too)
    with pytest.raises(OSError, match=r"a\.png cannot be written: it was changed meanwhile"):
        tag_file(path, TAG)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"theirs"]


def test_a_sidecar_of_another_program_is_completed_and_a_damaged_one_is_left(tmp_path: Path) -> None:
    path, beside = tmp_path / "a.tif", tmp_path / "a.tif.xmp"
    path.write_bytes(saved("TIFF"))
    theirs = DIGIKAM.replace(b"RATING", b"0").rstrip(b"\0")
    beside.write_bytes(theirs)
    assert tag_file(path, TAG, sidecar=True) == Tagged(sidecar=True)
    assert b"<xap:Rating>5</xap:Rating>" in beside.read_bytes()
    assert untag_file(path)
    assert beside.read_bytes() == theirs
    beside.write_bytes(b"no XML")
    with pytest.raises(XmpError, match=r"a\.tif\.xmp is not changed: its XMP is damaged"):
        tag_file(path, TAG)
    assert beside.read_bytes() == b"no XML"


def test_the_command_tags_what_it_shows_and_takes_it_away(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for name in ("baseline.jpg", "comfy.png", "lossy.webp"):
        (folder / name).write_bytes(FILES[name])
    (folder / "d.tif").write_bytes(saved("TIFF"))
    (folder / "e.png").write_bytes(b"no image")
    (folder / "f.jpg").write_bytes(put_xmp(saved("JPEG", TURNED[0]), LIGHTROOM.replace(b"RATING", b"1")))
    (folder / "g.jpg").symlink_to("baseline.jpg")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    command = ["score", str(folder), "--cache", str(tmp_path / "cache"), "--model", str(tiny_file)]
    assert main([*command, "--json", "--tag", "--keep-times"]) == 1, "one file is no image"
    printed = capsys.readouterr()
    assert "tagged 5 of 7 images, 1 of them by .xmp sidecars (1: only JPEG, PNG and WebP take XMP here)" in printed.err
    assert "1 of them keep a person's rating" in printed.err
    records = {Path(each["file"]).name: each for each in json.loads(printed.out)}
    for name in ("baseline.jpg", "comfy.png", "lossy.webp", "d.tif.xmp", "f.jpg"):
        tag, record = read_tag((folder / name).read_bytes()), records[name.removesuffix(".xmp")]
        assert float(tag["Score"]) == pytest.approx(record["score"], abs=1e-4)
        assert (tag["Band"], tag["Model"]) == (record["band"], "tiny")
    main([*command, "--json"])
    assert {Path(each["file"]).name: each for each in json.loads(capsys.readouterr().out)} == records
    with closing(sqlite3.connect(tmp_path / "cache" / FILE_NAME)) as cache:
        assert cache.execute("SELECT count(*) FROM scores").fetchone() == (5,), (
            "found again, as two names of one file are"
        )
    assert main(["score", str(folder), "--untag"]) == 0
    assert "removed the tags of 5 of 7 images" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert main([*command, "--tag", "--top-k", "1"]) == 1
    assert sum(map(bool, (read_tag(path.read_bytes()) for path in folder.iterdir()))) in (1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--untag", "--csv", "x.csv"], "--untag scores nothing: leave out --csv"),
        (["--untag", "--top-k", "2"], "--untag scores nothing: leave out --top-k"),
        (["--keep-times"], "--keep-times belongs to --tag and --untag"),
        (["--overwrite-ratings", "--untag"], "--overwrite-ratings belongs to --tag"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["score", "--tag", str(tmp_path)])
    assert "name the images before --tag" in capsys.readouterr().err
