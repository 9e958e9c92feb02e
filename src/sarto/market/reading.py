"""Samples from files: folders of images, sheets or texts, tables, .npz, .safetensors. No code of a file is ever run."""

from __future__ import annotations

import json
import math
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open

from sarto.errors import RequestError, suggest
from sarto.market.reading_text import TABLES, read_encoded_texts, read_text_folder, read_texts
from sarto.market.samples import FORMAT, Samples
from sarto.market.texts import START, TextSamples
from sarto.types.fields import Frozen, Name, Names, Positive, Text
from sarto.types.value import Value

#: Endings of image files that are read.
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: Endings of files that are pickles, or may be one.
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib")
#: Largest image or sheet in pixels, largest set of samples in bytes: a small file can't fill the memory.
MAX_PIXELS = 2**26
MAX_BYTES = 2**32
#: Files that systems leave in folders.
_LITTER = ("thumbs.db", "desktop.ini")


class Sheet(Value):
    """What sheet.json says about a folder of sheets.

    Attributes:
        tile: (height, width) of one image in pixels.
        classes: each has a sheet named after it.
        counts: number of images of the classes whose sheets are not full.
        source, note: for people.
    """

    tile: tuple[Positive, Positive]
    classes: Annotated[Names, Field(min_length=1)]
    counts: Frozen[Name, Positive] = Field(default_factory=dict, validate_default=True)
    source: Text = ""
    note: Text = ""

    @model_validator(mode="after")
    def _check_sheet(self) -> Sheet:
        problems = [
            f"classes: {name!r} can't be the name of a file; rename the class"
            for name in self.classes
            if name.startswith(".") or set(name) & set("/\\:")
        ]
        unknown = [name for name in self.counts if name not in self.classes]
        problems += [
            f"counts: {name!r} is not among the classes{suggest(name, self.classes)}" for name in unknown
        ]
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self


def read_samples(path: str | Path) -> Samples | TextSamples:
    """Samples from a path: images or texts.

    Args:
        path: one of
            a folder with one sub-folder of images (png, jpg, webp, bmp) a class; both are sorted by name;
            a folder with sheet.json ({"tile": [height, width], "classes": [...]}; see `Sheet`) and one image
            a class, named after it, with the tiles row by row;
            a folder with one sub-folder of .txt files a class, one text a file;
            a .tsv or .csv with the columns label and text, or a .jsonl of {"label": ..., "text": ...};
            an .npz with `images` (n, height, width, channels), `labels` (n,) and `classes` (names);
            a .safetensors as `encode_samples` writes it.

    Raises:
        RequestError: nothing there, a pickle, files that can't be read, images of different sizes, or what
            `Samples` refuses. All problems at once.
    """
    place = Path(path)
    found: Samples | TextSamples
    if not place.exists():
        raise RequestError(f"samples {str(place)!r}: there is nothing at this path", where=str(place))
    if place.is_dir():
        found = _read_sheets(place) if (place / "sheet.json").exists() else _read_folder(place)
    elif place.suffix.lower() == ".npz":
        found = _read_npz(place)
    elif place.suffix.lower() == ".safetensors":
        found = read_encoded(place)
    elif place.suffix.lower() in TABLES:
        found = _read_table(place)
    elif place.suffix.lower() in PICKLES:
        raise RequestError(_pickle_text(place), where=str(place))
    else:
        raise RequestError(
            f"samples {str(place)!r}: {place.suffix or 'no ending'} is not a kind of samples that is read; "
            "give a folder with one sub-folder of images (or .txt files) a class, a folder with sheet.json, an .npz or "
            "a .safetensors; for texts a .tsv, .csv or .jsonl",
            where=str(place),
        )
    return found


def read_images(path: str | Path) -> Samples:
    """Images from a path; see `read_samples`.

    Raises:
        RequestError: as there, and where the path holds texts.
    """
    found = read_samples(path)
    if not isinstance(found, Samples):
        raise RequestError(
            f"samples {str(path)!r}: these are {found.noun}s, images were expected", where=str(path)
        )
    return found


def read_encoded(path: Path) -> Samples | TextSamples:
    """Samples from a file that `encoded` of images or texts wrote.

    Raises:
        RequestError: not such a file.
    """
    try:
        with path.open("rb") as raw:
            if raw.read(len(START)) == START:
                return read_encoded_texts(path)
        with safe_open(str(path), framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("sarto", "null"))
            names = set(file.keys())
            if not isinstance(about, dict) or about.get("format") != FORMAT or names != {"images", "labels"}:
                raise RequestError(
                    f"samples {str(path)!r}: these tensors are not samples (format {FORMAT!r} with images "
                    f"and labels); found {', '.join(sorted(names)) or 'none'}",
                    where=str(path),
                )
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
    except (SafetensorError, ValueError, OSError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"samples {str(path)!r}: not a readable safetensors file ({error})", where=str(path)
        ) from error
    return _samples(path, images, labels, _names(about.get("classes"), path))


