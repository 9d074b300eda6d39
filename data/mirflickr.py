"""MIRFLICKR-25K with its 24 concepts: images with at least one; train lies inside the database, test outside."""

from data.from_lists import Protocol

MIRFLICKR = Protocol(
    "mirflickr", n_labels=24, k=5000, source="draw 1,000 test and 4,000 training images of the labelled ones"
)
