"""The paper's tasks T1 to T5: which classes each original model knows, and which orders are tried.

Reference:
    Slice-and-Pack, AAAI 2025, Experiments. The text leaves gaps; an order takes one class from each original model,
    as the paper's parameter counts say. T3h is ours: five classes of one superclass, one from each model.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

#: The published table of CIFAR-100: five fine classes a superclass.
SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non_insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
NAMES = ("T1", "T2", "T3", "T3h", "T4", "T5")


@dataclass(frozen=True)
class Task:
    """Original models and what is ordered of them.

    Attributes:
        data: folder of the images: cifar10 or cifar100.
        models: classes of each original model; an order takes one of each.
        same_superclass: whether the classes of an order share a superclass.
    """

    name: str
    data: str
    models: tuple[tuple[str, ...], ...]
    same_superclass: bool = False

    @property
    def originals(self) -> str:
        """Name under which the trained models are kept; T3h takes those of T3."""
        return "T3" if self.name == "T3h" else self.name


def task(name: str, seed: int = 0) -> Task:
    """A task with the partition of classes that a seed draws.

    Raises:
        ValueError: no such task.
    """
    generator = np.random.default_rng(seed)
    if name == "T1":
        order = [CIFAR10[i] for i in generator.permutation(10)]
        return Task(name, "cifar10", (tuple(order[:4]), tuple(order[4:7]), tuple(order[7:])))
    if name not in NAMES:
        raise ValueError(f"no task {name!r}; known: {', '.join(NAMES)}")
    supers = [SUPERCLASSES[key] for key in SUPERCLASSES]
    if name == "T2":
        order_of = generator.permutation(20)
        models = [sum((supers[i] for i in order_of[4 * m : 4 * m + 4]), ()) for m in range(5)]
    elif name in ("T3", "T3h"):
        mixed = [[fine[i] for i in generator.permutation(5)] for fine in supers]
        models = [tuple(fine[m] for fine in mixed) for m in range(5)]
    else:
        fine = sorted(sum(supers, ()))
        order = [fine[i] for i in generator.permutation(100)]
        width = 20 if name == "T4" else 10
        models = [tuple(order[i : i + width]) for i in range(0, 100, width)]
    return Task(name, "cifar100", tuple(models), name == "T3h")


def orders(of: Task, n: int, seed: int = 0) -> list[tuple[str, ...]]:
    """Different orders of one class from each model, drawn without replacement; all there are when n is larger."""
    if of.same_superclass:
        every = [
            tuple(next(name for name in classes if name in fine) for classes in of.models)
            for fine in SUPERCLASSES.values()
        ]
        picks = np.random.default_rng(seed).permutation(len(every))[:n]
        return [every[i] for i in picks]
    total = int(np.prod([len(classes) for classes in of.models]))
    if total <= 10_000:
        product = list(itertools.product(*of.models))
        return [product[i] for i in np.random.default_rng(seed).permutation(total)[:n]]
    generator, found = np.random.default_rng(seed), dict[tuple[str, ...], None]()
    while len(found) < n:
        found[tuple(classes[generator.integers(len(classes))] for classes in of.models)] = None
    return list(found)
