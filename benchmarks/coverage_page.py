"""docs/coverage.md, written from the result files: which architectures work, and how long surgery takes.

python benchmarks/coverage_page.py        benchmarks/results/{coverage,surgery-speed}.json -> docs/coverage.md
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.schema import Result

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "coverage.md"
RESULTS = ROOT / "benchmarks" / "results"

_INTRODUCTION = """# Which architectures work

<!-- written by `python benchmarks/coverage_page.py` from the results in benchmarks/; edit that file instead -->

Every row is one model, small and with random weights: all of [the zoo](../src/sarto/zoo), and architectures of the
`transformers` package. Nothing in sarto knows any of them by name: each is captured by `torch.export` and read by
one rule per operator. In float64, with weights drawn so that signals keep their size,

- 25, 50 and 75 % of the units of *all* sliceable groups are kept at once, and half of each group *alone*;
- the sliced model must give what the whole model gives when the readers of dropped units read zero, to 1e-12 of the
  largest output (*difference* is the largest one found);
- slicing must move the output, or the comparison proves nothing: a group alone that moves nothing in five drawings
  is counted as *without effect*, not as equal.

*Groups* names the kinds of the sliceable groups and how many there are of each; *units* are theirs together; *cuts*
are cut points; *alone* says how many groups are exact by themselves. *Share* is the part of the parameters that some
sliceable unit carries. *Pinned by* names what keeps the other groups whole and how many groups say so. *Seconds* are
capture and proof on one thread. Outcomes: **exact**; *part refused*
(the proof pinned groups, the rest is exact); *no group* (captured, but everything is pinned); *not captured* (sarto
refuses and says why); *not exported* (`torch.export` itself can't, with a free batch size).
"""

_RIVAL = """## Torch-Pruning on the same models

Torch-Pruning {version} prunes half of everything that it finds, each model in a process of its own with {limit:g}
seconds. *Default* is the quick start of its README: `BasePruner`, `GroupMagnitudeImportance`, `pruning_ratio=0.5`,
the layers that make the outputs ignored. *Told the heads* is tried where that did not work and there are attention
layers: `num_heads` names their query, key and value layers and the attention modules' own sizes are set right
afterwards, as its examples for transformers do (whole heads instead of head dimensions where keys are shared or
rotated, as in its example for language models).

What it kept is read off tags that travel with the weights. **Works**: its model gives what the whole model gives
when the dropped inputs of every linear, convolution and recurrent layer read zero and dropped queries and keys are
zero (float64, 1e-9). **Wrong**: it runs, but is another function; mostly since it prunes through a LayerNorm, whose
statistics then are those of the units left. It does not promise more than that, and fine-tuning may mend it; sarto
refuses there, and its `trim` says that it is approximate. **Nothing**: it ran and pruned nothing. **Fails**: an
exception, in pruning or in the pruned model. **Hangs**: not done in time.
"""

_SPEED = """## How fast

The same random units of every filter, hidden and head group, cut three ways that take turns; CPU milliseconds on one
thread, medians of {n_repeats} turns. *Copy* is `clone()` of the tensors that slicing makes, in the shapes that it
leaves: the kept bytes, already gathered. *Torch-Pruning* is the cut of the same indices, once as `group.prune()` alone
and once with the making of the groups for these indices; its tracing is left out, as is our capture. It cuts in place,
so that a second cut of the same model needs a copy and a trace of its own: the last column. Both cut models have the
same parameters, and *difference* is how far their answers are apart.
"""


_GAPS = """
What keeps slicing above a plain copy: a random share of the columns of a matrix is gathered number by number, and at
10 % four fifths of the source's cache lines are read for it; units that lie in one run are copied as one. In the small
models that are left, each of ResNet-50's 268 tensors costs some microseconds whatever its size. Torch-Pruning's
`group.prune()` is itself only {low:.0f} to {high:.0f} plain copies long, so that ten times faster is mostly out of
reach.
"""

_SPEED_CELLS = (
    "kept_mib",
    "slice_ms",
    "copy_ms",
    "slice_to_copy_ratio",
    "torch_pruning_ms",
    "torch_pruning_to_slice_ratio",
    "torch_pruning_with_groups_ms",
    "torch_pruning_with_groups_to_slice_ratio",
)


def page(coverage: Result, speed: Result | None = None) -> str:
    """The page, as Markdown."""
    run = [row for row in coverage.rows if row["outcome"] != "skipped"]
    parts = [_INTRODUCTION, _summary(coverage, run), _models(run), _failures(run)]
    if any(row.get("torch_pruning") not in (None, "skipped") for row in run):
        parts.append(_rival(coverage, run))
    if speed is not None:
        parts.append(_speed(speed))
    return "\n".join(parts)


def _summary(coverage: Result, run: Sequence[Mapping[str, Any]]) -> str:
    numbers = coverage.numbers
    packages = sorted({str(row["package"]) for row in run if row["source"] != "zoo" and row.get("package")})
    text = (
        f"**{numbers['n_exact']} of the {numbers['n_exported']} architectures that `torch.export` captures are exact "
        f"({100 * numbers['exact_share']:.1f} %), {numbers['n_groups']} groups in all**"
    )
    if "relative_difference_max" in numbers:
        text += f"; the largest difference is {numbers['relative_difference_max']:.0e}"
    return f"{text}. {_place(coverage)}{''.join(f', {name}' for name in packages)}.\n"


def _models(run: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| architecture | outcome | groups | units | share | cuts | alone | difference | seconds | pinned by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in run:
        gaps = [float(value) for key, value in row.items() if key.startswith("difference_")]
        seconds = float(row.get("capture_seconds") or 0) + float(row.get("proof_seconds") or 0)
        alone = f"{row['n_alone_equal']}/{row['n_groups']}" if "n_alone_equal" in row else ""
        outcome = f"**{row['outcome']}**" if row["outcome"] == "exact" else str(row["outcome"])
        cells = [
            str(row["architecture"]),
            outcome,
            _kinds(row),
            str(row.get("n_units", "")),
            f"{100 * row['sliceable_params_share']:.0f} %" if "sliceable_params_share" in row else "",
            str(row.get("n_cuts", "")),
            alone,
            f"{max(gaps):.0e}" if gaps else "",
            f"{seconds:.1f}" if seconds else "",
            str(row.get("pinned_by", "")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _kinds(row: Mapping[str, Any]) -> str:
    """Kinds and counts of groups as the reasons for pinning are written: "heads 1, hidden units 2"."""
    counted = [part.partition(" ") for part in str(row.get("kinds") or "").split(", ") if part]
    return ", ".join(f"{kind} {number}" for number, _, kind in counted) or str(row.get("n_groups", ""))


def _failures(run: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"- {row['architecture']}, {row['outcome']}: {_cell(row['reason'])}" for row in run if row["reason"]
    ]
    lines += [
        f"- {row['architecture']}, without effect: {_cell(row['without_effect'])}"
        for row in run
        if row.get("without_effect")
    ]
    return "\n".join(["What is not exact, and why:\n", *(lines or ["- nothing"])]) + "\n"


def _rival(coverage: Result, run: Sequence[Mapping[str, Any]]) -> str:
    limit = float(coverage.parameters["torch_pruning_limit_seconds"])
    version = next(
        (str(row["torch_pruning_version"]) for row in run if row.get("torch_pruning_version")), "1.6.1"
    )
    counts = Counter(str(row["torch_pruning"]) for row in run)
    best = Counter(_best(row) for row in run)
    lines = [
        _RIVAL.format(version=version, limit=limit),
        f"Of {len(run)} models, default: {_counted(counts)}. The better of both ways: {_counted(best)}.\n",
        "| architecture | default | told the heads | what happened |",
        "|---|---|---|---|",
    ]
    for row in run:
        reason = row.get("torch_pruning_heads_reason") or row.get("torch_pruning_reason") or ""
        lines.append(
            f"| {row['architecture']} | {row['torch_pruning']} | {row.get('torch_pruning_heads', '')} "
            f"| {_cell(reason)} |"
        )
    return "\n".join(lines) + "\n"


def _best(row: Mapping[str, Any]) -> str:
    found = [str(row["torch_pruning"]), str(row.get("torch_pruning_heads", "hangs"))]
    return min(found, key=["works", "wrong", "runs", "nothing", "fails", "hangs", "skipped"].index)


def _speed(speed: Result) -> str:
    lines = [
        _SPEED.format(n_repeats=speed.parameters["n_repeats"]),
        "| model | kept | MiB | slice | copy | ratio | Torch-Pruning | ratio | with groups | ratio | difference "
        "| copy and trace |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in speed.rows:
        if "slice_ms" not in row:
            lines.append(f"| {row['model']} | {_cell(row.get('note', ''))} |")
            continue
        cells = [
            str(row["model"]),
            f"{row['percent_kept']} %",
            *(_number(row, key) for key in _SPEED_CELLS),
            "" if row.get("difference") is None else f"{row['difference']:.0e}",
            _number(row, "torch_pruning_copy_and_trace_ms"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    names = dict.fromkeys(str(row["model"]) for row in speed.rows if "slice_ms" in row)
    lines += ["", *(_files(speed, name) for name in names)]
    timed: list[Mapping[str, Any]] = [row for row in speed.rows if row.get("torch_pruning_ms")]
    if copies := [row["torch_pruning_ms"] / row["copy_ms"] for row in timed]:
        lines.append(_GAPS.format(low=min(copies), high=max(copies)))
    lines.append(f"{_place(speed)}.")
    return "\n".join(lines) + "\n"


def _number(row: Mapping[str, Any], key: str) -> str:
    return "" if row.get(key) is None else f"{row[key]:.1f}"


def _files(speed: Result, name: str) -> str:
    def number(what: str) -> str:
        found = speed.numbers.get(f"{name.replace('-', '_')}_{what}")
        return "?" if found is None else f"{found:.{1 if found < 10 else 0}f}"

    return (
        f"- {name}: capture with groups {number('capture_and_groups_first_cpu_seconds')} CPU seconds the first time "
        f"and {number('capture_and_groups_cpu_seconds')} the second, its proof {number('proof_cpu_seconds')}; graph "
        f"file to a module that runs {number('graph_file_load_ms_median')} ms, `.pt2` by `torch.export.load` "
        f"{number('pt2_torch_load_ms_median')} ms, by sarto's own reader {number('pt2_ours_load_ms_median')} ms; the "
        f"first answer after that takes {number('graph_file_first_answer_ms_median')}, "
        f"{number('pt2_torch_first_answer_ms_median')} and {number('pt2_ours_first_answer_ms_median')} ms."
    )


def _place(result: Result) -> str:
    commit = f"commit `{result.commit[:9]}`" if result.commit else "no commit"
    changed = " with changes" if result.dirty else ""
    machine = result.machine
    return (
        f"Measured at {commit}{changed}, {machine.processor}, {result.threads} of {machine.cores} threads, "
        f"torch {result.torch}"
    )


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda e: (-e[1], e[0])))


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "/").replace("<", "&lt;")


def main() -> int:
    """Write the page; 0."""
    speed = RESULTS / "surgery-speed.json"
    PAGE.write_text(
        page(Result.read(RESULTS / "coverage.json"), Result.read(speed) if speed.exists() else None),
        encoding="utf-8",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
