"""Image files of formats that are not read here, known by name or content, and what to do with one.

HEIC, what iPhones write, is read where the package pillow-heif is installed (the extra `heif`).
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

from mmrl_core.errors import UserError

HEIC, RAW = "HEIC", "camera raw"
_EXTENSIONS = {
    HEIC: "heic heics heif heifs hif",
    "JPEG XL": "jxl",
    "JPEG 2000": "j2c j2k jp2 jpc jpf jpx",
    "JPEG XR": "jxr wdp",
    RAW: "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mef mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f",
    "Photoshop": "psb psd",
    "Targa": "tga",
    "OpenEXR": "exr",
    "Radiance": "hdr",
    "PFM": "pfm",
    "DICOM": "dcm",
    "ICO": "ico",
    "SVG": "svg svgz",
    "PostScript": "eps",
    "DIB": "dib",
    "PCX": "pcx",
    "QOI": "qoi",
    "DDS": "dds",
    "SGI": "sgi",
}
KINDS = {extension: kind for kind, extensions in _EXTENSIONS.items() for extension in extensions.split()}
PHOTOGRAPHS = {HEIC, "JPEG XL", "JPEG 2000", "JPEG XR", RAW}  # as JPEG; the rest may have sharp edges or transparency

_BRANDS = {b"mif1": HEIC, b"msf1": HEIC, b"crx ": RAW}  # of ISO base media files
_BEGINNINGS = {
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL", b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000",
    b"II\xbc": "JPEG XR",
    b"FUJIFILMCCD-RAW": RAW, b"IIRO": RAW, b"IIRS": RAW, b"MMOR": RAW, b"IIU\0": RAW, b"FOVb": RAW, b"\0MRM": RAW,
    b"8BPS": "Photoshop", b"v/1\x01": "OpenEXR", b"#?RADIANCE": "Radiance", b"PF": "PFM", b"Pf": "PFM",
    b"\0\0\1\0": "ICO", b"<svg": "SVG", b"%!PS": "PostScript", b"qoif": "QOI", b"DDS ": "DDS",
}  # fmt: skip


@cache
def reads_heif() -> bool:
    """Whether the package that reads HEIC is installed."""
    return find_spec("pillow_heif") is not None


def is_readable_heif(path: str) -> bool:
    """Whether the file extension is HEIC's, and HEIC is read."""
    return KINDS.get(_extension(path)) == HEIC and reads_heif()


def foreign_name(path: str) -> str | None:
    """The format that the file extension stands for, where it is an image's that is not read here; else None."""
    return _unless_read(KINDS.get(_extension(path)))


def _extension(path: str) -> str:
    stem, _, extension = path.rpartition(".")
    return "" if not stem or stem.endswith("/") or "/" in extension else extension.lower()


def _unless_read(kind: str | None) -> str | None:
    return None if kind == HEIC and reads_heif() else kind


def foreign_content(image: bytes) -> str | None:
    """The same by how the file begins. A raw file that is built as a TIFF is one by its name alone."""
    return _unless_read(_content(image))


def holds_readable_heif(image: bytes) -> bool:
    """Whether the file begins as HEIC does, and HEIC is read."""
    return _content(image) == HEIC and reads_heif()


def _content(image: bytes) -> str | None:
    if image[4:8] == b"ftyp" and b"avif" not in image[8:64]:  # AVIF is read
        return _BRANDS.get(image[8:12]) or (HEIC if image[8:11] in (b"hei", b"hev") else None)
    if image[128:132] == b"DICM":
        return "DICOM"
    return next((kind for beginning, kind in _BEGINNINGS.items() if image.startswith(beginning)), None)


def convert(kind: str) -> str:
    """What to do with a file of that format."""
    install = ", or `pip install 'mmrl-ops[heif]'`" if kind == HEIC else ""
    return f"convert it to {'JPEG' if kind in PHOTOGRAPHS else 'PNG'}{install}"


def refusal(path: str, kind: str) -> str:
    """What is wrong with a file of that format, and what to do."""
    return f"{path} is in the format {kind}, which is not read here; {convert(kind)}"


def check_format(path: str, where: str) -> None:
    """Raises UserError for a file name that is an image's of a format that is not read here."""
    if kind := foreign_name(path):
        raise UserError(f"{where}: {refusal(path, kind)}")


def left_out(paths: Sequence[str]) -> list[str]:
    """A note on the paths that are no images, and one on each format of images that is not read here; with counts."""
    of_kind: dict[str | None, list[str]] = {}
    for path in paths:
        of_kind.setdefault(foreign_name(path), []).append(path)
    others = of_kind.pop(None, [])
    notes = [f"{len(others)} files that are no images were left out, the first {others[0]}"] if others else []
    return notes + [
        f"{len(files)} files in the format {kind} were left out, the first {files[0]}; to use it, {convert(str(kind))}"
        for kind, files in of_kind.items()
    ]
