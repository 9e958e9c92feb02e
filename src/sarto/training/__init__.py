"""Few-sample fitting in closed form: which units to keep, how to repair, heads, and honest accuracy.

Pure functions over torch tensors; float64 inside, cast back. Nothing here knows graphs, markets or plans.
"""

from sarto.training.arithmetic import has_bfloat16
from sarto.training.blocks import PackState
from sarto.training.calibration import expected_calibration_error, fit_temperature
from sarto.training.evaluate import accuracy, balanced_accuracy, confusion, per_class_recall
from sarto.training.finetune import FineTuned, Progress, finetune
from sarto.training.fit import FittedHead, fit_head, not_counted
from sarto.training.folds import Folds, one_of_each
from sarto.training.freeing import give_back_memory
from sarto.training.heads import LOGISTIC_LAM, RIDGE_LAM, Head, logistic_head, nearest_mean_head, ridge_head
from sarto.training.hscore import h_score
from sarto.training.intervals import (
    Comparison,
    Interval,
    compare,
    jeffreys,
    mcnemar_mid_p,
    samples_to_tell,
    wilson,
)
from sarto.training.loop import LoopResult, LoopSettings, average_gradients, draws, rate_at, train_loop
from sarto.training.loto import LAM_GRID, LamChoice, choose_lam, logistic_loto, ridge_loto
from sarto.training.moments import (
    class_cross_moments,
    class_grams,
    class_weights,
    cross_moment,
    one_against_rest,
    position_stride,
    second_moment,
)
from sarto.training.novelty import FALSE_REJECT, Novelty, fit_novelty
from sarto.training.ridge import reconstruction_map, selection_matrix
from sarto.training.score import LotoScore
from sarto.training.selection import (
    ColumnSubset,
    above_threshold,
    column_subset,
    energy,
    random_units,
    top,
    top_rate,
)
from sarto.training.trivial import (
    chance,
    majority,
    nearest_mean_loto,
    pixel_features,
    pixel_ridge_loto,
    word_features,
)
from sarto.training.weights import draw_weights

__all__ = [
    "FALSE_REJECT",
    "LAM_GRID",
    "LOGISTIC_LAM",
    "RIDGE_LAM",
    "ColumnSubset",
    "Comparison",
    "FineTuned",
    "FittedHead",
    "Folds",
    "Head",
    "Interval",
    "LamChoice",
    "LoopResult",
    "LoopSettings",
    "LotoScore",
    "Novelty",
    "PackState",
    "Progress",
    "above_threshold",
    "accuracy",
    "average_gradients",
    "balanced_accuracy",
    "chance",
    "choose_lam",
    "class_cross_moments",
    "class_grams",
    "class_weights",
    "column_subset",
    "compare",
    "confusion",
    "cross_moment",
    "draw_weights",
    "draws",
    "energy",
    "expected_calibration_error",
    "finetune",
    "fit_head",
    "fit_novelty",
    "fit_temperature",
    "give_back_memory",
    "h_score",
    "has_bfloat16",
    "jeffreys",
    "logistic_head",
    "logistic_loto",
    "majority",
    "mcnemar_mid_p",
    "nearest_mean_head",
    "nearest_mean_loto",
    "not_counted",
    "one_against_rest",
    "one_of_each",
    "per_class_recall",
    "pixel_features",
    "pixel_ridge_loto",
    "position_stride",
    "random_units",
    "rate_at",
    "reconstruction_map",
    "ridge_head",
    "ridge_loto",
    "samples_to_tell",
    "second_moment",
    "selection_matrix",
    "top",
    "top_rate",
    "train_loop",
    "wilson",
    "word_features",
]
