"""Convolutional text classifier: parallel filters over word vectors, the maximum of each over time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextCNN(nn.Module):
    """Embedding, parallel 1-d convolutions with ReLU, max over time, dropout, one linear layer.

    `text_cnn` builds it and checks what it is given.

    Reference:
        Kim, Convolutional Neural Networks for Sentence Classification, EMNLP 2014, section 2.
        Differs: one channel of word vectors, drawn at random (the paper's CNN-rand); no bound on the weights' norm.
    """

    def __init__(
        self,
        n_classes: int,
        n_words: int,
        width: int,
        filters: int,
        spans: Sequence[int],
        dropout: float,
        padding: int | None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_words, width, padding_idx=padding)
        self.convs = nn.ModuleList([nn.Conv1d(width, filters, span) for span in spans])
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(filters * len(spans), n_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, n_classes) of token ids (batch, tokens), int64; at least as many tokens as a filter spans."""
        words = self.embedding(tokens).transpose(1, 2)
        peaks = [F.relu(conv(words)).amax(2) for conv in self.convs]
        return self.classifier(self.dropout(torch.cat(peaks, dim=1)))


def text_cnn(
    n_classes: int,
    n_words: int = 10_000,
    width: int = 300,
    filters: int = 100,
    spans: Sequence[int] = (3, 4, 5),
    dropout: float = 0.5,
    padding: int | None = 0,
) -> TextCNN:
    """Kim's text classifier; filters over 3, 4 and 5 words, 100 of each, are the paper's.

    Args:
        n_words: size of the vocabulary; token ids are 0 to n_words - 1.
        width: features of a word vector.
        filters: filters of each span.
        spans: how many words a filter covers.
        dropout: share of pooled features dropped in training.
        padding: token id whose vector is zero and stays zero in training; None for none.

    Raises:
        ValueError: a number is not positive, no span, the share is not in [0, 1), or padding is no token id.
    """
    sizes = {"n_classes": n_classes, "n_words": n_words, "width": width, "filters": filters}
    problems = [f"{name} is {value}: give at least 1" for name, value in sizes.items() if value < 1]
    if not spans or min(spans) < 1:
        problems.append(f"spans is {list(spans)}: give at least one positive number of words")
    if not 0 <= dropout < 1:
        problems.append(f"dropout is {dropout}: give 0 <= p < 1")
    if padding is not None and not 0 <= padding < n_words:
        problems.append(f"padding is {padding}: give a token id below {n_words}, or None")
    if problems:
        raise ValueError("; ".join(problems))
    return TextCNN(n_classes, n_words, width, filters, spans, dropout, padding)
