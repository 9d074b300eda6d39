"""MS-COCO, 80 labels: HashNet's lists, or DeepHash-pytorch's with the database that ``data.fetch_lists`` derives.

HashNet's own database list holds all of its 5,000 test images (drop them: --drop-leaks).
"""

from data.from_lists import Protocol

COCO = Protocol(
    "coco",
    n_labels=80,
    k=5000,
    prefix="./data/coco/",
    source="HashNet (thuml) or DeepHash-pytorch (swuxyj) on GitHub publish them",
)
