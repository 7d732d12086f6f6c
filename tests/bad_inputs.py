"""A corpus of bad pictures, names and prompt files, made by code, and what becomes of each, within limits.

    python tests/bad_inputs.py docs/bad_inputs.md     # writes the table anew (`make bad-inputs`)

Every case runs in a process of its own, forked from one that has imported everything, with a limit of memory and of
time. An outcome is "read" (as something usable), "set aside" (with a reason; the run goes on) or "refused" (one line
for the user, and the run does not start). Anything else, such as another error or a limit, is "FAILED".
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from csr_ray.data.files import UnreadableError
from csr_ray.data.images import load_image
from csr_ray.data.prompts import PromptFile
from csr_ray.errors import UserError

MAX_SECONDS = 10
MAX_PEAK_MIB = 1024
_ADDRESS_SPACE_BYTES = 3 * 2**30  # beyond what the process has when it begins; much of it is reserved, not used

Made = bytes | str | Callable[[Path], Any]


@dataclass(frozen=True)
class Case:
    """`made` is the file's bytes, the name that stands for an image in a row, or a function that writes the file."""

    kind: str  # "picture", "name" or "rows"
    name: str  # of a picture or prompts: the file's name, whose suffix counts
    what: str
    made: Made


@dataclass(frozen=True)
class Outcome:
    word: str
    says: str
    seconds: float
    peak_mib: int


# ---- pictures ----


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.effect_noise((64, 48), 80).convert("RGB")).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes = b"", *, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(
    width: int = 8,
    height: int = 8,
    *,
    depth: int = 8,
    colour: int = 2,
    pixels: bytes | None = None,
    before: bytes = b"",
    interlace: int = 0,
) -> bytes:
    raw = bytes((1 + 3 * width) * height) if pixels is None else pixels
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    body = chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND")


