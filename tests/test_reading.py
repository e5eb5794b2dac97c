"""What viewers open is scored: files of many makes, bytes, streams and folders, whatever state the host is in."""

from __future__ import annotations

import io
import logging
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

from rali_core.files import IMAGE_SUFFIXES, Survey, find_images
from rali_core.images import ImageError, ReadLimits, decode_image, load_image, read_pixels, to_pixels
from rali_core.reading import PixelBudget
from rali_core.scorer import RaliScorer


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """The PNG with a chunk after its header."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + chunk + png[33:]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"iCCP", b"big\0\0" + zlib.compress(bytes(1_200_000))),
        (b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 1_500_000)),
        (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"x" * 1_500_000)),
        (b"tEXt", b"prompt\0" + b"x" * 70_000_000),
    ],
)
def test_large_chunks_beside_the_pixels_are_no_damage_within_a_bound(
    photo: Image.Image, kind: bytes, content: bytes
) -> None:
    png = with_chunk(encoded(photo), kind, content)
    assert torch.equal(decode_image(png, "a.png"), to_pixels(photo))
    with pytest.raises(ImageError, match=r"damaged image file a\.png: .*(too large|Too much)"):
        decode_image(png, "a.png", limits=ReadLimits(max_text_bytes=1_000_000))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_applied_beside_malformed_tags_too(photo: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.open(io.BytesIO(encoded(photo, exif=exif)))
    from PIL import ImageOps

    expected = to_pixels(ImageOps.exif_transpose(upright).convert("RGB"))
    assert torch.equal(decode_image(encoded(photo, exif=exif), "a"), expected)


@pytest.mark.parametrize(
    ("tag", "entry_type", "count", "value"),
    [
        (0x0100, 2, 4, b"wide"),
        (0x010E, 11, 1, struct.pack("<f", 1.5)),
        (0x011A, 7, 4, b"\0\1\2\3"),
        (0x0132, 3, 1, b"\1\0\0\0"),
        (0x8769, 2, 4, b"nope"),
    ],
)
def test_a_malformed_tag_does_not_cost_the_rotation(
    photo: Image.Image, tag: int, entry_type: int, count: int, value: bytes
) -> None:
    entries = sorted([(0x0112, 3, 1, b"\6\0\0\0"), (tag, entry_type, count, value)])
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    tiff += b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries) + b"\0\0\0\0"
    jpeg = encoded(photo, "JPEG", exif=b"Exif\0\0" + tiff)
    assert decode_image(jpeg, "a.jpg").shape == (3, 56, 40)


def test_a_wide_gamut_profile_is_converted_and_srgb_and_broken_ones_change_nothing(photo: Image.Image) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = to_pixels(photo)
    for harmless in (srgb, b"broken" * 40, srgb[:200]):
        assert torch.equal(decode_image(encoded(photo, icc_profile=harmless), "a"), plain)
    wide = swapped_primaries(srgb)
    for image, kind in ((photo, "PNG"), (photo, "TIFF"), (photo.convert("RGBA"), "PNG"), (photo.quantize(64), "PNG")):
        seen = decode_image(encoded(image, kind, icc_profile=wide), "a")
        assert torch.equal(to_pixels(Image.open(io.BytesIO(encoded(image, kind, icc_profile=wide)))), seen)
        assert (seen - to_pixels(image)).abs().mean() > 0.1, kind
    lab = photo.convert("L").convert("RGB")
    assert (decode_image(encoded(lab, icc_profile=wide), "a") - to_pixels(lab)).abs().max() < 0.05, "grey stays grey"


def swapped_primaries(profile: bytes) -> bytes:
    """A profile whose red and blue are those of the other: no camera's, but what it does can be seen."""
    table = {}
    for number in range(struct.unpack(">I", profile[128:132])[0]):
        place = 132 + 12 * number
        table[profile[place : place + 4]] = place
    swapped = bytearray(profile)
    red, blue = table[b"rXYZ"], table[b"bXYZ"]
    swapped[red : red + 4], swapped[blue : blue + 4] = profile[blue : blue + 4], profile[red : red + 4]
    return bytes(swapped)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "LAB"])
def test_a_profile_of_another_kind_of_image_is_left_out(mode: str) -> None:
    image = Image.new(mode, (20, 20))
    expected = to_pixels(image)
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert torch.equal(to_pixels(image), expected)


