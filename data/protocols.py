"""What the field fixes for each data set that is lists of image files."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """What the field fixes for a data set.

    Attributes:
        n_labels: width of its label rows; None: whatever the lists have.
        k: cut-off of mAP@k.
        counts: images of each part in the published lists, to tell a wrong or cut list; None: any.
        prefix: what published lists put before each path.
        source: where the lists come from.
        own: images of one's own, turned as their EXIF orientation says; published ones are taken as they are stored.
    """

    name: str
    n_labels: int | None = None
    k: int = 5000
    counts: dict[str, int] | None = None
    prefix: str = ""
    source: str = ""
    own: bool = False


PROTOCOLS = {
    p.name: p
    for p in (
        # MS-COCO, 80 labels: HashNet's lists, whose database holds its 5,000 test images (drop them: --drop-leaks), or
        # DeepHash-pytorch's with the database that scripts.fetch_lists derives.
        Protocol(
            "coco",
            n_labels=80,
            prefix="./data/coco/",
            source="HashNet (thuml) or DeepHash-pytorch (swuxyj) on GitHub publish them",
        ),
        # 100 classes, HashNet's lists; train lies inside the database, test outside.
        Protocol(
            "imagenet100",
            n_labels=100,
            k=1000,
            prefix="./data/imagenet/",
            counts={"train": 13_000, "test": 5_000, "database": 128_503},
            source="HashNet (thuml) on GitHub publishes them",
        ),
        # The 21 most frequent labels: one list a part, or _img.txt and _label_onehot.txt.
        Protocol(
            "nuswide",
            n_labels=21,
            source="DeepHash-pytorch (swuxyj) on GitHub publishes train and test, the images' authors the rest",
        ),
        # MIRFLICKR-25K with its 24 concepts: images with at least one; train lies inside the database, test outside.
        Protocol("mirflickr", n_labels=24, source="draw 1,000 test and 4,000 training images of the labelled ones"),
        Protocol("lists", own=True),
    )
}
