"""Names of the tables' methods in words."""

from __future__ import annotations

from collections.abc import Iterator

#: Of the tables of orders, where a name is no cut with a size.
WORDS = {
    "ensemble": "all originals whole (ensemble)",
    "probe": "best single original, new head",
    "finetune": "best single original, fine-tuned",
    "camkd": "CA-MKD",
    "netgraft": "NetGraft",
    "prune_and_tune": "prune-and-tune (Torch-Pruning)",
    "ours": "**closed form**, half of every layer",
    "ours_allocated": "**closed form**, widths solved",
    "random": "random units, repaired",
    "energy": "the paper's energy criterion, our repair",
    "energy_no_repair": "the paper's energy criterion, no repair",
    "grail": "GRAIL, units by their weights, half of every layer",
    "grail_wanda": "GRAIL, units by weights and activations, half of every layer",
    "paper_rate": "the paper's method by rate",
    "paper_rate_ridge": "the paper's fragments, our head",
    "paper_threshold": "the paper's method by threshold",
}
#: Of the tables of a model's own classes.
OWN_CLASSES = {
    "donor": "the whole model",
    "ours": "**closed form**, a fragment for each class",
    "ours_together": "**closed form**, one fragment for all classes",
    "random": "random units, repaired, a fragment for each class",
    "ours_no_repair": "closed form without repair, a fragment for each class",
}
WEIGHTED = {
    "ours": "**closed form**, the wanted classes weigh a third",
    "ours_two_thirds": "closed form, they weigh two thirds",
    "agnostic": "closed form that knows no classes",
    "grail": "GRAIL's repair on our units: no classes, one pass, maps drawn to zero",
    "random": "random units, repaired",
}
#: Ways to solve widths, of `stream_widths`.
WIDTHS = {
    "counted": "**streams count for what reads them**, branches as they move them",
    "alike": "every group of channels counts alike",
    "whole": "streams are never cut",
}
#: Costs that widths save.
COST_WORDS = {"flops": "FLOPs", "params": "parameters"}
#: Heads of a model's own classes.
OWN_HEADS = {"own_head": "its own", "new_head": "fitted on the samples"}


def named(method: str, share: float | None = None) -> str:
    """A method in words.

    Args:
        share: units kept of every layer, where that is not half of them.
    """
    if method in WORDS:
        kept = "half" if share is None else f"{100 * share:.0f} %"
        return WORDS[method].replace("half", kept)
    return "".join(_worded(method))


def _worded(method: str) -> Iterator[str]:
    """Names of `methods.CUTS` in words: family, whether all layers keep the same share, size, repair."""
    families = {
        "ours_agnostic": "closed form that knows no classes",
        "ours_no_repair": "closed form, no repair",
        "ours_parallel": "closed form, all maps at once",
        "ours": "**closed form**",
        "random": "random units, repaired",
        "energy": "the paper's energy criterion, our repair",
    }
    family = next((name for name in families if method.startswith(name)), None)
    if family is None:
        yield method
        return
    no_repair = method.endswith("_no_repair")
    yield families[family].replace("our repair", "no repair") if no_repair else families[family]
    if "same_share" in method:
        yield ", the same share of every layer"
