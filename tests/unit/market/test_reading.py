from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sarto.errors import RequestError
from sarto.market import Samples, encode_samples, read_samples, read_unlabelled, reading
from sarto.testing.store_contract import pixels


class Bomb:
    """Unpickling it raises."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('a pickle was run')",)


def write_folder(samples: Samples, folder: Path, ending: str = "png") -> Path:
    for label, name in enumerate(samples.classes):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(samples.images[samples.labels == label]):
            Image.fromarray(image.squeeze()).save(folder / name / f"{number:03}.{ending}")
    return folder


def write_sheets(
    samples: Samples, folder: Path, columns: int, ending: str = "webp", **changed: object
) -> Path:
    folder.mkdir()
    height, width, channels = samples.images.shape[1:]
    counts = {}
    for label, name in enumerate(samples.classes):
        tiles = samples.images[samples.labels == label]
        counts[name] = len(tiles)
        rows = -(-len(tiles) // columns)
        sheet = np.zeros((rows * height, columns * width, channels), np.uint8)
        for place, tile in enumerate(tiles):
            top, left = place // columns * height, place % columns * width
            sheet[top : top + height, left : left + width] = tile
        Image.fromarray(sheet.squeeze()).save(folder / f"{name}.{ending}", lossless=True)
    about = {"tile": [height, width], "classes": list(samples.classes), "counts": counts, **changed}
    (folder / "sheet.json").write_text(json.dumps(about))
    return folder


def write_npz(samples: Samples, path: Path) -> Path:
    np.savez_compressed(
        path,
        images=np.asfortranarray(samples.images),
        labels=samples.labels,
        classes=np.array(samples.classes),
    )
    return path


@pytest.fixture
def samples() -> Samples:
    return pixels(("zebra", "ant", "bee"), per_class=5).take(5)


def test_every_way_of_storing_gives_the_same_samples(samples: Samples, tmp_path: Path) -> None:
    (tmp_path / "s.safetensors").write_bytes(encode_samples(samples))
    found = [
        read_samples(write_folder(samples, tmp_path / "folder")),
        read_samples(write_folder(samples, tmp_path / "bmp", "bmp")),
        read_samples(write_sheets(samples, tmp_path / "sheets", columns=5)),
        read_samples(write_sheets(samples, tmp_path / "unfilled", columns=3)),
        read_samples(write_npz(samples, tmp_path / "s.npz")),
        read_samples(str(tmp_path / "s.safetensors")),
    ]
    assert {read.digest for read in found} == {samples.digest}
    assert found[0].classes == ("ant", "bee", "zebra")
    assert found[2].classes == samples.classes


def test_grey_images_keep_one_channel_and_join_colour(tmp_path: Path) -> None:
    grey = Samples(np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1), np.array([0, 1]), ("ant", "bee"))
    folder = write_folder(grey, tmp_path / "grey")
    assert read_samples(folder) == grey
    assert read_samples(write_sheets(grey, tmp_path / "sheets", columns=1, ending="png")) == grey
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "bee" / "zzz.png")
    joined = read_samples(folder)
    assert joined.images.shape == (3, 4, 4, 3)
    assert np.array_equal(joined.images[0], np.repeat(grey.images[0], 3, axis=2))


def test_palettes_are_resolved_and_exif_is_obeyed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    colour = np.random.default_rng(0).integers(0, 2, (4, 6, 3), dtype=np.uint8) * 255
    Image.fromarray(colour).quantize(8).save(tmp_path / "a" / "1.png")
    assert np.array_equal(read_samples(tmp_path).images[0], colour)
    image = Image.fromarray(np.repeat(np.repeat(colour, 8, axis=0), 8, axis=1))
    exif = image.getexif()
    exif[0x0112] = 6
    (tmp_path / "a" / "1.png").unlink()
    image.save(tmp_path / "a" / "1.jpg", exif=exif, quality=100, subsampling=0)
    found = read_samples(tmp_path).images[0]
    assert found.shape == (48, 32, 3)
    assert np.abs(found[4::8, 4::8].astype(int) - np.rot90(colour, -1)).max() < 16


def test_images_of_several_sizes_are_counted(samples: Samples, tmp_path: Path) -> None:
    folder = write_folder(samples, tmp_path / "folder")
    Image.new("RGB", (7, 5)).save(folder / "ant" / "odd.png")
    with pytest.raises(
        RequestError, match=r"2 sizes \(width x height\): 15 of 4x4, 1 of 7x5.*resize them all.*4x4"
    ):
        read_samples(folder)


def test_a_folders_problems_are_named_at_once(samples: Samples, tmp_path: Path) -> None:
    folder = write_folder(samples, tmp_path / "folder")
    (folder / "readme.txt").write_text("hello")
    (folder / "empty").mkdir()
    (folder / "ant" / "notes.txt").write_text("hello")
    (folder / "ant" / "model.pth").write_bytes(pickle.dumps(Bomb()))
    (folder / "ant" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 50)
    whole = (folder / "bee" / "000.png").read_bytes()
    (folder / "bee" / "000.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGBA", (4, 4), (1, 2, 3, 4)).save(folder / "zebra" / "glass.png")
    Image.new("I;16", (4, 4)).save(folder / "zebra" / "deep.png")
    (folder / ".hidden").write_text("fine")
    (folder / "ant" / "Thumbs.db").write_text("fine")
    with pytest.raises(RequestError) as refused:
        read_samples(folder)
    assert len(refused.value.problems) == 8
    for words in (
        "readme.txt: a file beside the class folders",
        "empty: no image",
        "ant/notes.txt: not an image",
        "ant/model.pth: a pickle",
        "ant/broken.png: not a readable image",
        "bee/000.png: not a readable image",
        "zebra/glass.png: has transparent pixels",
        "zebra/deep.png: colour mode I;16",
    ):
        assert words in str(refused.value)


def test_opaque_alpha_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGBA", (2, 2), (1, 2, 3, 255)).save(tmp_path / "a" / "1.png")
    assert read_samples(tmp_path).images[0, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.pkl", "x.joblib", "x.BIN"])
def test_pickles_are_refused_with_the_safe_way(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RequestError, match=r"can run code.*refused.*torch.load.*numpy.savez\('samples.npz'"):
        read_samples(tmp_path / name)


def test_objects_inside_an_npz_are_refused_unread(samples: Samples, tmp_path: Path) -> None:
    labels = np.empty(15, dtype=object)
    labels[:] = [Bomb()] * 15
    np.savez(tmp_path / "x.npz", images=samples.images, labels=labels, classes=np.array(samples.classes))
    with pytest.raises(RequestError, match=r"labels: holds Python objects \(a pickle\)"):
        read_samples(tmp_path / "x.npz")


def test_an_npz_without_its_arrays_is_refused(samples: Samples, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=samples.images, labels=samples.labels)
    with pytest.raises(
        RequestError, match=r"no array 'images' in it \(did you mean 'image'\?\).*no array 'classes'"
    ):
        read_samples(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", images=samples.images, labels=samples.labels, classes=np.arange(3))
    with pytest.raises(RequestError, match="classes must be a list of names"):
        read_samples(tmp_path / "y.npz")
    np.savez(
        tmp_path / "z.npz",
        images=samples.images[:3],
        labels=samples.labels,
        classes=np.array(samples.classes),
    )
    with pytest.raises(RequestError, match=r"z.npz'.*15 labels for 3 images"):
        read_samples(tmp_path / "z.npz")


def test_an_npz_that_lies_about_its_size_is_refused(samples: Samples, tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 9, 9, 3), }"
    text = header + b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(write_npz(samples, tmp_path / "x.npz")) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as new:
        for name, data in members.items():
            lie = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 64
            new.writestr(name, lie if name == "images.npy" else data)
    with pytest.raises(RequestError, match=r"images: the header says uint8.*but 64 bytes follow"):
        read_samples(tmp_path / "y.npz")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 and nothing", b"hello" * 100])
def test_what_is_no_npz_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(RequestError, match=r"not a readable .npz"):
        read_samples(tmp_path / "x.npz")


def test_a_truncated_npz_is_refused(samples: Samples, tmp_path: Path) -> None:
    data = write_npz(samples, tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data[:-30])
    with pytest.raises(RequestError, match=r"not a readable .npz"):
        read_samples(tmp_path / "x.npz")


def test_what_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(RequestError, match="not a readable safetensors file"):
        read_samples(path)
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(RequestError, match=r"these tensors are not samples.*found weight"):
        read_samples(path)


def test_what_large_files_unpack_to_is_bounded(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npz, folder = write_npz(samples, tmp_path / "x.npz"), write_folder(samples, tmp_path / "folder")
    sheets = write_sheets(samples, tmp_path / "sheets", columns=5)
    monkeypatch.setattr(reading, "MAX_BYTES", 700)
    for path in (npz, folder, sheets):
        with pytest.raises(RequestError, match="more than 700 bytes of pixels; give fewer images"):
            read_samples(path)
    monkeypatch.setattr(reading, "MAX_PIXELS", 10)
    with pytest.raises(RequestError, match="4x4 pixels are more than the 10 that are read"):
        read_samples(folder)


def test_sheets_that_do_not_fit_are_named_at_once(samples: Samples, tmp_path: Path) -> None:
    folder = write_sheets(samples, tmp_path / "sheets", columns=5, counts={"ant": 9})
    Image.new("RGB", (9, 4)).save(folder / "bee.webp", lossless=True)
    (folder / "zebra.webp").unlink()
    with pytest.raises(RequestError) as refused:
        read_samples(folder)
    assert len(refused.value.problems) == 3
    for words in (
        "no sheet of class 'zebra'",
        "ant.webp: 5 tiles, but sheet.json counts 9",
        "bee.webp: 9x4 pixels can't be cut into tiles of 4x4",
    ):
        assert words in str(refused.value)


def test_a_second_sheet_of_a_class_is_refused(samples: Samples, tmp_path: Path) -> None:
    folder = write_sheets(samples, tmp_path / "sheets", columns=5)
    Image.new("RGB", (4, 4)).save(folder / "bee.png")
    with pytest.raises(RequestError, match="several sheets of class 'bee'"):
        read_samples(folder)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ("{", "not readable as JSON"),
        ("[]", "a Sheet is a mapping of keys to values"),
        ('{"tiles": [4, 4], "classes": ["a"]}', "tiles: unknown key.*did you mean 'tile'"),
        ('{"tile": [4, 0], "classes": []}', r"2 problems: .*tile\[1\].*classes"),
        ('{"tile": [4, 4], "classes": ["../../etc/passwd"]}', "can't be the name of a file"),
        ('{"tile": [4, 4], "classes": ["ant"], "counts": {"art": 1}}', "counts: 'art' is not among.*'ant'"),
        ('{"tile": [4, 4], "classes": ["a"], "counts": {"a": true}}', "counts.a"),
    ],
)
def test_a_sheet_json_is_checked(about: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "sheet.json").write_text(about)
    with pytest.raises(RequestError, match=words):
        read_samples(tmp_path)


def test_paths_without_samples_say_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing at this path"):
        read_samples(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="no sub-folder in it; make one folder a class"):
        read_samples(tmp_path)
    (tmp_path / "x.xls").write_text("1,2")
    with pytest.raises(RequestError, match=r".xls is not a kind of samples that is read; give a folder"):
        read_samples(tmp_path / "x.xls")


def test_images_whose_labels_nobody_reads_may_lie_side_by_side(tmp_path: Path) -> None:
    samples = pixels(seed=4)
    folder = write_folder(samples, tmp_path / "classes")
    assert read_unlabelled(folder).digest == read_samples(folder).digest, "folders of classes will do too"
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, image in enumerate(samples.images):
        Image.fromarray(image.squeeze()).save(flat / f"{number:03}.png")
    assert (read_unlabelled(flat).images == samples.images).all()
    (flat / "note.txt").write_text("no image")
    Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(flat / "wide.png")
    with pytest.raises(RequestError) as caught:
        read_unlabelled(flat)
    assert "note.txt" in str(caught.value) and "2 sizes" in str(caught.value), "all at once"
    (tmp_path / "texts.csv").write_text("text,label\na word,x\nanother,y\n")
    with pytest.raises(RequestError, match="holds texts; images are asked for"):
        read_unlabelled(tmp_path / "texts.csv")
