"""Every number of the closed-form method, with its source or our reading."""

from __future__ import annotations

#: Shares of a donor's extractor for which widths are allocated at stocking; an order takes the largest that fits.
SHARES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.32, 0.25, 0.2, 0.16, 0.125, 0.1, 0.0625)
#: Where an order builds its largest pack, it also builds the largest of at most this share of its parameters.
HALF = 0.55
#: Ridge strength of the repair maps: between 1e-3 and 1e-1 results hardly differ; weaker ones fit noise.
LAM = 1e-2
#: Ridge strength of GRAIL, arXiv 2602.23795, as a share of the mean diagonal of the moment.
GRAIL_LAM = 1e-3
#: Weight of the fragment's own classes; the donor's other classes share the rest. 1.0 loses what separates them.
WPOS = 0.33
#: The paper halves every layer; as a share of parameters that is beta squared.
PAPER_BETA = 0.5
#: Positions of a feature map that enter the statistics of one sample; neighbours say nearly the same.
POSITIONS = 128
#: Samples that run at once through a donor: what bounds memory.
CHUNK = 64
#: No group keeps a smaller share of its units than this when widths are solved, unless the size can't be reached
#: otherwise (decision 5).
LEAST = 0.05
#: A step of that search drops this share of a group.
STEP = 1 / 32
#: Samples as many as which the donor's own statistics weigh when normalisations are recalibrated.
N0 = 20
#: Samples of other classes that run through the sliced layers in a sequential repair (decision 10).
RIVALS = 60
#: How deep a trunk that fragments of one donor share may go, as shares of its sliced channel groups from the front.
TRUNKS = (0.34, 0.67, 0.84)
#: Polishing: steps of Adam, their rate (above 3e-4 the closed form is lost), samples a step, and samples of each class
#: that are left out one at a time.
POLISH_STEPS = 40
POLISH_RATE = 1e-4
POLISH_BATCH = 32
POLISH_FOLDS = 2
#: Classes for which another donor than the best is tried alone, where several offer them.
ALTERNATIVES = 3
#: Donors that are pruned for classes that nobody knows: each of them is sliced and repaired anew.
PRUNED = 12
