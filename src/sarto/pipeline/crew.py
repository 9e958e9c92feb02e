"""Who slices: this process alone, or several at once that each take one donor at a time."""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal

from sarto.errors import SartoError, StoreError
from sarto.market import Store
from sarto.pipeline.builder import Builder
from sarto.pipeline.slicing import Slicer
from sarto.types import Plan, SliceNode, SourceNode

#: A second process reads a donor's samples too only where it has at least so many fragments left: reading takes about
#: as long as slicing a few.
JOIN = 4
#: Errors that end a fragment, while the others go on.
FAILURES = (SartoError, OSError, RuntimeError, ValueError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class Piece:
    """A fragment to be stocked.

    Attributes:
        key: of its plan.
        learnware: id of the donor.
        name: of the donor.
        cls: its class.
        share: of the donor's extractor; None where its widths are those of no stocked size.
        node: how it is sliced.
        samples_per_class: the first k samples of each class; None: all.
    """

    key: str
    learnware: str
    name: str
    cls: str
    share: float | None
    node: SliceNode
    samples_per_class: int | None = None

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**self.__dict__, "node": self.node.model_dump(mode="json")}

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Piece:
        """The piece that `to_plain` wrote."""
        return cls(**{**data, "node": SliceNode.parse(data["node"])})


@dataclass(frozen=True)
class Made:
    """A fragment that was sliced and stocked: parameters of its extractor, and the seconds that slicing it took."""

    piece: Piece
    params: int
    seconds: float


@dataclass(frozen=True)
class Failed:
    """A fragment that could not be made.

    Attributes:
        left: what that leaves: it is missing, the older one stays in its place, or its learnware was removed meanwhile.
    """

    piece: Piece
    reason: str
    left: Literal["missing", "older", "removed"] = "missing"


Outcome = Made | Failed
Begin = Callable[[Piece], None]
Work = Callable[[Store, Sequence[Piece], Begin], Iterator[Outcome]]


def piece_plan(learnware: str, node: SliceNode) -> Plan:
    """The plan of one fragment of a whole donor; its node "slice" has the key that orders look it up by."""
    return Plan(nodes={"donor": SourceNode(of=learnware), "slice": node.replace(of="donor")}, out="slice")


def failed(piece: Piece, error: Exception) -> Failed:
    """The fragment that an error kept from being made."""
    told = str(error) if isinstance(error, SartoError) else f"{type(error).__name__}: {error}"
    return Failed(piece, " ".join(told.split()))


@dataclass
class Bench:
    """Slices pieces one after the other; what is read of a donor serves until another one comes."""

    store: Store
    replace: bool = False
    _donor: tuple[str, int | None] | None = None
    _builder: Builder | None = None
    _slicer: Slicer | None = None

    def make(self, piece: Piece) -> Outcome:
        """The piece, sliced and stocked, or why not."""
        try:
            builder, slicer = self._at(piece)
            plan = piece_plan(piece.learnware, piece.node)
            graph, lineage = slicer.make(
                piece.node, builder.cut(plan, piece.node.replace(of="donor"), plan.subkeys())
            )
            self.store.put_fragment(piece.key, graph, lineage, replace=self.replace)
        except FAILURES as error:
            return failed(piece, error)
        return Made(piece, lineage["params"], lineage["seconds"])

    def _at(self, piece: Piece) -> tuple[Builder, Slicer]:
        donor = (piece.learnware, piece.samples_per_class)
        if self._builder is None or self._slicer is None or self._donor != donor:
            self._builder = self._slicer = None
            own = self.store.samples(piece.learnware)
            samples = own if piece.samples_per_class is None else own.take(piece.samples_per_class)
            self._builder, self._slicer = Builder(self.store, {samples.digest: samples}), Slicer(self.store)
            self._donor = donor
        return self._builder, self._slicer


def work_alone(
    store: Store, pieces: Iterable[Piece], begin: Begin, *, replace: bool = False
) -> Iterator[Outcome]:
    """Slice in this process, with its threads."""
    bench = Bench(store, replace)
    for piece in pieces:
        begin(piece)
        yield bench.make(piece)


def work_together(
    store: Store, pieces: Iterable[Piece], begin: Begin, *, processes: int, replace: bool = False
) -> Iterator[Outcome]:
    """Slice in several processes of one thread each.

    A process gets one piece at a time, of the donor that it has read as long as that has any. One that dies takes only
    the piece that it was working on along; another one takes its place. However this ends, no process stays behind.

    Raises:
        StoreError: the processes can't be started.
    """
    crew = _Crew(store, by_donor(pieces), begin, processes, replace)
    try:
        yield from crew.outcomes()
    finally:
        crew.stop()


def useful_processes(left: Mapping[str, Sequence[Piece]]) -> int:
    """How many processes have enough to do for what reading a donor costs each of them."""
    return sum(math.ceil(len(pieces) / JOIN) for pieces in left.values())


