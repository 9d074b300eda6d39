"""NUS-WIDE, the 21 most frequent labels: one list a part, or _img.txt and _label_onehot.txt."""

from data.from_lists import Protocol

NUSWIDE = Protocol(
    "nuswide",
    n_labels=21,
    k=5000,
    source="DeepHash-pytorch (swuxyj) on GitHub publishes train and test, the images' authors the rest",
)
