"""CIFAR-10 with the split of the method's released code: the field's 500-a-class unsupervised protocol."""

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10

from data.dataset import HashingData, one_hot
from data.sources import ArrayImages
from utils.errors import UserError
from utils.files import file_lock

TRAIN_A_CLASS = 500


def released_split(train_classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(train, val, test): positions in the 50,000 training images, then twice in the 10,000 test images.

    One RandomState(0) draws 500 of each class in turn and then halves the test images, in the released code's
    order; tests/golden/cifar10_release_split.npz is what that code draws.
    """
    draw = np.random.RandomState(0)
    train = [draw.permutation(np.flatnonzero(train_classes == c))[:TRAIN_A_CLASS] for c in range(10)]
    queries = draw.permutation(10_000)
    return np.concatenate(train), queries[:5_000], queries[5_000:]


def _open(root: Path, train: bool) -> CIFAR10:
    """torchvision's reader: it checks every file's MD5 before it unpickles one."""
    try:
        return CIFAR10(root, train=train, download=False)
    except RuntimeError:
        pass
    try:
        with file_lock(root / ".download.lock"):  # of several processes one downloads, the others find it there
            print(f"CIFAR-10 is not in {root} (or its MD5 differs): downloading it")
            return CIFAR10(root, train=train, download=True)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; RuntimeError: MD5 of what came differs
        raise UserError(
            f"CIFAR-10 is not in {root} and could not be downloaded ({error}); put cifar-10-python.tar.gz from "
            f"https://www.cs.toronto.edu/~kriz/cifar.html there, or name a folder that holds "
            f"cifar-10-batches-py with --data-dir"
        ) from None


def load(data_dir: Path) -> HashingData:
    """50,000 training images to search, 5,000 of them to train on, 5,000 validation and 5,000 test queries.

    Raises:
        UserError: no intact copy in ``data_dir`` and none could be downloaded.
    """
    root = data_dir.parent if data_dir.name == CIFAR10.base_folder else data_dir
    train_set, test_set = _open(root, train=True), _open(root, train=False)
    classes = np.array(train_set.targets + test_set.targets)
    train, val, test = released_split(classes[:50_000])
    return HashingData(
        name="cifar10",
        source=ArrayImages(
            np.concatenate([train_set.data, test_set.data]),
            [f"train{i:05d}" for i in range(50_000)] + [f"test{i:05d}" for i in range(10_000)],
        ),
        labels=one_hot(classes, 10),
        classes=train_set.classes,
        train=train,
        database=np.arange(50_000),
        val=50_000 + val,
        test=50_000 + test,
        k=1000,
        crop=False,
        decoded=True,
    )
