"""Damages graph files and `.pt2` files in many ways and reads them; run as a program, so that a crash is seen.

`python -m tests.property.fuzz_graph_files COUNT SEED FOLDER` prints a JSON object: how many were read, refused, and
what went wrong. Everything that happens is drawn from the seed.
"""

from __future__ import annotations

import copy
import faulthandler
import json
import random
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sarto.errors import SartoError
from sarto.graph import capture, read_graph, write_graph
from sarto.graph.encoding import encode
from sarto.graph.file import hash_of, read_graph_files
from sarto.graph.pt2 import read_pt2, write_pt2
from sarto.testing.pico import pico

#: A read that takes longer, in CPU time, counts as a hang.
LIMIT_S = 2.0
WORDS = [
    *(
        "ref",
        "tensor",
        "batch",
        "constant",
        "float",
        "self",
        "input",
        "weight",
        "x",
        "nan",
        "-inf",
        "",
        "model",
    ),
    *("aten.relu.default", "aten.exec.default", "aten.from_file.default", "torch.ops.aten.from_file.default"),
    *("../up", "/etc/passwd", "a\0b", "\ud800", "__class__", "__import__('os').abort()", "float16", "cuda"),
    *(
        "Symbol('s77')",
        "s1",
        "Mul(s1, s1)",
        "as_int",
        "as_name",
        "as_expr",
        "as_none",
        "weight_0",
        "tensor_0",
    ),
]
LEAVES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 255, 10**9, 2**31, 2**31 + 1, 2**63 - 1, 2**63, -(2**63), 10**400),
    *(
        0.5,
        -0.0,
        1e308,
        [],
        {},
        [[]],
        [1] * 20,
        {"batch": 1},
        {"batch": 2**31},
        {"ref": "x"},
        {"tensor": "x"},
    ),
    *({"constant": ["dtype", "float64"]}, {"constant": ["device", "model"]}, {"float": "nan"}, {"as_int": 7}),
]
#: What a read has no business doing: (audit event, a test of its arguments).
_HARMFUL: dict[str, Callable[[tuple[Any, ...]], bool]] = {
    "open": lambda args: isinstance(args[1], str) and bool(set(args[1]) & set("wax+")),
    "exec": lambda args: getattr(args[0], "co_filename", "").startswith(("<string", "<stdin", "<unknown")),
    "pickle.find_class": lambda args: True,
    "os.system": lambda args: True,
    "os.remove": lambda args: True,
    "os.rename": lambda args: True,
    "os.mkdir": lambda args: True,
    "os.truncate": lambda args: True,
    "subprocess.Popen": lambda args: True,
    "socket.connect": lambda args: True,
    "ctypes.dlopen": lambda args: True,
}


class Recurrent(nn.Module):
    """Several results of one operator, an embedding, a fixed mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cell, self.fc = nn.Embedding(5, 4), nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        y, _ = self.cell(self.table(ids))
        return self.fc((y + torch.ones(3, 3).triu(1)).amax(1))


@dataclass
class Watch:
    """Writes down harmful events while `on`."""

    on: bool = False
    seen: list[str] = None  # type: ignore[assignment]

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event in _HARMFUL and _HARMFUL[event](args):
            self.seen.append(f"{event} {str(args)[:200]}")


def main(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Counts of what happened to so many damaged files, and every violation."""
    torch.set_num_threads(1)
    draw = random.Random(seed)
    sources = _sources(folder)
    watch = Watch(seen=[])
    sys.addaudithook(watch)
    report: dict[str, Any] = {"read": 0, "refused": 0, "slowest_s": 0.0, "wrong": []}
    place = folder / "damaged"
    place.mkdir()
    before = _listing(folder)
    for number in range(count):
        how, data = _damaged(draw.choice(sources), draw)
        for name, content in data.items():
            (place / name).unlink(missing_ok=True)
            (place / name).write_bytes(content)
        faulthandler.dump_traceback_later(30, exit=True)
        watch.seen.clear()
        watch.on, start = True, time.process_time()
        try:
            problem = _read(place, data)
        finally:
            watch.on, seconds = False, time.process_time() - start
            faulthandler.cancel_dump_traceback_later()
        report["read" if problem is None else "refused"] += 1
        report["slowest_s"] = max(report["slowest_s"], round(seconds, 3))
        wrong = [*watch.seen, *([problem[1:]] if problem and problem.startswith("!") else [])]
        wrong += [f"took {seconds:.1f} s"] * (seconds > LIMIT_S)
        if wrong:
            report["wrong"].append(f"{number} ({how}): {'; '.join(wrong)}")
        for name in data:
            (place / name).unlink()
    if _listing(folder) != before:
        report["wrong"].append("files were written")
    return report


def _read(place: Path, data: dict[str, bytes]) -> str | None:
    """None when the files were read as what they say, else why not; a leading "!" marks what must not happen."""
    try:
        if "model.pt2" in data:
            graph = read_pt2(place / "model.pt2")
            encode(graph)
            graph.module()
            return None
        graph = read_graph_files(place / "graph.json", place / "weights.safetensors", verify=True)
        if hash_of(encode(graph)) != hash_of(data["graph.json"]):
            return "!read as another graph than the file says"
        graph.module()
        return None
    except SartoError as error:
        return str(error) or "!no message"
    except Exception as error:
        return f"!{type(error).__name__}: {error}"


