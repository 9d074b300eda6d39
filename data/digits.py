"""scikit-learn's handwritten digits: 1,797 images of 8x8 that come with the package, so nothing is downloaded."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from data.dataset import HashingData, one_hot
from data.sources import ArrayImages

N_TEST, N_VAL = 360, 180


def load(limit: int | None = None) -> HashingData:
    """1,257 digits to train on and to search, 180 validation and 360 test queries, stratified, always the same.

    Args:
        limit: keep only this many of each part, for tests of the command lines.
    """
    digits = load_digits()
    gray = (digits.images * (255 / 16)).round().astype(np.uint8)  # [n, 8, 8], 0..16 in the package
    names = [f"digit{i:04d}" for i in range(len(gray))]
    everything = np.arange(len(gray))
    rest, test = train_test_split(everything, test_size=N_TEST, stratify=digits.target, random_state=0)
    train, val = train_test_split(rest, test_size=N_VAL, stratify=digits.target[rest], random_state=0)
    train, val, test = train[:limit], val[:limit], test[:limit]
    return HashingData(
        name="digits",
        source=ArrayImages(np.repeat(gray[..., None], 3, axis=3), names),
        labels=one_hot(digits.target, 10),
        classes=[str(c) for c in range(10)],
        train=train,
        database=train,
        val=val,
        test=test,
        k=100,
        crop=False,
        flip=False,
        decoded=True,
    )
