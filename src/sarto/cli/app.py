"""One binary with subcommands; what each does is in a file of its own."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from sarto.cli import (
    adding,
    agent,
    artifact,
    device,
    device_setup,
    exporting,
    factory,
    inspecting,
    market,
    orders,
    packing,
    stocking,
    zoo,
)
from sarto.cli.failing import OneLine
from sarto.types.threads import limit_threads

app = typer.Typer(
    cls=OneLine,
    name="sarto",
    help="From the models that you have, the one that you need.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

market_app = typer.Typer(help="Make a market, and look after it.", no_args_is_help=True)
market_app.command("init")(market.init)
market_app.command("add")(adding.add)
market_app.command("ls")(market.ls)
market_app.command("show")(market.show)
market_app.command("rm")(market.rm)
market_app.command("stock")(stocking.stock)
app.add_typer(market_app, name="market")

app.command("add")(adding.add)
app.command("ls")(market.ls)
app.command("show")(market.show)
app.command("rm")(market.rm)
app.command("stock")(stocking.stock)
app.command("verify")(artifact.verify)
app.command("inspect")(inspecting.inspect)
app.command("plan")(orders.plan)
app.command("make")(orders.make)
app.command("build")(orders.build)
app.command("rebuild")(orders.rebuild)
app.command("export")(exporting.export)
app.command("agent")(agent.agent)

pack_app = typer.Typer(help="One class more or less in a packed model.", no_args_is_help=True)
pack_app.command("add")(packing.add)
pack_app.command("remove")(packing.remove)
app.add_typer(pack_app, name="pack")

device_app = typer.Typer(
    help="Runtimes of this machine, measured profiles, and where milliseconds go.", no_args_is_help=True
)
device_app.command("setup")(device_setup.setup)
device_app.command("measure")(device.measure)
device_app.command("ls")(device.ls)
device_app.command("show")(device.show)
device_app.command("explain")(device.explain)
app.add_typer(device_app, name="device")

factory_app = typer.Typer(
    help="Supernets: trained once for a task space, then a small model for every task and budget.",
    no_args_is_help=True,
)
factory_app.command("train")(factory.train)
factory_app.command("ls")(factory.ls)
factory_app.command("show")(factory.show)
factory_app.command("curve")(factory.curve)
factory_app.command("delta")(factory.delta)
factory_app.command("rm")(factory.rm)
factory_app.command("spaces")(factory.spaces)
app.add_typer(factory_app, name="factory")

zoo_app = typer.Typer(
    help="Indexed zoos: which parts of the market's models are interchangeable.", no_args_is_help=True
)
zoo_app.command("index")(zoo.index)
zoo_app.command("ls")(zoo.ls)
zoo_app.command("map")(zoo.show_map)
zoo_app.command("front")(zoo.front)
zoo_app.command("rm")(zoo.rm)
app.add_typer(zoo_app, name="zoo")


def _version(asked: bool) -> None:
    if asked:
        from sarto import __version__

        typer.echo(f"sarto {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Threads to compute with; else OMP_NUM_THREADS, else the free cores."
        ),
    ] = None,
) -> None:
    """From the models that you have, the one that you need."""
    # Before torch is imported, which reads them once.
    limit_threads(threads, os.environ)


def main() -> None:
    """Entry point of the console script."""
    app()