def _sources(folder: Path) -> list[dict[str, bytes]]:
    """The sound files that are damaged: graphs and weights, and `.pt2` files."""
    models: list[tuple[nn.Module, Tensor]] = [
        pico(n, dtype=torch.float32) for n in ("plain", "text", "dense")
    ]
    models.append((Recurrent().eval(), torch.zeros(2, 3, dtype=torch.int64)))
    made: list[dict[str, bytes]] = []
    for number, (model, x) in enumerate(models):
        graph = capture(model, x, prove=False)
        home = folder / f"sound{number}"
        files = write_graph(graph, home)
        read_graph(home, verify=True).module()
        made += [
            {
                "graph.json": files.graph_path.read_bytes(),
                "weights.safetensors": files.weights_path.read_bytes(),
            }
        ] * 3
        path = write_pt2(graph, home / "model.pt2")
        made.append({"model.pt2": path.read_bytes()})
    return made


def _damaged(sound: dict[str, bytes], draw: random.Random) -> tuple[str, dict[str, bytes]]:
    if "model.pt2" in sound:
        if draw.random() < 0.5:
            return "pt2 bytes", {"model.pt2": _bytes(sound["model.pt2"], draw)}
        return "pt2 structure", {"model.pt2": _members(sound["model.pt2"], draw)}
    how = draw.choice(["structure", "structure", "bytes", "weights", "head"])
    graph, weights = sound["graph.json"], sound["weights.safetensors"]
    if how == "bytes":
        graph = _bytes(graph, draw)
    elif how == "structure":
        graph = _json(graph, draw)
    elif how == "weights":
        weights = _bytes(weights, draw)
    else:
        end = 8 + int.from_bytes(weights[:8], "little")
        head = _json(weights[8:end].rstrip(), draw)
        weights = len(head).to_bytes(8, "little") + head + weights[end:]
    return how, {"graph.json": graph, "weights.safetensors": weights}


def _bytes(data: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, removed, doubled, put in or cut off."""
    for _ in range(draw.randint(1, 3)):
        at, length = draw.randrange(len(data) + 1), draw.choice([0, 1, 1, 2, 8, 200])
        act = draw.randrange(6)
        if act == 0:
            data = data[:at]
        elif act == 1:
            data = data[:at] + data[at + length :]
        elif act == 2:
            data = data[:at] + data[at : at + length] * 2 + data[at + length :]
        elif act == 3:
            data = data[:at] + draw.randbytes(length) + data[at:]
        elif act == 4:
            piece = draw.choice(
                [b'"', b"[", b"{", b"}", b"1e999", b"NaN", b"\xff", b"\0", b"9" * 400, b"PK\x03\x04"]
            )
            data = data[:at] + piece + data[at + len(piece) :]
        else:
            data = data[:at] + bytes(b ^ 1 << draw.randrange(8) for b in data[at : at + 1]) + data[at + 1 :]
    return data


def _json(data: bytes, draw: random.Random) -> bytes:
    """One to three values changed somewhere; in canonical form, so that more than the form is looked at."""
    document = json.loads(data)
    for _ in range(draw.randint(1, 3)):
        _change(document, draw)
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def _change(document: Any, draw: random.Random) -> None:
    holder = document
    while True:
        keys = sorted(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return
        key = draw.choice(keys)
        inner = holder[key]
        if not isinstance(inner, dict | list) or draw.random() < 0.15:
            break
        holder = inner
    act = draw.choice(["replace", "replace", "nudge", "remove", "add", "move"])
    if act == "nudge" and isinstance(inner, int | float):
        holder[key] = inner + draw.choice([-1, 1, 2, 1000])
    elif act == "remove":
        del holder[key]
    elif act == "add" and isinstance(holder, list):
        holder.insert(draw.randrange(len(holder) + 1), copy.deepcopy(inner))
    elif act == "add":
        holder[draw.choice(WORDS)] = copy.deepcopy(inner)
    elif act == "move":
        holder[key] = copy.deepcopy(holder[draw.choice(keys)])
    else:
        holder[key] = copy.deepcopy(draw.choice([*LEAVES, *WORDS]))


def _members(data: bytes, draw: random.Random) -> bytes:
    """A `.pt2` file with changed JSON, or with a member changed, removed, renamed, doubled or compressed."""
    home = Path(sys.argv[3] if len(sys.argv) > 3 else ".") / "rebuild.zip"
    home.write_bytes(data)
    with zipfile.ZipFile(home) as file:
        members = [(entry.filename, file.read(entry)) for entry in file.infolist()]
    place = draw.randrange(len(members))
    tables = [p for p, (name, _) in enumerate(members) if name.endswith(".json")]
    act = draw.choice(["json", "json", "json", "bytes", "remove", "rename", "compress"])
    if act == "json":
        place = draw.choice(tables)
        members[place] = (members[place][0], _json(members[place][1], draw))
    elif act == "bytes":
        members[place] = (members[place][0], _bytes(members[place][1], draw))
    elif act == "remove":
        del members[place]
    elif act == "rename":
        root = members[place][0].partition("/")[0]
        members[place] = (
            draw.choice([root + "/../x", "../x", f"{root}/extra/x", root + "/custom"]),
            members[place][1],
        )
    with zipfile.ZipFile(home, "w") as file:
        for number, (name, content) in enumerate(members):
            entry = zipfile.ZipInfo(name)
            if act == "compress" and number == place:
                entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, content)
    made = home.read_bytes()
    home.unlink()
    return made


def _listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_size) for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
