"""The order's samples of a finished model, where they still are in their place."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sarto.errors import SartoError
from sarto.market import has_no_labels, read_samples, read_unlabelled
from sarto.pipeline.artifact import Artifact


def own_samples(artifact: Artifact) -> Tensor | None:
    """The order's own samples as the model reads them; None where they are not in their place, or others.

    Of images without labels, whose labels the donors decided, it is not asked whether they are the same.
    """
    request, requirement = artifact.request, artifact.requirement
    if request.samples is None or requirement is None or requirement.samples_digest is None:
        return None
    place = Path(request.samples)
    try:
        if has_no_labels(place):
            return artifact.intake.tensor(read_unlabelled(place))
        found = own = read_samples(place)
        if set(artifact.classes) <= set(found.classes):
            own = found.only(list(artifact.classes))
        if request.samples_per_class is not None:
            own = own.take(request.samples_per_class)
        same = next((one for one in (own, found) if one.digest == requirement.samples_digest), None)
        return None if same is None else artifact.intake.tensor(same)
    except SartoError:
        return None