def host_state() -> tuple[Any, ...]:
    return (
        list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES,
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY,
    )  # fmt: skip


@pytest.mark.parametrize("limit", [None, 10, 10**9])
@pytest.mark.parametrize("truncated", [False, True])
def test_the_hosts_state_neither_decides_nor_is_changed(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, truncated: bool
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated)
    (tmp_path / "whole.png").write_bytes(encoded(photo))
    (tmp_path / "cut.png").write_bytes(encoded(photo)[:2000])
    files = [tmp_path / "whole.png", tmp_path / "cut.png"] * 40
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = host_state()

        def outcome(path: Path) -> str:
            try:
                return str(tuple(load_image(path).shape))
            except ImageError as error:
                return str(error)

        with ThreadPoolExecutor(4) as pool:
            outcomes = list(pool.map(outcome, files))
        assert host_state() == before
    assert set(outcomes[::2]) == {"(3, 40, 56)"}
    assert all("damaged image file" in text for text in outcomes[1::2])
    if limit == 10:
        return  # Pillow itself refuses to open it then
    with Image.open(tmp_path / "cut.png") as lazily, pytest.raises(ImageError):
        to_pixels(lazily)


def test_settings_of_the_host_made_during_decoding_are_kept(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rali_core.images import open_image

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with open_image(encoded(photo)) as opened:
        Image.MAX_IMAGE_PIXELS = 77  # the host's other thread
        opened.load()
    assert Image.MAX_IMAGE_PIXELS == 77


def test_the_hosts_state_is_restored_only_after_the_last_image_is_decoded(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rali_core.images import open_image

    seen: list[tuple[str, object]] = []

    class Noted(ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            seen.append((name, value))
            super().__setattr__(name, value)

    for module, name, value in ((ImageFile, "LOAD_TRUNCATED_IMAGES", True), (Image, "MAX_IMAGE_PIXELS", 10)):
        monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(module, "__class__", Noted)
    with open_image(encoded(photo)):
        for _ in range(2):
            with open_image(encoded(photo)) as other:
                other.load()
        assert ("LOAD_TRUNCATED_IMAGES", False) in seen
        assert not {("LOAD_TRUNCATED_IMAGES", True), ("MAX_IMAGE_PIXELS", 10)} & set(seen)
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == (True, 10)


def test_a_host_that_catches_warnings_meanwhile_gets_its_filters_back(photo: Image.Image) -> None:
    from rali_core.images import open_image

    before = list(warnings.filters)
    catching = warnings.catch_warnings()
    with open_image(encoded(photo)):
        catching.__enter__()  # in another thread of the host
    assert list(warnings.filters) == before
    catching.__exit__(None, None, None)
    assert list(warnings.filters) == before


def test_the_limit_of_pixels_is_a_setting(photo: Image.Image, tiny_scorer: RaliScorer) -> None:
    with pytest.raises(ImageError, match="too large to open safely: a: .*2240 pixels.* limit of 2000"):
        decode_image(encoded(photo), "a", limits=ReadLimits(max_pixels=2000))
    with pytest.raises(ValueError, match="max_pixels must be at least 1, got 0"):
        ReadLimits(max_pixels=0)
    scorer = RaliScorer(tiny_scorer.model, tiny_scorer.info, device="cpu", limits=ReadLimits(max_pixels=2000))
    assert "limit of 2000" in str(scorer.score(encoded(photo), on_error="record").errors[0])


def test_folders_hold_what_pillow_opens_and_no_companions(photo: Image.Image, tmp_path: Path) -> None:
    kinds = {
        ".avif": "AVIF",
        ".jp2": "JPEG2000",
        ".tga": "TGA",
        ".mpo": "MPO",
        ".jpe": "JPEG",
        ".JFIF": "JPEG",
        ".qoi": "QOI",
    }
    Image.init()
    made = {suffix: kind for suffix, kind in kinds.items() if kind in Image.SAVE and kind in Image.OPEN}
    for suffix, kind in made.items():
        (tmp_path / f"a{suffix}").write_bytes(encoded(photo, kind))
    (tmp_path / "__MACOSX").mkdir()
    for name in ("._a.jpg", "__MACOSX/b.jpg", "notes.txt", "more.txt", "README", "film.mpg", "page.pdf"):
        (tmp_path / name).write_bytes(b"no image")
    survey = Survey()
    found = find_images([tmp_path], recursive=True, survey=survey)
    assert {path.suffix for path in found} == set(made)
    assert dict(survey.left_out) == {".txt": 2, "": 1, ".mpg": 1, ".pdf": 1}
    for path in found:
        assert load_image(path).shape == (3, 40, 56)
    assert len(made) >= 5


def test_formats_of_plugins_count_as_soon_as_they_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, table, dict(getattr(Image, table)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    assert ".heic" not in IMAGE_SUFFIXES
    Image.register_open("HEIF", lambda *_: None)  # type: ignore[arg-type,return-value]
    Image.register_extension("HEIF", ".heic")
    assert ".heic" in IMAGE_SUFFIXES
    assert ".heic" in set(IMAGE_SUFFIXES)
    assert not {".pdf", ".eps", ".mpg", ".txt"} & set(IMAGE_SUFFIXES)


def test_a_tiff_states_its_white_and_dark_sixteen_bit_images_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (30, 30), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "plain.tif")
    Image.fromarray(values).save(tmp_path / "said.tif", tiffinfo={281: 4095})
    with caplog.at_level(logging.WARNING, logger="rali"):
        said = load_image(tmp_path / "said.tif")
        assert caplog.records == []
        plain = load_image(tmp_path / "plain.tif")
    assert torch.allclose(said[0], torch.from_numpy(values.astype(np.float32)) / 4095)
    assert torch.allclose(plain[0], torch.from_numpy(values.astype(np.float32)) / 65535)
    assert "if it holds 10 or 12 bits" in caplog.text


def test_bytes_streams_files_and_folders_are_images(
    photo: Image.Image, tiny_scorer: RaliScorer, tmp_path: Path
) -> None:
    data = encoded(photo)
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "b.png").write_bytes(encoded(photo.rotate(180)))
    expected = tiny_scorer.score(photo).scores[0]
    at_end = io.BytesIO(data)
    at_end.seek(0, io.SEEK_END)
    with (tmp_path / "a.png").open("rb") as file:
        for one in (data, bytearray(data), memoryview(data), io.BytesIO(data), at_end, file):
            result = tiny_scorer.score(one)
            assert result.scores == pytest.approx([expected], abs=1e-6), type(one)
        assert file.tell() == 0
        several = tiny_scorer.score([data, file, io.BytesIO(data)])
        assert several.scores == pytest.approx([expected] * 3, abs=1e-6)
    assert at_end.tell() == len(data)
    folder = tiny_scorer.score(tmp_path)
    assert folder.scores[0] == pytest.approx(expected, abs=1e-6)
    assert len(folder) == len(tiny_scorer.score(str(tmp_path))) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in the folder .*empty"):
        tiny_scorer.score(tmp_path / "empty")
    with (tmp_path / "a.png").open(encoding="latin-1") as text, pytest.raises(TypeError, match="in binary mode"):
        tiny_scorer.score(text)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="image 0: not an image that Pillow can read: image data"):
        tiny_scorer.score(b"nothing")


def test_eight_bits_stay_eight_bits_until_they_are_resized(photo: Image.Image, tiny_scorer: RaliScorer) -> None:
    assert read_pixels(photo).dtype == torch.uint8
    assert read_pixels(np.asarray(photo)).dtype == torch.uint8
    large = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 3, 700, 2500), dtype=np.uint8))
    for coverage in ("center", "tiles"):
        of_bytes = tiny_scorer.model.preprocess(large, coverage=coverage)
        assert torch.allclose(of_bytes, tiny_scorer.model.preprocess(large / 255.0, coverage=coverage), atol=1e-6)


def test_a_budget_of_pixels_holds_threads_back_and_lets_one_large_image_through() -> None:
    budget, inside, go = PixelBudget(100), [], Event()

    def work(pixels: int) -> None:
        with budget.hold(pixels):
            inside.append(pixels)
            go.wait(10)

    with budget.hold(60):
        with budget.hold(40):
            waiting = Thread(target=work, args=(500,))
            waiting.start()
            waiting.join(0.1)
            assert inside == []
        assert inside == []
    go.set()
    waiting.join(10)
    assert inside == [500]


def test_decoding_takes_three_bytes_a_pixel_besides_pillows_own() -> None:
    jpeg = encoded(Image.new("RGB", (3000, 3000), (9, 99, 199)), "JPEG")
    tracemalloc.start()
    assert read_pixels(jpeg).shape == (3, 3000, 3000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4.5 * 3000 * 3000, "floats would be 12 bytes"
