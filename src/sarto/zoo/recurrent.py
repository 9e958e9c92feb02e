"""Recurrent text classifiers: RNN, GRU and LSTM, in one direction or both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CELLS: dict[str, type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]] = {
    "rnn": nn.RNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
}
POOLS = ("last", "mean")


class RecurrentClassifier(nn.Module):
    """Embedding, recurrent layers, last state or mean over time, dropout, one linear layer.

    `recurrent` builds it and checks what it is given.

    Reference:
        Elman, Finding Structure in Time, 1990 (rnn); Cho et al., EMNLP 2014 (gru); Hochreiter, Schmidhuber, Long
        Short-Term Memory, 1997 (lstm); Schuster, Paliwal, Bidirectional Recurrent Neural Networks, 1997.
    """

    def __init__(
        self,
        n_classes: int,
        cell: str,
        n_words: int,
        width: int,
        hidden: int,
        layers: int,
        bidirectional: bool,
        pool: str,
        dropout: float,
        padding: int | None,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.directions = 2 if bidirectional else 1
        self.embedding = nn.Embedding(n_words, width, padding_idx=padding)
        self.recurrent = CELLS[cell](
            width,
            hidden,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden * self.directions, n_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, n_classes) of token ids (batch, tokens), int64."""
        states, last = self.recurrent(self.embedding(tokens))
        if self.pool == "mean":
            pooled = states.mean(1)
        else:
            # A LSTM hands back its cell state too. The last rows are the last layer's, one for each direction.
            ends = last[0] if isinstance(last, tuple) else last
            pooled = torch.cat([ends[-2], ends[-1]], dim=1) if self.directions == 2 else ends[-1]
        return self.classifier(self.dropout(pooled))


def recurrent(
    n_classes: int,
    cell: str = "lstm",
    n_words: int = 10_000,
    width: int = 128,
    hidden: int = 256,
    layers: int = 1,
    bidirectional: bool = False,
    pool: str = "last",
    dropout: float = 0.0,
    padding: int | None = 0,
) -> RecurrentClassifier:
    """A recurrent text classifier.

    Args:
        cell: `rnn` (tanh), `gru` or `lstm`.
        n_words: size of the vocabulary; token ids are 0 to n_words - 1.
        width: features of a word vector.
        hidden: features of a state, in each direction.
        bidirectional: reads the text backwards too and joins both states.
        pool: `last` takes the state after the last word read, `mean` the mean over all words.
        dropout: share of features dropped in training, between layers and before the classifier.
        padding: token id whose vector is zero and stays zero in training; None for none.

    Raises:
        ValueError: unknown cell or pool, a number is not positive, the share is not in [0, 1), or padding is no
            token id.
    """
    sizes = {"n_classes": n_classes, "n_words": n_words, "width": width, "hidden": hidden, "layers": layers}
    problems = [f"{name} is {value}: give at least 1" for name, value in sizes.items() if value < 1]
    if cell not in CELLS:
        problems.append(f"cell is {cell!r}: give 'rnn', 'gru' or 'lstm'")
    if pool not in POOLS:
        problems.append(f"pool is {pool!r}: give 'last' or 'mean'")
    if not 0 <= dropout < 1:
        problems.append(f"dropout is {dropout}: give 0 <= p < 1")
    if padding is not None and not 0 <= padding < n_words:
        problems.append(f"padding is {padding}: give a token id below {n_words}, or None")
    if problems:
        raise ValueError("; ".join(problems))
    return RecurrentClassifier(
        n_classes, cell, n_words, width, hidden, layers, bidirectional, pool, dropout, padding
    )
