"""The main job on real input: open a market of trained models, place an order, look at what comes back.

    make demo        (or: python examples/demo.py --out DIR)

Three donors, each trained on other classes of CIFAR-10, are stocked with 20 images a class. The order wants one class
of each as one model, with at most 700,000 parameters (the donors have 2.6 million) and 4 ms an image. Held-out images
are read once, by the report.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import sarto
from sarto.pipeline import load_source
from sarto.types.threads import free_cores

HERE = Path(__file__).parent
console = Console()


def stock_market(path: Path) -> sarto.Market:
    """A market with the donors of examples/donors."""
    market = sarto.Market.create(path)
    for card in sorted((HERE / "donors").glob("*.json")):
        described = json.loads(card.read_text())
        with console.status(f"stocking {described['name']}: capture, proof, skill, widths"):
            source = load_source(
                described["factory"],
                arguments=described["arguments"],
                weights=card.with_suffix(".safetensors"),
                input_shape=(3, *described["preprocessing"]["size"]),
            )
            learnware = market.add(
                source.graph,
                name=described["name"],
                classes=described["classes"],
                preprocessing=described["preprocessing"],
                samples=HERE / "images" / "samples",
                licence="Apache-2.0",
                notes="trained by examples/train_donors.py on CIFAR-10",
                origin=source.origin,
            )
        console.print(
            f"stocked [bold]{learnware.name}[/]: {', '.join(learnware.classes)}; {learnware.cost.params:,} parameters"
        )
    return market


def show(artifact: sarto.Artifact) -> None:
    """The comparison that the page draws, as a table."""
    table = Table("", "own samples, one of each class left out", "held-out images", "parameters", "ms")
    for row in artifact.report.rows:
        own = "" if row.accuracy_loto is None else f"{row.accuracy_loto:.1%}"
        if row.interval is not None:
            own += f" ({row.interval.low:.0%} to {row.interval.high:.0%})"
        held = "" if row.accuracy_heldout is None else f"{row.accuracy_heldout:.1%}"
        params = "" if row.cost is None else f"{row.cost.params:,}"
        latency = "" if row.cost is None or row.cost.latency_ms is None else f"{row.cost.latency_ms:.2f}"
        style = "bold green" if row.role == "pick" else None
        table.add_row(
            f"{row.name}" + (" (delivered)" if row.role == "pick" else ""),
            own,
            held,
            params,
            latency,
            style=style,
        )
    console.print(table)
    for sentence in artifact.report.sentences:
        console.print(f"- {sentence}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "demo-out", help="where the market and the model go"
    )
    parser.add_argument("--threads", type=int, default=free_cores(), help="default: the free cores")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    with stock_market(given.out / "market") as market:
        request = sarto.Request.read(HERE / "request.yaml").replace(heldout=str(HERE / "images" / "heldout"))
        with console.status("building") as status:
            artifact = market.make(
                request,
                given.out / "model",
                progress=lambda step, done, total: status.update(f"{step} ({done}/{total})"),
            )
    show(artifact)
    model = sarto.load(artifact.folder)
    image = sarto.read_samples(HERE / "images" / "heldout").only(["dog"]).images[:1]
    said = model(image)[0]
    console.print(f"\nthe model says of a held-out dog: [bold]{said.label}[/] ({said.probability:.0%})")
    console.print(f"the page that says why to trust it: [bold]{artifact.folder / 'report.html'}[/]")


if __name__ == "__main__":
    main()
