"""Measuring a design: chunk by chunk, models taking turns with a reference, resumed where it stopped."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sarto.devices.profiling.running import Opener, Running
from sarto.errors import RequestError
from sarto.graph import ModelGraph
from sarto.types.profile import MeasuredRow, Noise
from sarto.types.text import to_json_text

#: Models that are loaded at once, besides the reference.
CHUNK = 6
#: Rounds in which every model of a chunk takes a turn, and seconds of measuring for each model.
ROUNDS, SECONDS = 9, 0.6
#: Times that every model is loaded and measured, each time among others; the median counts. A model that was loaded in
#: an unlucky moment or place may stay slow until it is loaded again.
PASSES = 3
#: Runs of a turn, at least and at most, after one that does not count.
FEWEST, MOST = 3, 300
#: Models that are measured a second time, to know the noise.
REPEATS = 4
#: Shares above which noise and drift are told.
NOISY, DRIFTING = 0.03, 0.15

#: What is done, of how much: step, done, total.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Wanted:
    """A model to measure.

    Attributes:
        counts: units kept of the groups of which not all are kept.
        parts: of each subnet of a pack, the units kept.
        build: makes the graph, or its file for the device, when its turn comes.
        graph_hash: of the backbone's structure; a journal holds it, so that two networks of one name are never mixed.
    """

    what: Literal["subnet", "block", "pack"]
    model: str
    counts: Mapping[str, int]
    build: Callable[[], ModelGraph | Path]
    repeat: int = 0
    parts: tuple[Mapping[str, int], ...] = ()
    graph_hash: str | None = None

    def key(self, turn: int) -> str:
        """Equal for the same measurement, also after a restart."""
        kept = [dict(part) for part in self.parts] if self.parts else dict(self.counts)
        return to_json_text([self.what, self.model, kept, self.repeat, turn])


def measure_all(
    wanted: Sequence[Wanted],
    opener: Opener,
    reference: ModelGraph | Path,
    *,
    journal: Path | None = None,
    about: Mapping[str, Any] | None = None,
    seconds: float = SECONDS,
    rounds: int = ROUNDS,
    chunk: int = CHUNK,
    passes: int = PASSES,
    level_ms: float | None = None,
    progress: Progress | None = None,
) -> tuple[MeasuredRow, ...]:
    """Latencies of all models, in order, corrected for the drift of the machine.

    The models of a chunk are loaded together and take turns with the reference; each round gives a model's time over
    that of the reference in the same round. What counts is the median over rounds, times the median of the reference
    over all chunks.

    Args:
        reference: a model that every chunk measures.
        journal: a file that each finished chunk is appended to; a later call with the same file goes on from there.
        about: what must be the same for a journal to be gone on with: the device, the reference.
        seconds: how long each model is measured, over all passes.
        passes: how often each model is loaded and measured; the second time in the opposite order, and so on.
        level_ms: of the reference; None takes its median over these chunks.

    Raises:
        RequestError: the journal is of another device, of other networks under the same names, or no journal, or a
            number is not positive.
    """
    if not (seconds > 0 and math.isfinite(seconds)) or min(rounds, chunk, passes) < 1:
        raise RequestError(
            f"seconds, rounds, chunk and passes must be above 0, got {seconds:g}, {rounds}, {chunk} and {passes}"
        )
    notebook = _Journal(journal, dict(about or {}))
    notebook.check_networks(wanted)
    turns_of = [(item, turn) for turn in range(passes) for item in (wanted, wanted[::-1])[turn % 2]]
    left = [(item, turn) for item, turn in turns_of if item.key(turn) not in notebook.found]
    done = len(turns_of) - len(left)
    with ExitStack() as whole:
        standard = whole.enter_context(_opened(opener, reference)) if left else None
        for place in range(0, len(left), chunk):
            if progress is not None:
                progress("measuring", done + place, len(turns_of))
            part = left[place : place + chunk]
            with ExitStack() as stack:
                models = [stack.enter_context(_opened(opener, item.build())) for item, _ in part]
                times = turns(
                    [*models, *([standard] if standard else [])], seconds=seconds / passes, rounds=rounds
                )
            notebook.write(_lines(part, times, notebook.next_chunk))
    if progress is not None:
        progress("measuring", len(turns_of), len(turns_of))
    found = [[notebook.found[item.key(turn)] for turn in range(passes)] for item in wanted]
    if level_ms is None:
        by_chunk = {line["chunk"]: line["reference_ms"] for lines in found for line in lines}
        level_ms = statistics.median(by_chunk.values()) if by_chunk else 1.0
    return tuple(_row(item, lines, level_ms) for item, lines in zip(wanted, found, strict=True))


def _row(item: Wanted, lines: Sequence[Mapping[str, Any]], level_ms: float) -> MeasuredRow:
    """The row of a model from what each pass says of it."""
    middle = sorted(lines, key=lambda line: line["ratio"])[len(lines) // 2]
    return MeasuredRow(
        what=item.what,
        model=item.model,
        counts=dict(item.counts),
        parts=tuple(dict(part) for part in item.parts),
        latency_ms=statistics.median(line["ratio"] for line in lines) * level_ms,
        raw_ms=statistics.median(line["raw_ms"] for line in lines),
        reference_ms=middle["reference_ms"],
        chunk=middle["chunk"],
        repeat=item.repeat,
    )


def _lines(
    part: Sequence[tuple[Wanted, int]], times: Sequence[Sequence[float]], chunk: int
) -> list[dict[str, Any]]:
    """What a chunk says of each model; the times of the reference come last."""
    *taken, against = times
    return [
        {
            "key": item.key(turn),
            "graph_hash": item.graph_hash,
            "chunk": chunk,
            "raw_ms": statistics.median(found),
            "ratio": statistics.median(a / b for a, b in zip(found, against, strict=True)),
            "reference_ms": statistics.median(against),
        }
        for (item, turn), found in zip(part, taken, strict=True)
    ]


def turns(models: Sequence[Running], *, seconds: float, rounds: int) -> list[list[float]]:
    """Milliseconds of each model in each round, shape (models, rounds): the median run of its turn.

    A turn is some runs one after the other, as a model runs when it is used, after one run that brings it back into the
    caches. Turns of all models make a round.
    """
    runs = []
    for model in models:
        quick = min(model.times_ms(2))
        runs.append(int(min(MOST, max(FEWEST, seconds * 1e3 / rounds / max(quick, 1e-6)))))
    found: list[list[float]] = [[] for _ in models]
    for _ in range(rounds):
        for model, n, taken in zip(models, runs, found, strict=True):
            taken.append(statistics.median(model.times_ms(n)))
    return found


def with_repeats(wanted: Sequence[Wanted], n: int = REPEATS) -> tuple[Wanted, ...]:
    """The models, and some of them once more at the end, spread evenly over the list."""
    again = [wanted[place * len(wanted) // n] for place in range(min(n, len(wanted)))] if n else []
    return (*wanted, *(replace(a, repeat=a.repeat + 1) for a in again))


def noise_of(rows: Sequence[MeasuredRow]) -> Noise:
    """How steady the machine was, by models measured twice and by the reference of each chunk."""
    first = {_name(row): row.latency_ms for row in rows if row.repeat == 0}
    again = [(first[_name(row)], row.latency_ms) for row in rows if row.repeat and _name(row) in first]
    drifts, trends = [0.0], [0.0]
    # Blocks and each backbone have a reference of their own.
    for model in {_measured_with(row) for row in rows}:
        ordered = sorted((row for row in rows if _measured_with(row) == model), key=lambda row: row.chunk)
        chunks = list({row.chunk: row.reference_ms for row in ordered}.values())
        third = max(1, len(chunks) // 3)
        drifts.append((max(chunks) - min(chunks)) / statistics.median(chunks))
        if len(chunks) > 2:
            trends.append(statistics.median(chunks[-third:]) / statistics.median(chunks[:third]) - 1)
    return Noise(
        repeat_share=statistics.fmean(abs(a - b) / ((a + b) / 2) for a, b in again) if again else 0.0,
        drift_share=max(drifts),
        trend_share=max(trends, key=abs),
        n_repeats=len(again),
    )


def noise_notes(noise: Noise) -> tuple[str, ...]:
    """What the user should know of the noise; nothing where the machine was quiet."""
    notes = []
    if noise.repeat_share > NOISY:
        notes.append(
            f"the same model measured twice differs by {noise.repeat_share:.1%}: predictions can't be better. "
            "Measure on a quiet machine, with fewer threads, or with more --seconds"
        )
    if noise.drift_share > DRIFTING:
        notes.append(
            f"the reference took up to {noise.drift_share:.0%} longer in some chunks than in others, which was "
            "corrected: other programs ran, or the clock of the processor changed"
        )
    if noise.trend_share > DRIFTING / 2:
        notes.append(
            f"the reference got {noise.trend_share:.0%} slower from the first third to the last, as processors do that "
            "get hot; latencies are those of the whole time"
        )
    return tuple(notes)


def _measured_with(row: MeasuredRow) -> str:
    return "" if row.what == "block" else row.model


def _name(row: MeasuredRow) -> tuple[object, ...]:
    return row.model, *(tuple(sorted(counts.items())) for counts in (row.counts, *row.parts))


@contextmanager
def _opened(opener: Opener, graph: ModelGraph | Path) -> Iterator[Running]:
    running = opener(graph)
    try:
        yield running
    finally:
        running.close()


class _Journal:
    """Finished measurements, one JSON object a line; the first line says what was measured on."""

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        try:
            lines = [json.loads(line) for line in whole]
            heads, rest = lines[:1], lines[1:]
            known = heads[0]["about"] if heads else about
            self.found = {line["key"]: line for line in rest}
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"{str(path)!r} is no journal of measurements ({error}); remove it to measure from the start",
                where=str(path),
            ) from error
        if known != json.loads(to_json_text(about)):
            differ = sorted(key for key in {*known, *about} if known.get(key) != about.get(key))
            raise RequestError(
                f"{str(path)!r} was begun with another {', '.join(differ)}; remove it, or measure as it was begun",
                where=str(path),
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        # A last line that was cut short by a crash is measured again.
        path.write_text("".join(whole) or to_json_text({"about": about}) + "\n", encoding="utf-8")

    def check_networks(self, wanted: Sequence[Wanted]) -> None:
        """Refuse measurements of another network under the name of one that is wanted.

        Raises:
            RequestError: names all of them.
        """
        known: dict[str, set[str | None]] = {}
        for key, line in self.found.items():
            what, model = json.loads(key)[:2]
            if what != "block":
                known.setdefault(model, set()).add(line.get("graph_hash"))
        problems = [
            f"{str(self.path)!r} holds measurements of another network that was called {model!r}"
            if None not in known[model]
            else f"{str(self.path)!r} holds measurements of {model!r} by a version of sarto that did not note of which "
            "network they are"
            for model, graph_hash in {
                item.model: item.graph_hash for item in wanted if item.graph_hash
            }.items()
            if known.get(model, {graph_hash}) != {graph_hash}
        ]
        if problems:
            raise RequestError(
                f"{problems[0]}; remove it to measure from the start, or give the model another name",
                problems=problems,
                where=str(self.path),
            )

    @property
    def next_chunk(self) -> int:
        return 1 + max((line["chunk"] for line in self.found.values()), default=-1)

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        self.found |= {line["key"]: line for line in lines}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(to_json_text(line) + "\n" for line in lines)
                file.flush()
