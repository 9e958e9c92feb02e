"""Reports made by hand, for the tests of the page."""

from __future__ import annotations

from typing import Any, Literal

from sarto.types import (
    Check,
    ClassOffer,
    ClassScore,
    Comparison,
    Confusion,
    Cost,
    Donor,
    Environment,
    HeadNode,
    Interval,
    Part,
    Plan,
    Report,
    Request,
    Requirement,
    Row,
    SourceNode,
)

SHAS = tuple(f"sha256:{digit * 64}" for digit in "abc")
CLASSES = ("ship", "dog", "horse")
DONORS = ("vgg", "resnet20", "mobilenetv2")


def cost(params: int, flops: int, latency_ms: float | None = None) -> Cost:
    low, high = (None, None) if latency_ms is None else (0.9 * latency_ms, 1.2 * latency_ms)
    return Cost(
        params=params,
        flops=flops,
        memory_bytes=300_000,
        size_bytes=4 * params,
        latency_ms=latency_ms,
        latency_low_ms=low,
        latency_high_ms=high,
        basis="measured",
    )


def row(
    name: str,
    role: Literal["pick", "donor", "ensemble", "probe", "finetune", "trivial", "control", "plan"],
    own: float | None,
    held: float | None = None,
    params: int | None = None,
    **more: Any,
) -> Row:
    def around(value: float | None, half: float) -> Interval | None:
        if value is None:
            return None
        return Interval(low=max(0.0, value - half), high=min(1.0, value + half), level=0.9, method="jeffreys")

    return Row(
        name=name,
        role=role,
        accuracy_loto=own,
        interval=around(own, 0.07),
        accuracy_heldout=held,
        heldout_interval=around(held, 0.03),
        cost=None if params is None else cost(params, 70 * params, 2.1 if role == "pick" else None),
        samples_used=60,
        **more,
    )


def a_report(classes: tuple[str, ...] = CLASSES, **changes: Any) -> Report:
    """A report of three classes from three donors, with a row of each role."""
    order = Request.parse(
        {
            "task": {"classes": list(classes)},
            "budget": {"params": 700_000, "latency_ms": 4.0},
            "heldout": "images/heldout",
            "name": "harbour and farm",
        }
    )
    plan = Plan(
        nodes={"a": SourceNode(of=SHAS[0]), "h": HeadNode(of="a", kind="restrict", classes=classes)}, out="h"
    )
    fields: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "request": order,
        "requirement": Requirement(
            request=order,
            offers=tuple(
                ClassOffer(cls=cls, learnware=SHAS[at % 3], label=at) for at, cls in enumerate(classes)
            ),
            n_samples=dict.fromkeys(classes, 20),
            samples_digest=SHAS[0],
        ),
        "plan": plan,
        "predicted": cost(681_204, 48_201_112).replace(basis="predicted"),
        "measured": cost(681_204, 48_201_112, 2.13),
        "rows": (
            row("pack, 25% of each donor's extractor", "pick", 0.917, 0.9, 681_204, note="css, ridge repair"),
            row("pack, 12% of each donor's extractor", "plan", 0.867, 0.85, 330_000),
            row("pack, 25%, classes of a donor together", "plan", 0.9, 0.88, 640_000),
            row("probe on vgg", "probe", 0.85, 0.84, 1_126_000),
            row("probe on resnet20", "probe", 0.883, 0.87, 1_083_000),
            row("probe on mobilenetv2", "probe", 0.85, 0.83, 366_115),
            row("all donors side by side", "ensemble", 0.95, 0.94, 2_575_000),
            row("random units, same widths, with repair", "control", 0.783, 0.77, 681_204),
            row("fine-tuned resnet20", "finetune", 0.9, 0.89, 1_083_000),
            row("majority class", "trivial", 1 / 3, 1 / 3),
            row("pixel ridge", "trivial", 0.55, 0.57),
            row("nearest class mean", "trivial", 0.9, 0.91),
        ),
        "comparisons": (
            Comparison(
                row="probe on resnet20",
                basis="loto",
                gap=0.034,
                interval=Interval(low=-0.04, high=0.11, level=0.9, method="bootstrap"),
                p_value=0.4,
                verdict="cannot be told apart",
                samples_needed=900,
            ),
            Comparison(
                row="random units, same widths, with repair",
                basis="loto",
                gap=0.134,
                interval=Interval(low=0.05, high=0.2, level=0.9, method="bootstrap"),
                p_value=0.004,
                verdict="better",
            ),
        ),
        "per_class": tuple(
            ClassScore(
                cls=cls,
                learnware=SHAS[at % 3],
                donor=DONORS[at % 3],
                n_samples=20,
                recall_loto=0.9,
                n_heldout=200,
                recall_heldout=0.885,
                donor_skill=0.95,
            )
            for at, cls in enumerate(classes)
        ),
        "confusion": Confusion(
            classes=classes,
            counts=tuple(
                tuple(
                    180 if at == other else (20 if other == (at + 1) % len(classes) else 0)
                    for other in range(len(classes))
                )
                for at in range(len(classes))
            ),
            basis="heldout",
        ),
        "where_params": (
            Part(name="vgg: ship", learnware=SHAS[0], classes=classes[:1], params=280_000),
            Part(name="resnet20: dog", learnware=SHAS[1], classes=classes[1:2], params=300_000),
            Part(name="mobilenetv2: horse", learnware=SHAS[2], classes=classes[2:], params=100_000),
            Part(name="head", params=1_204),
        ),
        "checks": (
            Check(name="budget: params", value=681_204, limit=700_000, ok=True, detail="measured"),
            Check(name="ONNX Runtime equals eager", value=3.1e-7, limit=1e-5, ok=True, detail="relative"),
        ),
        "lineage": tuple(
            Donor(
                learnware=sha,
                name=name,
                licence="Apache-2.0",
                origin=f"sarto.zoo:{name}",
                graph_hash=sha,
                weights_hash=sha,
                classes=("ship", "cat"),
            )
            for name, sha in zip(DONORS, SHAS, strict=True)
        ),
        "hashes": {"model.onnx": SHAS[1]},
        "environment": Environment(
            versions={"torch": "2.13.0", "python": "3.11.2"}, threads=1, machine="x86"
        ),
        "seconds": {"scores": 21.4, "verified": 6.2, "baselines": 12.0},
        "sentences": (
            "About 92% (85% to 96%, nine times of ten) on images like your 60.",
            "Against probe on resnet20: +3.4 points; your samples cannot tell them apart.",
        ),
        "not_tried": ("int8, pruning with retraining, distillation: not built by this version",),
    }
    return Report(**(fields | changes))