def has_no_labels(place: Path) -> bool:
    """Whether a path is a folder of images without labels: image files, and neither sub-folders nor sheet.json."""
    return any(file.suffix.lower() in IMAGES for file in _flat(place))


def read_unlabelled(place: Path) -> Samples:
    """Images whose labels nobody reads: a folder of image files, or anything that `read_samples` reads.

    Raises:
        RequestError: a file is no image, the sizes differ, or these are texts.
    """
    if files := _flat(place):
        pictures = _read_pictures(place, [("", file) for file in files])
        return _samples(place, pictures, np.zeros(len(pictures), np.int64), ["unlabelled"])
    held = read_samples(place)
    if not isinstance(held, Samples):
        raise RequestError(f"{str(place)!r} holds texts; images are asked for", where=str(place))
    return held


def _flat(place: Path) -> list[Path]:
    """Files of a folder that has neither sub-folders nor sheet.json; empty where it is another thing."""
    if not place.is_dir() or (place / "sheet.json").exists():
        return []
    files = _listed(place)
    return [] if any(file.is_dir() for file in files) else files


def _read_table(place: Path) -> TextSamples:
    try:
        return read_texts(place)
    except RequestError as error:
        if error.problems:
            raise
        raise RequestError(f"samples {str(place)!r}: {error.detail}", where=str(place)) from error


def _read_folder(place: Path) -> Samples | TextSamples:
    entries = _listed(place)
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise RequestError(
            f"samples {str(place)!r}: no sub-folder in it; make one folder a class and put its images there, "
            'or add a sheet.json ({"tile": [32, 32], "classes": [...]})',
            where=str(place),
        )
    problems = [
        f"{entry.name}: a file beside the class folders; move it away"
        for entry in entries
        if not entry.is_dir()
    ]
    listed = [_listed(folder) for folder in folders]
    if not problems and any(file.suffix.lower() == ".txt" for files in listed for file in files):
        return read_text_folder(place, folders, listed)
    named: list[tuple[str, Path]] = []
    labels: list[int] = []
    for label, (folder, files) in enumerate(zip(folders, listed, strict=True)):
        if not files:
            problems.append(f"{folder.name}: no image in this class folder")
        named += [(f"{folder.name}/", file) for file in files]
        labels += [label] * len(files)
    pictures = _read_pictures(place, named, problems)
    return _samples(place, pictures, np.array(labels), [folder.name for folder in folders])


def _read_pictures(
    place: Path, named: Sequence[tuple[str, Path]], found_before: Sequence[str] = ()
) -> NDArray[np.uint8]:
    """Images of one size, shape (n, height, width, channels); all problems at once, with those found before.

    Args:
        named: what a message says before the file's name, and the file.
    """
    problems, pictures, size_bytes = list(found_before), list[NDArray[np.uint8]](), 0
    for before, file in named:
        try:
            pictures.append(_read_image(file))
        except RequestError as error:
            problems.append(f"{before}{error}")
            continue
        size_bytes += pictures[-1].nbytes
        _check_bytes(place, size_bytes)
    sizes = Counter(picture.shape[:2] for picture in pictures)
    if len(sizes) > 1:
        found = ", ".join(f"{count} of {w}x{h}" for (h, w), count in sizes.most_common(5))
        more = f" and {len(sizes) - 5} more sizes" if len(sizes) > 5 else ""
        (h, w), _ = sizes.most_common(1)[0]
        problems.append(
            f"images have {len(sizes)} sizes (width x height): {found}{more}; one size is needed: "
            f"resize them all, for example to {w}x{h}"
        )
    _raise(place, problems)
    return np.stack(_same_channels(pictures))


def _read_sheets(place: Path) -> Samples:
    about = Sheet.read(place / "sheet.json")
    (height, width), classes = about.tile, about.classes
    problems: list[str] = []
    tiles: list[NDArray[np.uint8]] = []
    for name in classes:
        files = [file for ending in IMAGES if (file := place / f"{name}{ending}").is_file()]
        if len(files) != 1:
            found = "no sheet" if not files else "several sheets"
            problems.append(f"{found} of class {name!r}: one file {name}.webp or {name}.png is needed")
            continue
        try:
            sheet = _read_image(files[0])
        except RequestError as error:
            problems.append(str(error))
            continue
        rows, columns = sheet.shape[0] // height, sheet.shape[1] // width
        if (rows * height, columns * width) != sheet.shape[:2]:
            problems.append(
                f"{files[0].name}: {sheet.shape[1]}x{sheet.shape[0]} pixels can't be cut into tiles "
                f"of {width}x{height}"
            )
            continue
        grid = (
            sheet.reshape(rows, height, columns, width, -1)
            .swapaxes(1, 2)
            .reshape(-1, height, width, sheet.shape[2])
        )
        count = about.counts.get(name, len(grid))
        if count > len(grid):
            problems.append(f"{files[0].name}: {len(grid)} tiles, but sheet.json counts {count} images")
        tiles.append(grid[:count])
        _check_bytes(place, sum(part.nbytes for part in tiles))
    _raise(place, problems)
    labels = np.repeat(np.arange(len(classes)), [len(part) for part in tiles])
    return _samples(place, np.concatenate(_same_channels(tiles)), labels, classes)