def bmp(
    width: int, height: int, *, bits: int = 24, compression: int = 0, pixels: bytes = b"", head: int = 40
) -> bytes:
    info = struct.pack("<IiiHHIIiiII", head, width, height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + info + pixels


def gif(width: int, height: int, *, body: bytes = b"") -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + body + b";"


def tiff(*entries: tuple[int, int, int, int], following: int = 0, tail: bytes = b"") -> bytes:
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + struct.pack("<I", following) + tail


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def many_scans() -> bytes:
    """A progressive JPEG of 4000 x 4000 pixels whose last scan comes two thousand times."""
    data = encoded("JPEG", Image.new("L", (4000, 4000)), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 2000 + data[-2:]


def grey(value: float, *, kind: Any) -> bytes:
    return encoded("TIFF", Image.fromarray(np.full((8, 8), value, dtype=kind)))


def cut(data: bytes, share: float = 0.5) -> bytes:
    return data[: int(len(data) * share)]


def strip(width: int, height: int) -> bytes:
    return encoded("PNG", Image.new("RGB", (width, height)))


_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _OFFSETS, _ROWS, _COUNTS = 256, 257, 258, 259, 262, 273, 278, 279
_PLAIN_TIFF = ((_WIDTH, 3, 1, 8), (_HEIGHT, 3, 1, 8), (_BITS, 3, 1, 8), (_COMPRESSION, 3, 1, 1),
               (_PHOTOMETRIC, 3, 1, 1))  # fmt: skip


def pictures() -> Iterator[Case]:
    def case(name: str, what: str, made: Made) -> Case:
        return Case("picture", name, what, made)

    yield case("empty.jpg", "no bytes", b"")
    yield case("one_byte.png", "one byte", b"\x89")
    for name, what, data in (
        ("text.jpg", "plain text", b"hello"),
        ("page.png", "an HTML page, as a server says 404", b"<!doctype html><title>404</title>"),
        (
            "vector.png",
            "SVG with a script",
            b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        ),
        (
            "entities.svg",
            "XML that expands a billion times",
            b"<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><svg>&b;</svg>",
        ),
        ("document.jpg", "PDF", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"),
        ("script.png", "PostScript that would start Ghostscript", encoded("EPS")),
        ("packed.png", "gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(20)),
        ("archive.png", "a ZIP archive", b"PK\x03\x04" + bytes(60)),
        ("program.png", "a program (ELF)", b"\x7fELF" + bytes(60)),
        ("film.jpg", "MP4", b"\0\0\0\x18ftypmp42" + bytes(60)),
        ("layers.png", "Photoshop", b"8BPS\0\x01" + bytes(60)),
        ("old.pcx", "PCX, a format that is not read", encoded("PCX")),
        ("games.tga", "TGA, a format that is not read", encoded("TGA")),
        ("pickle.png", "a Python pickle", b"\x80\x04\x95\x10\0\0\0\0\0\0\0."),
    ):
        yield case(name, what, data)
    whole = encoded("PNG")
    yield case("signature.png", "PNG: the signature alone", whole[:8])
    yield case("head.png", "PNG: the header alone", whole[:33])
    yield case("cut.png", "PNG: half of the file", cut(whole))
    yield case("end.png", "PNG without its end", whole[:-12])
    yield case("behind.png", "PNG with a megabyte of other bytes behind it", whole + b"x" * 2**20)
    yield case("crc.png", "PNG: wrong checksum of its header", whole[:29] + b"\0\0\0\0" + whole[33:])
    yield case("zero.png", "PNG of 0 x 8 pixels", png(0, 8))
    yield case("claims.png", "PNG that claims 2^31-1 pixels a side", png(2**31 - 1, 2**31 - 1, pixels=b""))
    yield case(
        "bomb.png", "PNG: 30,000 x 30,000 pixels in 110 kB", lambda path: Image.new("1", (30_000, 30_000)).save(path)
    )
    yield case(
        "large.png",
        "PNG of 9,400 x 9,500 pixels, the most there may be",
        lambda path: Image.new("1", (9_400, 9_500)).save(path),
    )
    yield case("depth.png", "PNG of 3 bits a pixel", png(depth=3))
    yield case("palette.png", "PNG with colours of a palette that is missing", png(colour=3))
    yield case("short.png", "PNG with too few pixels", png(pixels=bytes(10)))
    yield case(
        "long.png",
        "PNG: 8 x 8 pixels followed by 100 MB of zeros, packed",
        lambda path: path.write_bytes(png(pixels=bytes(10**8))),
    )
    yield case(
        "garbage.png",
        "PNG whose pixels are no zlib stream",
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"garbage")
        + chunk(b"IEND"),
    )
    yield case(
        "text_bomb.png",
        "PNG with 100 MB of text, packed",
        lambda path: path.write_bytes(png(before=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8))))),
    )
    yield case(
        "profile_bomb.png",
        "PNG with a colour profile of 100 MB, packed",
        lambda path: path.write_bytes(png(before=chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(10**8))))),
    )
    yield case("chunks.png", "PNG with 100,000 empty chunks", png(before=chunk(b"teSt") * 100_000))
    yield case("exif.png", "PNG with EXIF data that is none", png(before=chunk(b"eXIf", b"garbage!")))
    yield case(
        "frames.png",
        "animated PNG that claims 4 billion frames",
        png(before=chunk(b"acTL", struct.pack(">II", 2**32 - 1, 0))),
    )
    yield case("interlaced.png", "interlaced PNG with too few pixels", png(pixels=bytes(20), interlace=1))
    jpeg = encoded("JPEG")
    yield case("start.jpg", "JPEG: two bytes", jpeg[:2])
    yield case("cut.jpg", "JPEG: half of the file", cut(jpeg))
    yield case("almost.jpg", "JPEG without its last 10 bytes", jpeg[:-10])
    yield case("claims.jpg", "JPEG that claims 65,500 x 65,500 pixels", jpeg_of_size(65_500, 65_500))
    yield case("large.jpg", "JPEG of 64 x 48 pixels that claims 9,000 x 9,000", jpeg_of_size(9_000, 9_000))
    yield case("flat.jpg", "JPEG of 0 lines", jpeg_of_size(64, 0))
    yield case(
        "scans.jpg", "progressive JPEG of 16 megapixels with 2,000 scans", lambda path: path.write_bytes(many_scans())
    )
    yield case("segment.jpg", "JPEG with a segment of length 0", jpeg[:2] + b"\xff\xe1\0\0" + jpeg[2:])
    yield case(
        "exif.jpg",
        "JPEG with EXIF data of 900 entries, none there",
        encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x84\x03" + b"\xff" * 40),
    )
    yield case(
        "noise.jpg",
        "JPEG of which every tenth byte is wrong",
        bytes(jpeg[:600]) + bytes(b ^ 0xFF if i % 10 == 0 else b for i, b in enumerate(jpeg[600:])),
    )
    yield case("head.gif", "GIF: the header alone", b"GIF89a")
    yield case("none.gif", "GIF without a picture", gif(8, 8))
    yield case(
        "claims.gif",
        "GIF that claims 65,535 x 65,535 pixels",
        gif(65_535, 65_535, body=b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0"),
    )
    yield case(
        "garbage.gif",
        "GIF whose pixels are no LZW stream",
        gif(8, 8, body=b",\0\0\0\0\x08\0\x08\0\0\x0b\xff" + b"\xff" * 255 + b"\0"),
    )
    yield case(
        "code.gif", "GIF whose LZW codes have 255 bits", gif(8, 8, body=b",\0\0\0\0\x08\0\x08\0\0\xff\x02L\x01\0")
    )
    yield case(
        "frames.gif",
        "GIF of 20,000 frames",
        gif(8, 8, body=b",\0\0\0\0\x08\0\x08\0\0\x02\x07\x84\x8f\xa9\xcb\xed\xa3+\0" * 20_000),
    )
    yield case("cut.bmp", "BMP: half of the file", cut(encoded("BMP")))
    yield case("claims.bmp", "BMP that claims 2^31-1 pixels a side", bmp(2**31 - 1, 2**31 - 1))
    yield case("least.bmp", "BMP of -2^31 lines", bmp(8, -(2**31)))
    yield case("bits.bmp", "BMP of 7 bits a pixel", bmp(8, 8, bits=7, pixels=bytes(64)))
    yield case("head.bmp", "BMP with a header of 4 GB", bmp(8, 8, head=2**32 - 1))
    yield case(
        "rle.bmp",
        "BMP: 9,000 x 9,000 pixels in runs, none there",
        bmp(9_000, 9_000, bits=8, compression=1, pixels=b"\0\1"),
    )
    yield case("jpeg.bmp", "BMP that says JPEG is in it", bmp(8, 8, compression=4, pixels=bytes(64)))
    yield case("head.tiff", "TIFF: the header alone", b"II*\0\x08\0\0\0")
    yield case("loop.tiff", "TIFF whose list of pages is a ring", tiff(*_PLAIN_TIFF, following=8))
    yield case(
        "beyond.tiff",
        "TIFF whose pixels lie behind the end of the file",
        tiff(*_PLAIN_TIFF, (_OFFSETS, 4, 1, 2**31), (_ROWS, 3, 1, 8), (_COUNTS, 4, 1, 64)),
    )
    yield case(
        "strips.tiff",
        "TIFF that claims 4 billion strips",
        tiff(*_PLAIN_TIFF, (_OFFSETS, 4, 2**32 - 1, 8), (_ROWS, 3, 1, 1), (_COUNTS, 4, 2**32 - 1, 8)),
    )
    yield case("entries.tiff", "TIFF of 65,535 entries, none there", b"II*\0\x08\0\0\0\xff\xff")
    yield case("nan.tiff", "TIFF of numbers that are none", grey(float("nan"), kind=np.float32))
    yield case("negative.tiff", "TIFF of negative grey values", grey(-5, kind=np.float32))
    yield case("wide.tiff", "TIFF of 32-bit grey values over 65,535", grey(10**6, kind=np.int32))
    yield case(
        "deep.tiff",
        "TIFF of 89 megapixels of 16 bit",
        lambda path: Image.fromarray(np.zeros((9_400, 9_500), np.uint16)).save(path, compression="tiff_lzw"),
    )
    yield case(
        "float.tiff",
        "TIFF of 64 megapixels of floats: 256 MiB",
        lambda path: Image.fromarray(np.zeros((8_192, 8_150), np.float32)).save(path),
    )
    yield case(
        "lzw.tiff",
        "TIFF whose pixels are no LZW stream",
        encoded("TIFF", compression="tiff_lzw").replace(b"\x80", b"\xff"),
    )
    yield case("head.webp", "WebP: the header alone", b"RIFF\x24\0\0\0WEBP")
    yield case("cut.webp", "WebP: half of the file", cut(encoded("WEBP")))
    yield case(
        "claims.webp",
        "WebP that claims 16,384 x 16,384 pixels",
        b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0",
    )
    yield case("cut.avif", "AVIF: half of the file", cut(encoded("AVIF")))
    yield case(
        "box.avif",
        "AVIF with a box of 2^64-1 bytes",
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf\0\0\0\x01meta" + b"\xff" * 8,
    )
    yield case("cut.jp2", "JPEG 2000: half of the file", cut(encoded("JPEG2000")))
    yield case(
        "tiles.j2k",
        "JPEG 2000 that claims 2^32-1 pixels a side in tiles of one",
        b"\xff\x4f\xff\x51\0\x29\0\0" + b"\xff" * 8 + bytes(8) + b"\0\0\0\x01" * 2 + bytes(8) + b"\0\x01\x07\x01\x01",
    )
    yield case("claims.ppm", "PPM that claims 10^9 x 10^9 pixels", b"P6 999999999 999999999 255\n")
    yield case("digits.ppm", "PPM with a width of 10,000 digits", b"P6 " + b"9" * 10_000 + b" 8 255\n")
    yield case("comment.ppm", "PPM that is a comment of 1 MB", b"P6 #" + b"x" * 10**6)
    yield case("letters.ppm", "PPM of letters for numbers", b"P3 8 8 255\n" + b"abc " * 192)
    yield case("none.ppm", "PPM whose brightest value is 0", b"P6 8 8 0\n" + bytes(192))
    yield case("claims.pfm", "PFM of floats that are not there", b"Pf\n8 8\n-1.0\n")
    yield case("none.ico", "ICO without a picture", b"\0\0\x01\0\0\0")
    yield case(
        "inner.ico",
        "ICO with a broken PNG in it",
        b"\0\0\x01\0\x01\0\x08\x08\0\0\x01\0\x20\0\x20\0\0\0\x16\0\0\0" + b"\x89PNG\r\n\x1a\n" + bytes(24),
    )
    yield case("point.png", "1 x 1 pixel", strip(1, 1))
    yield case("thin.png", "3 x 50 pixels", strip(3, 50))
    yield case("strip.png", "4 x 404 pixels", strip(4, 404))
    yield case("pipe.png", "a pipe that nobody writes to", os.mkfifo)
    yield case("zero_device.png", "a link to /dev/zero", lambda path: path.symlink_to("/dev/zero"))
    yield case("folder.png", "a folder", Path.mkdir)
    yield case("ring.png", "a link to itself", lambda path: path.symlink_to(path))
    yield case("hole.png", "a file of 1 TiB that is a hole", lambda path: hole(path, num_bytes=2**40))
    yield case("memory.png", "a link to the process's memory", lambda path: path.symlink_to("/proc/self/mem"))


def hole(path: Path, *, num_bytes: int, start: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(num_bytes)


# ---- names of pictures ----


def names() -> Iterator[Case]:
    for what, name in (
        ("nothing there", "none.png"),
        ("a NUL in it", "a\0.png"),
        ("5,000 characters", "x" * 5_000),
        ("the picture itself", "data:image/png;base64," + "A" * 100_000),
        ("a web page", "https://example.org/a.png"),
        ("a web page, in capitals", "HTTP://example.org/a.png"),
        ("the cloud's own address", "http://169.254.169.254/latest/meta-data/"),
        ("a pipe as a URL", "file:///proc/self/fd/0"),
        ("/dev/zero as a URL", "file:///dev/zero"),
        ("/dev/random", "/dev/random"),
        ("a URL of a home folder", "file://~/a.png"),
        ("a cache of a store", "simplecache::s3://bucket/a.png"),
        ("a member of an archive", "zip://a.png::s3://bucket/a.zip"),
        ("a repository", "github://owner:name@main/a.png"),
        ("another machine", "ssh://host/a.png"),
        ("a store with its key", "s3://AKIAKEY:secret@bucket/a.png"),
        ("a signed URL", "https://example.org/a.png?X-Amz-Signature=abc"),
        ("a scheme that nobody knows", "nosuch://a.png"),
        ("no scheme", "://a.png"),
    ):
        yield Case("name", f"`{name}`" if len(name) < 60 and name.isprintable() else "", what, name)


# ---- prompt files ----

_ROW = '{"id": "a", "image": "a.png", "prompt": "?"}'


def lines(*rows: str) -> bytes:
    return "\n".join(rows).encode("utf-8", "surrogatepass") + b"\n"


def row(**changed: Any) -> str:
    return json.dumps({"id": "b", "image": "a.png", "prompt": "?"} | changed)


def table(path: Path, columns: dict[str, Any], **options: Any) -> None:
    pq.write_table(pa.table(columns), path, **options)


def columns_of(num: int, **changed: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"id": [str(i) for i in range(num)], "image": ["a.png"] * num, "prompt": ["?"] * num}
    return plain | changed


def repeated_text(path: Path) -> None:
    """A table of 1,000 rows in some kilobytes whose prompts, all one text of 6 MB, would take 6 GB in memory."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000, pa.int32()), pa.array(["x" * 6_000_000]))
    table(path, columns_of(1_000, prompt=texts), compression="zstd")


def row_files() -> Iterator[Case]:
    def case(name: str, what: str, made: Made) -> Case:
        return Case("rows", name, what, made)

    for what, bad in (
        ("half a row", '{"id": "a", "image"'),
        ("two rows in one line", _ROW + _ROW),
        ("single quotes", "{'id': 'a'}"),
        ("a comma too many", '{"id": "b",}'),
        ("a comment", "// nothing"),
        ("a number for a row", "17"),
        ("null for a row", "null"),
        ("a list for a row", '["a", "a.png", "?"]'),
        ("20,000 lists in each other", "[" * 20_000),
        ("a million lists in each other", "[" * 10**6 + "]" * 10**6),
        ("100,000 objects in each other", '{"a":' * 100_000 + "1" + "}" * 100_000),
        (
            "an id of 900 lists in each other",
            '{"id": ' + "[" * 900 + "]" * 900 + ', "image": "a.png", "prompt": "?"}',
        ),
        ("a number of 5,000 digits", '{"id": ' + "9" * 5_000 + ', "image": "a.png", "prompt": "?"}'),
        ("a number of 1,000 digits", '{"id": ' + "9" * 1_000 + ', "image": "a.png", "prompt": "?"}'),
        ("NaN for an id", '{"id": NaN, "image": "a.png", "prompt": "?"}'),
        ("Infinity for a prompt", '{"id": "b", "image": "a.png", "prompt": Infinity}'),
        ("1e400 for an id", '{"id": 1e400, "image": "a.png", "prompt": "?"}'),
        ("half a surrogate pair", '{"id": "b", "image": "a.png", "prompt": "\\ud800"}'),
        ("half a surrogate pair in the id", '{"id": "\\udfff", "image": "a.png", "prompt": "?"}'),
        ("half a surrogate pair in the name", '{"id": "b", "image": "\\ud800.png", "prompt": "?"}'),
        ("a NUL in the id", row(id="a\0b")),
        ("a NUL in the prompt", row(prompt="a\0b")),
        ("a key twice", '{"id": "b", "id": "c", "image": "a.png", "prompt": "?"}'),
        ("no id", '{"image": "a.png", "prompt": "?"}'),
        ("an id twice", _ROW),
        ("true for an id", row(id=True)),
        ("an empty id", row(id=" ")),
        ("a list for an image", row(image=["a.png"])),
        ("bytes for an image", row(image={"bytes": "iVBOR"})),
        ("an empty prompt", row(prompt="")),
        ("a prompt that is a placeholder", row(prompt="<image>\n<image>")),
        ("an object for a prompt", row(prompt={"text": "?"})),
        ("a list for a truth", row(truth=["x"])),
        ("a prompt of 5 million characters", row(prompt="x" * 5_000_000)),
        ("a prompt of 20 million characters", row(prompt="x" * 20_000_000)),
    ):
        yield case("rows.jsonl", f"JSONL: {what}", lambda path, bad=bad: path.write_bytes(lines(_ROW, bad)))
    for name, what, data in (
        ("empty.jsonl", "no bytes", b""),
        ("blank.jsonl", "100,000 blank lines", b"\n" * 100_000),
        ("zeros.jsonl", "a megabyte of NULs", bytes(2**20)),
        ("latin.jsonl", "Latin-1", _ROW.replace("?", "é").encode("latin-1")),
        ("utf16.jsonl", "UTF-16, cut in a character", ("\ufeff" + _ROW).encode("utf-16-le") + b"\x7b"),
        ("utf32.jsonl", "UTF-32", _ROW.encode("utf-32")),
        ("mark.jsonl", "a byte-order mark alone", b"\xef\xbb\xbf"),
        ("packed.jsonl", "gzip under the name of JSONL", b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(200)),
        ("rows.jsonl.gz", "gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(200)),
        ("rows.zip", "a ZIP archive", b"PK\x03\x04" + bytes(200)),
        ("rows.txt", "prose", b"These are not rows.\nNone of them.\n"),
        ("rows.yaml", "YAML", b"- id: a\n  image: a.png\n"),
        ("rows.pkl", "a Python pickle", b"\x80\x04\x95\x10\0\0\0\0\0\0\0."),
        ("open.json", "a list without its end", b"[" + _ROW.encode() + b","),
        ("columns.json", "an object of columns", b'{"id": ["a"],\n "images": ["a.png"],\n "prompt": ["?"]}'),
        ("number.json", "a number", b"17"),
        ("string.json", "a text", b'"rows"'),
        ("deep.json", "a million lists in each other", b"[" * 10**6 + b"]" * 10**6),
        ("digits.json", "a number of 10 million digits", b"[" + b"9" * 10**7 + b"]"),
        ("items.json", "a list of 20,000 lists", b"[" + b"[]," * 20_000 + b"[]]"),
    ):
        yield case(name, what, data)
    yield case("large.json", "a list of 300 MiB", lambda path: hole(path, num_bytes=300 * 2**20, start=b"["))
    yield case(
        "line.jsonl",
        "a line of 64 MiB",
        lambda path: hole(path, num_bytes=2**26, start=_ROW.encode() + b'\n{"id": "'),
    )
    yield case("pipe.jsonl", "a pipe that nobody writes to", os.mkfifo)
    yield case("zero.jsonl", "a link to /dev/zero", lambda path: path.symlink_to("/dev/zero"))
    yield case("folder.jsonl", "a folder", Path.mkdir)
    head = b"id,image,prompt\n"
    for name, what, data in (
        ("none.csv", "CSV without a header", b"a,a.png,?\n"),
        ("head.csv", "CSV: the header alone", head),
        ("other.csv", "CSV with other columns", b"a,b,c\n1,2,3\n"),
        ("semicolons.csv", "CSV with semicolons", head.replace(b",", b";") + b"a;a.png;?\n"),
        ("short.csv", "CSV: a row of one field", head + b"a\n"),
        ("long.csv", "CSV: a row of 100,000 fields", head + b"a,a.png,?" + b",x" * 100_000 + b"\n"),
        ("quote.csv", "CSV: a quote that never ends", head + b'a,a.png,"?\n' + b"b,a.png,?\n" * 20_000),
        ("nul.csv", "CSV: a NUL in a field", head + b"a,a.png,?\0?\n"),
        ("field.csv", "CSV: a field of 1 MB", head + b"a,a.png," + b"x" * 10**6 + b"\nb,a.png,?\n"),
        ("line.csv", "CSV: a row of 20 MB", head + b"a,a.png," + b"x," * 10_000_000 + b"\nb,a.png,?\n"),
        ("columns.csv", "CSV of a million columns", b"id,image,prompt" + b",x" * 10**6 + b"\n" + b"a,a.png,?\n"),
        ("head_field.csv", "CSV: a column's name of 1 MB", b"id,image,prompt," + b"x" * 10**6 + b"\na,a.png,?,x\n"),
        ("returns.csv", "CSV with old Mac line ends", head.replace(b"\n", b"\r") + b"a,a.png,?\r"),
        ("magic.parquet", "Parquet: its mark alone", b"PAR1"),
        ("ends.parquet", "Parquet: both marks and nothing between", b"PAR1PAR1"),
        (
            "footer.parquet",
            "Parquet that claims a footer of 4 GB",
            b"PAR1" + bytes(64) + b"\xf0\xff\xff\xff" + b"PAR1",
        ),
        ("text.parquet", "text under the name of Parquet", b"hello"),
        ("arrow.parquet", "an Arrow file under the name of Parquet", b"ARROW1\0\0" + bytes(64)),
    ):
        yield case(name, what, data)

    def parquet(what: str, **changed: Any) -> Case:
        return case("rows.parquet", f"Parquet: {what}", lambda path: table(path, columns_of(2, **changed)))

    yield case(
        "cut.parquet",
        "Parquet: half of the file",
        lambda path: [table(path, columns_of(99)), path.write_bytes(cut(path.read_bytes()))],
    )
    yield case("flipped.parquet", "Parquet: a page with other bytes", flipped)
    yield case("none.parquet", "Parquet without rows", lambda path: table(path, columns_of(0)))
    yield case("other.parquet", "Parquet with other columns", lambda path: table(path, {"a": [1]}))
    yield case(
        "columns.parquet",
        "Parquet of 12,000 columns",
        lambda path: table(path, columns_of(1) | {f"c{i}": [0] for i in range(12_000)}),
    )
    yield case("repeated.parquet", "Parquet: one text of 6 MB in 1,000 rows", repeated_text)
    yield parquet("pictures as bytes", image=[{"bytes": b"x" * 10**6, "path": None}] * 2)
    yield parquet("pictures as bytes without a path", image=[b"x", b"y"])
    yield parquet("an id of lists of objects", id=[[{"a": [1]}], [{"a": [2]}]])
    yield parquet("floats for ids", id=[1.0, float("nan")])
    yield parquet("nothing but nulls", id=pa.nulls(2), prompt=pa.nulls(2))
    yield parquet("prompts that are not UTF-8", prompt=pa.array([b"\xff", b"?"]))
    yield parquet("texts that are not UTF-8", prompt=pa.array([b"\xff", b"?"], pa.binary()).view(pa.string()))
    yield parquet("times for ids", id=pa.array([0, 2**62], pa.timestamp("ns")))
    yield parquet("dates beyond Python's for ids", id=pa.array([0, 2**40], pa.timestamp("s")))
    yield parquet("maps for prompts", prompt=pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int32())))


def flipped(path: Path) -> None:
    table(path, columns_of(2_000), compression="zstd")
    data = bytearray(path.read_bytes())
    data[40:400] = b"\xff" * 360
    path.write_bytes(data)


def cases() -> list[Case]:
    return [*pictures(), *names(), *row_files()]


# ---- running them ----


def outcome_of(case: Case, folder: Path) -> tuple[str, str]:
    """The word for what becomes of a case, and what is said about it."""
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    if case.kind == "name":
        (folder / "rows.jsonl").write_text(json.dumps({"id": "a", "image": case.made, "prompt": "?"}) + "\n")
        return read_rows(folder / "rows.jsonl")
    path = folder / case.name
    if callable(case.made):
        case.made(path)
    else:
        path.write_bytes(case.made)  # type: ignore[arg-type]
    start_measuring()
    if case.kind == "rows":
        return read_rows(path)
    try:
        width, height = load_image(str(path)).size
    except UnreadableError as error:
        assert error.fault == "input", error
        return "set aside", str(error).removeprefix(f"image {path}: ")
    return "read", f"{width} x {height} pixels"


def read_rows(path: Path) -> tuple[str, str]:
    try:
        prompts = PromptFile(str(path), images=None, limit=None)
        rejections = list(prompts.rejections())
        for prompt in prompts.take():
            try:
                load_image(prompt.image)
            except UnreadableError as error:
                rejections.append(prompt.refused(str(error), fault=error.fault))
    except UserError as error:
        assert "\n" not in str(error)
        return "refused", str(error).replace(repr(str(path)), repr(path.name))
    for rejection in rejections:
        json.dumps(asdict(rejection)).encode()  # as the quarantine does
    if rejections:
        return "set aside", rejections[0].reason.replace(f"{path.parent}/", "")
    return "read", f"{prompts.num} prompts"


_rss_kib = 0


def start_measuring() -> None:
    global _rss_kib
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    _rss_kib = status_kib("VmRSS")


def status_kib(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def run_case(case: Case) -> Outcome:
    """Run a case in a fork of this process."""
    reading, writing = os.pipe()
    started_s = time.monotonic()
    pid = os.fork()
    if pid == 0:
        answer: list[Any] = ["FAILED", "no answer", 0]
        try:
            signal.alarm(MAX_SECONDS + 20)  # the corpus's own work included
            limit = status_kib("VmSize") * 1024 + _ADDRESS_SPACE_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            with tempfile.TemporaryDirectory() as folder:
                start_measuring()
                begun_s = time.monotonic()
                word, says = outcome_of(case, Path(folder))
                answer = [word, says, time.monotonic() - begun_s]
        except BaseException as error:
            answer = ["FAILED", f"{type(error).__name__}: {error}", 0]
        finally:
            peak_mib = (status_kib("VmHWM") - _rss_kib) // 1024
            os.write(writing, json.dumps([*answer[:1], answer[1][:4_000], answer[2], peak_mib]).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    if not said:
        return Outcome("FAILED", "ended without an answer", time.monotonic() - started_s, 0)
    word, says, seconds, peak_mib = json.loads(said)
    return Outcome(word, says, seconds, max(0, peak_mib))


def shown(text: str) -> str:
    """A text as a cell of the table."""
    return text.encode("unicode_escape").decode().replace("|", "\\|").replace("<", "&lt;") or "(a name)"


def write_table(path: Path, results: list[tuple[Case, Outcome]]) -> None:
    text = [
        "# Bad inputs, and what becomes of them",
        "",
        f"{len(results)} of them, made by `tests/bad_inputs.py` and read with {MAX_PEAK_MIB} MiB and {MAX_SECONDS} s",
        "at most for each. `make bad-inputs` writes this page; a test compares it with what happens now, but for the",
        "reasons, which are partly the libraries' own words, and the figures (a case's file is made within its",
        "seconds). *read*: usable after all, whatever it looks like. *set aside*: one line of `quarantine.jsonl`; the",
        "run goes on. *refused*: one line for the user; the run does not start.",
        "",
        "| input | what it is | outcome | reason | s | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for case, outcome in results:
        says = outcome.says if len(outcome.says) <= 140 else f"{outcome.says[:140]}..."
        cells = [shown(cell) for cell in (case.name, case.what, outcome.word, says)]
        text.append(f"| {' | '.join(cells)} | {outcome.seconds:.1f} | {outcome.peak_mib} |")
    path.write_text("\n".join(text) + "\n")


def main() -> None:
    results = [(case, run_case(case)) for case in cases()]
    if sys.argv[1:] == ["--json"]:
        print(json.dumps([[asdict(outcome), case.kind, case.name, case.what] for case, outcome in results]))
    else:
        write_table(Path(sys.argv[1]), results)
        for case, outcome in results:
            if outcome.word == "FAILED" or outcome.seconds > MAX_SECONDS or outcome.peak_mib > MAX_PEAK_MIB:
                print(case.kind, case.name, case.what, outcome)


if __name__ == "__main__":
    main()
