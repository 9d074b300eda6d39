"""ImageNet100: 100 classes, HashNet's lists; train lies inside the database, test outside."""

from data.from_lists import Protocol

IMAGENET100 = Protocol(
    "imagenet100",
    n_labels=100,
    k=1000,
    prefix="./data/imagenet/",
    counts={"train": 13_000, "test": 5_000, "database": 128_503},
    source="HashNet (thuml) on GitHub publishes them",
)