def by_donor(pieces: Iterable[Piece]) -> dict[str, deque[Piece]]:
    """Pieces in their order, by the donor that they need."""
    found: dict[str, deque[Piece]] = {}
    for piece in pieces:
        found.setdefault(piece.learnware, deque()).append(piece)
    return found


@dataclass(eq=False)
class _Hand:
    """A process that slices."""

    process: subprocess.Popen[str]
    listener: threading.Thread | None = None
    ready: bool = False
    donor: str | None = None
    piece: Piece | None = None

    def send(self, order: dict[str, Any]) -> None:
        # A process that is dead says so on the other pipe.
        try:
            _pipe(self.process.stdin).write(json.dumps(order) + "\n")
            _pipe(self.process.stdin).flush()
        except OSError:
            return


@dataclass
class _Crew:
    store: Store
    left: Mapping[str, deque[Piece]]
    begin: Begin
    processes: int
    replace: bool
    hands: list[_Hand] = field(default_factory=list)
    # (who, its line); None stands for its end.
    said: queue.SimpleQueue[tuple[_Hand, str | None]] = field(default_factory=queue.SimpleQueue)
    started_once: bool = False

    def outcomes(self) -> Iterator[Outcome]:
        self._fill()
        while self.hands:
            hand, line = self.said.get()
            if hand not in self.hands:
                continue
            if line is None:
                yield from self._buried(hand)
                self._fill()
                continue
            answer = json.loads(line)
            if hand.piece is not None:
                yield _outcome(hand.piece, answer)
                hand.piece = None
            hand.ready = self.started_once = True
            self._next(hand)

    def stop(self) -> None:
        for hand in self.hands:
            hand.process.terminate()
        for hand in self.hands:
            self._close(hand)
        self.hands.clear()

    def _fill(self) -> None:
        useful = useful_processes(self.left)
        busy = sum(1 for hand in self.hands if hand.piece is not None or not hand.ready)
        while len(self.hands) < min(self.processes, useful + busy):
            self._start()
            busy += 1
            useful -= 1

    def _start(self) -> None:
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "sarto.pipeline.hand",
                    str(self.store.path),
                    *["replace"] * self.replace,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env={**os.environ, **threads, "PYTHONPATH": paths},
                # Of a group of its own: Ctrl-C reaches it through this process only, which decides what it means.
                start_new_session=True,
            )
        except OSError as error:
            raise StoreError(f"no process can be started to slice in: {error}; give --processes 1") from error
        hand = _Hand(process)
        self.hands.append(hand)
        hand.listener = threading.Thread(target=self._listen, args=(hand,), daemon=True)
        hand.listener.start()

    def _listen(self, hand: _Hand) -> None:
        with _pipe(hand.process.stdout) as answers:
            for line in answers:
                self.said.put((hand, line))
        self.said.put((hand, None))

    def _next(self, hand: _Hand) -> None:
        piece = self._pick(hand)
        if piece is None:
            self.hands.remove(hand)
            self._close(hand)
            return
        hand.donor, hand.piece = piece.learnware, piece
        self.begin(piece)
        hand.send(piece.to_plain())

    def _pick(self, hand: _Hand) -> Piece | None:
        """More of the donor that was read; else of the one that nobody reads; else of the one with most left."""
        own = self.left.get(hand.donor or "")
        if own:
            return own.popleft()
        taken = {other.donor for other in self.hands if other is not hand}
        free = [pieces for donor, pieces in self.left.items() if pieces and donor not in taken]
        shared = [pieces for pieces in self.left.values() if len(pieces) >= JOIN]
        found = max(free or shared, key=len, default=None)
        return None if found is None else found.popleft()

    def _buried(self, hand: _Hand) -> Iterator[Outcome]:
        """What a process leaves that ended without being asked to."""
        self.hands.remove(hand)
        code = self._close(hand)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if not hand.ready and not self.started_once:
            raise StoreError(
                f"a process that slices {how} before it could begin (what it said stands above); --processes 1 slices "
                "without other processes"
            )
        if hand.piece is not None:
            yield Failed(
                hand.piece, f"the process that sliced it {how}; the other fragments are not affected"
            )

    def _close(self, hand: _Hand) -> int:
        """Let a process go; its exit code. It ends by itself when nothing more can come."""
        try:
            _pipe(hand.process.stdin).close()
        except OSError:
            hand.process.kill()
        code = hand.process.wait()
        if hand.listener is not None:
            hand.listener.join()
        return code


def _outcome(piece: Piece, answer: dict[str, Any]) -> Outcome:
    if "reason" in answer:
        return Failed(piece, answer["reason"])
    return Made(piece, answer["params"], answer["seconds"])


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise StoreError("a process that slices has no pipe to talk through")
    return pipe
