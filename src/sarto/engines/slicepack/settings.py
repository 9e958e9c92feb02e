"""Every number of the closed-form method, with its source or our reading."""

from __future__ import annotations

#: Shares of a donor's extractor for which widths are allocated at stocking; an order takes the largest that fits.
SHARES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.32, 0.25, 0.2, 0.16, 0.125, 0.1)
#: Ridge strength of the repair maps: between 1e-3 and 1e-1 results hardly differ; weaker ones fit noise.
LAM = 1e-2
#: Weight of the fragment's own classes; the donor's other classes share the rest. 1.0 loses what separates them.
WPOS = 0.33
#: The paper halves every layer; as a share of parameters that is beta squared.
PAPER_BETA = 0.5