def _read_npz(path: Path) -> Samples:
    arrays: dict[str, NDArray[Any]] = {}
    problems: list[str] = []
    wanted = ("images", "labels", "classes")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            problems += [
                f"no array {name!r} in it{suggest(name, members)}" for name in wanted if name not in members
            ]
            for name in wanted:
                if name in members:
                    _check_bytes(path, members[name].file_size)
                    with archive.open(members[name]) as file:
                        try:
                            arrays[name] = _read_array(file, members[name].file_size)
                        except RequestError as error:
                            problems.append(f"{name}: {error}")
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"samples {str(path)!r}: not a readable .npz ({error})", where=str(path)
        ) from error
    _raise(path, problems)
    return _samples(path, arrays["images"], arrays["labels"], _names(arrays["classes"].tolist(), path))


def _read_array(file: IO[bytes], size_bytes: int) -> NDArray[Any]:
    """One .npy array, after its header has been compared with its size; never a pickle."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise RequestError(f"version {version} of the .npy format is not read; write it with numpy.savez")
    header = npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    shape, fortran, dtype = header
    if dtype.hasobject:
        raise RequestError(
            "holds Python objects (a pickle), which can run code when they are read, and is refused; "
            "save plain arrays: numpy.array(names, dtype=str)"
        )
    count = math.prod(shape)
    if count * dtype.itemsize != size_bytes - file.tell():
        raise RequestError(f"the header says {dtype} {shape}, but {size_bytes - file.tell()} bytes follow")
    array = np.frombuffer(file.read(), dtype=dtype, count=count)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _read_image(path: Path) -> NDArray[np.uint8]:
    """Pixels of an image file, shape (height, width, 1 or 3), turned upright where its EXIF says so."""
    if path.suffix.lower() not in IMAGES or not path.is_file():
        kind = (
            "a pickle, which can run code when it is read"
            if path.suffix.lower() in PICKLES
            else "not an image"
        )
        raise RequestError(f"{path.name}: {kind}; only {', '.join(IMAGES)} belong here")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP"))
        with opened as image:
            if image.width * image.height > MAX_PIXELS:
                raise RequestError(
                    f"{path.name}: {image.width}x{image.height} pixels are more than the {MAX_PIXELS} "
                    "that are read; make it smaller or cut the sheet in parts"
                )
            if image.mode not in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK"):
                raise RequestError(
                    f"{path.name}: colour mode {image.mode} is not read; save it as 8-bit RGB or grey"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data and np.asarray(upright.convert("RGBA"))[..., 3].min() < 255:
                raise RequestError(f"{path.name}: has transparent pixels; flatten it onto a background")
            grey = upright.mode in ("1", "L", "LA")
            pixels: NDArray[np.uint8] = np.asarray(upright.convert("L" if grey else "RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{path.name}: not a readable image ({error})") from error
    return pixels.reshape(*pixels.shape[:2], -1)


def _same_channels(parts: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Grey pictures get three channels where others have three."""
    wanted = max(part.shape[-1] for part in parts)
    return [part if part.shape[-1] == wanted else np.repeat(part, wanted, axis=-1) for part in parts]


def _samples(place: Path, images: NDArray[Any], labels: NDArray[Any], classes: Sequence[str]) -> Samples:
    try:
        return Samples(images, labels, tuple(classes))
    except RequestError as error:
        raise RequestError(f"samples {str(place)!r}", where=str(place), problems=error.problems) from error


def _names(found: object, path: Path) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise RequestError(
            f"samples {str(path)!r}: classes must be a list of names (text), got {found!r}", where=str(path)
        )
    return tuple(found)


def _listed(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return [
        entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _LITTER
    ]


def _check_bytes(place: Path, size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise RequestError(
            f"samples {str(place)!r}: more than {MAX_BYTES} bytes of pixels; give fewer images "
            "(5-20 a class are enough)",
            where=str(place),
        )


def _raise(place: Path, problems: Sequence[str]) -> None:
    """Refuse with every problem, if there is one."""
    if problems:
        raise RequestError(f"samples {str(place)!r}", where=str(place), problems=problems)


def _pickle_text(place: Path) -> str:
    return (
        f"samples {str(place)!r}: {place.suffix} files are pickles, which can run code when they are read, "
        "and are refused. Convert it once, where you trust it: "
        "data = torch.load('old.pt', weights_only=True); "
        "numpy.savez('samples.npz', images=data['images'], labels=data['labels'], classes=data['classes'])"
    )
