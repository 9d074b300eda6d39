"""Splits, image files of every kind, transforms and views."""

import copy
import os
import threading
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torchvision.transforms.v2 import functional as F

from data import cifar10, digits, folder, photos, shards, transforms
from data.sources import FileImages, decode
from data.views import Bank, BankedViews, FreshViews, Share, eval_batches, view_batches
from scripts.make_copies import EDITS
from scripts.make_shards import write_shards
from utils.errors import UserError
from utils.seeds import generator


def test_cifar10_split_is_the_released_one(golden):
    g = golden("cifar10_release_split")
    # The split depends on the classes of the 50,000 training images alone.
    train, val, test = cifar10.released_split(golden("cifar10_classes")["train"].numpy())
    assert (train == g["train"].numpy()).all()
    assert (val == g["val"].numpy()).all() and (test == g["test"].numpy()).all()


def test_digits_split():
    data = digits.load()
    assert [len(p) for p in (data.train, data.database, data.val, data.test)] == [1257, 1257, 180, 360]
    assert len(set(data.database) | set(data.val) | set(data.test)) == 1797
    per_class = data.labels[data.test].sum(axis=0)
    assert per_class.max() - per_class.min() <= 2 and not data.flip
    assert (digits.load().test == data.test).all()


# Image files


@pytest.mark.parametrize(
    "mode, suffix",
    [("RGB", "jpg"), ("RGB", "webp"), ("L", "png"), ("RGBA", "png"), ("LA", "png"), ("I;16", "png"), ("L", "jpg")],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, photo, mode, suffix):
    image = decode(photo(tmp_path / f"x.{suffix}", mode))
    assert image.shape == (3, 30, 40) and image.dtype == torch.uint8


def test_a_one_pixel_image_works(tmp_path, photo):
    image = decode(photo(tmp_path / "x.png", size=(1, 1)))
    assert transforms.eval_transform(image, 32, crop=True).shape == (3, 32, 32)
    params = transforms.sample_views(1, True, generator("t"))
    assert transforms.crop_view(image, params, 32).shape == (3, 32, 32)


def test_sixteen_bits_keep_their_range(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png")[0].tolist() == [[0, 128, 255]]


def test_transparent_pixels_become_white(tmp_path):
    Image.fromarray(np.zeros((2, 2, 4), dtype=np.uint8)).save(tmp_path / "x.png")
    assert (decode(tmp_path / "x.png") == 255).all()


def make_folder(root, photo, database=6, query=4, classes=("cat", "dog")):
    for c, name in enumerate(classes):
        for part, count in (("database", database), ("query", query)):
            for i in range(count):
                photo(root / part / name / f"{i}.jpg", seed=100 * c + i + (50 if part == "query" else 0))
    return root


def test_copies_ask_for_their_originals(tmp_path, photo, cli):
    for i in range(8):
        photo(tmp_path / "photos" / f"{i}.jpg", seed=i)
    words = ["--photos", tmp_path / "photos", "--database", 6, "--queries", 2]
    assert cli("scripts.make_copies", *words, "--out", tmp_path / "a")[0] == 0
    assert cli("scripts.make_copies", *words, "--out", tmp_path / "b")[0] == 0
    data, again = folder.load(tmp_path / "a"), folder.load(tmp_path / "b")
    assert len(data.database) == 6 and len(data.test) + len(data.val) == 2 * len(EDITS)
    assert (data.labels.sum(axis=0)[:2] == 1 + len(EDITS)).all() and (data.labels.sum(axis=1) == 1).all()
    assert data.fingerprint == again.fingerprint
    seen = {data.source[i].numpy().tobytes() for i in [*data.database, *data.test, *data.val]}
    assert len(seen) == 6 + 2 * len(EDITS)  # each edit changes something
    for more, said in (
        (["--database", 9], "8 pictures"),
        (["--queries", 7], "at most the 6"),
        ([], "is there already"),
    ):
        code, _ = cli("scripts.make_copies", *words, "--out", tmp_path / ("c" if more else "a"), *more)
        assert said in code


@pytest.mark.parametrize("given", ["mine", "./mine/", "../here/mine", "link", None])
def test_a_folder_may_be_named_from_here(tmp_path, photo, monkeypatch, given):
    (tmp_path / "here").mkdir()
    make_folder(tmp_path / "here/mine", photo)
    os.symlink("mine", tmp_path / "here/link")
    monkeypatch.chdir(tmp_path / "here")
    data = folder.load(given or tmp_path / "here/mine")
    assert data.source.names[0] == "database/cat/0.jpg" and len(data.source[0]) == 3
    assert photos.pictures_below(Path(given or tmp_path / "here/mine"))[0] == data.source.names


def test_folder_with_its_own_split(tmp_path, photo):
    data = folder.load(make_folder(tmp_path, photo))
    assert data.classes == ["cat", "dog"] and len(data.database) == 12 and len(data.val) == len(data.test) == 4
    assert all(data.source.names[i].startswith("query/") for i in [*data.val, *data.test])
    for i, name in enumerate(data.source.names):
        assert data.labels[i].tolist() == ([1, 0] if "/cat/" in name else [0, 1])


def test_folder_split_by_a_seed(tmp_path, photo):
    for c, name in enumerate(("a", "b")):
        for i in range(10):
            photo(tmp_path / name / f"{i}.png", seed=10 * c + i)
    photo(tmp_path / "single" / "0.png", seed=20)
    data = folder.load(tmp_path)
    parts = [set(data.database), set(data.val), set(data.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 21
    assert data.source.names.index("single/0.png") in parts[0] and "single" in data.notes[0]
    again, other = folder.load(tmp_path), folder.load(tmp_path, seed=1)
    assert (again.test == data.test).all() and again.fingerprint == data.fingerprint != other.fingerprint


def test_broken_images_are_named_or_left_out(tmp_path, photo):
    make_folder(tmp_path, photo)
    (tmp_path / "database/cat/empty.jpg").write_bytes(b"")
    (tmp_path / "database/cat/text.png").write_text("no image")
    whole = photo(tmp_path / "database/dog/cut.jpg").read_bytes()
    (tmp_path / "database/dog/cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"3 of 23 images are broken.*empty\.jpg.*--skip-broken"):
        folder.load(tmp_path)
    data = folder.load(tmp_path, skip_broken=True)
    assert len(data.source) == 20 and "left out 3 broken images" in data.notes[0]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda root, photo: root / "nowhere", "no such folder"),
        (lambda root, photo: root, "no images in it"),
        (lambda root, photo: photo(root / "a" / "0.png") and root, "no image to ask|at least 2"),
    ],
)
def test_folders_that_cannot_work(tmp_path, photo, make, words):
    with pytest.raises(UserError, match=words):
        folder.load(make(tmp_path, photo))


def test_a_changed_file_changes_the_fingerprint(tmp_path, photo):
    photo(tmp_path / "x.png")
    before = FileImages(tmp_path, ["x.png"]).fingerprint
    photo(tmp_path / "x.png", size=(41, 30))
    assert FileImages(tmp_path, ["x.png"]).fingerprint != before


# Transforms


def smooth_images(n: int, side: int) -> torch.Tensor:
    """Random images with the smoothness of photographs."""
    coarse = torch.rand(n, 3, 5, 5, generator=generator("smooth"))
    return (F.resize(coarse, [side, side], antialias=True) * 255).to(torch.uint8)


def torchvision_view(image: torch.Tensor, p: transforms.ViewParams, size: int) -> torch.Tensor:
    """One view by torchvision's functions, in the usual order, one image at a time; float, so nothing is rounded."""
    x = transforms.crop_view(image, p, size).float() / 255
    change = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    for kind in p.order[0].tolist() if p.jitter[0] else []:
        x = change[kind](x, p.factors[0, kind].item())
    x = F.rgb_to_grayscale(x, num_output_channels=3) if p.gray[0] else x
    return F.gaussian_blur(x, [3, 3], [p.sigma[0].item()] * 2) * 255 if p.sigma[0] > 0 else x * 255


def test_batched_views_of_crops_are_torchvisions():
    images, p = smooth_images(24, 96), transforms.sample_views(24, True, generator("p"))
    crops = torch.stack([transforms.crop_view(images[i], p[i : i + 1], 64) for i in range(24)])
    known = torch.stack([torchvision_view(images[i], p[i : i + 1], 64) for i in range(24)])
    assert (transforms.views_of_crops(crops, p).float() - known).abs().max() <= 1.0


def test_colours_before_enlarging_are_nearly_torchvisions():
    images, p = smooth_images(48, 32), transforms.sample_views(48, True, generator("p"))
    known = torch.stack([torchvision_view(images[i], p[i : i + 1], 112) for i in range(48)])
    difference = (transforms.views_of_stack(images, p, 112).float() - known).abs()
    assert difference.mean() < 0.75 and (difference > 8).float().mean() < 1e-3  # of 255 grey levels


@pytest.mark.parametrize("source, size", [(32, 112), (200, 64), (50, 50)])
def test_resize_weights_are_torchvisions_antialiased_resize(source, size):
    image = smooth_images(1, source).float()
    start, length = torch.tensor([source // 5]), torch.tensor([source // 2])
    w = transforms.resize_weights(start, length, source, size)
    cut = image[..., start.item() : start.item() + length.item(), start.item() : start.item() + length.item()]
    known = F.resize(cut, [size, size], antialias=True)
    assert (w @ image @ w.transpose(1, 2) - known).abs().max() < 0.05


def test_view_parameters_have_the_recipes_distribution():
    p = transforms.sample_views(20_000, True, generator("p"))
    for drawn, share in ((p.flip, 0.5), (p.jitter, 0.7), (p.gray, 0.2), (p.sigma > 0, 0.5)):
        assert abs(drawn.float().mean().item() - share) < 0.015
    assert p.area.min() >= 0.5 and p.area.max() <= 1 and p.aspect.min() >= 0.75 and p.aspect.max() <= 4 / 3 + 1e-6
    assert (p.factors[:, :3] - 1).abs().max() <= 0.4 and p.factors[:, 3].abs().max() <= 0.1
    assert not transforms.sample_views(1000, False, generator("p")).flip.any()


@pytest.mark.parametrize("height, width", [(32, 32), (100, 30), (7, 300), (1, 1)])
def test_crops_lie_inside(height, width):
    boxes = transforms.crop_boxes(transforms.sample_views(500, True, generator("p")), height, width)
    top, left, h, w = boxes.unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    if (height, width) == (32, 32):
        assert top.max() > 3 and left.max() > 3 and ((h * w) >= 0.45 * 32 * 32).all()


def test_evaluation_crops_the_centre_or_squashes():
    wide = torch.zeros(3, 100, 300, dtype=torch.uint8)
    wide[:, :, 100:200] = 255
    assert transforms.eval_transform(wide, 56, crop=True).float().mean() > 250
    assert 80 < transforms.eval_transform(wide, 56, crop=False).float().mean() < 90


# Views


def test_a_larger_bank_begins_with_the_smaller_and_any_start_gives_the_same_rows(device):
    data = digits.load(limit=20)
    two, three = (torch.cat(list(view_batches(data, Bank(n, 0), 32, 7, device))) for n in (2, 3))
    assert (three[:40] == two).all() and not (three[40:] == two[:20]).all()
    late = torch.cat(list(view_batches(data, Bank(3, 0), 32, 7, device, Share(start=27))))
    assert (late.float() - three[27:].float()).abs().max() <= 1  # other batches may round differently
    for size in (32, 6):  # colours before enlarging, and cropped first
        here, there = (
            torch.cat(list(view_batches(data, Bank(2, 0), size, 7, d))).float() for d in (device, torch.device("cpu"))
        )
        difference = (here.cpu() - there).abs()
        assert here.device.type == device.type and difference.max() <= 2 and difference.mean() < 0.01  # grey levels


def test_evaluation_batches_keep_the_order(tmp_path, photo):
    data = folder.load(make_folder(tmp_path, photo))
    rows = data.database[::-1]
    batches = torch.cat(list(eval_batches(data, rows, 16, batch_size=5)))
    assert (batches[3] == transforms.eval_transform(data.source[rows[3]], 16, data.crop)).all()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("kind", ["arrays", "files", "shards"])
def test_pixels_are_the_same_for_any_number_of_processes(tmp_path, photo, kind, device):
    """Also where another process is started anew and is sent the images (macOS, Windows)."""
    data = digits.load(limit=20) if kind == "arrays" else folder.load(make_folder(tmp_path, photo))
    if kind == "shards":
        write_shards(data, tmp_path / "shards", 7)
        data = shards.load(tmp_path / "shards")
    data.source[0]  # opens what is opened once
    ForkingPickler.dumps(data)
    sent = copy.deepcopy(data)  # by the same state
    assert "_handles" not in vars(sent.source) or not sent.source._handles

    def everything(images, workers):
        part = Share(workers=workers)
        yield from eval_batches(images, images.database, 16, 3, part)
        yield from view_batches(images, Bank(2, 0), 16, 3, device, part)
        means = lambda pixels: pixels.float().mean(dim=(2, 3))  # noqa: E731
        for batch in FreshViews(images, [(means, 16), (means, 12)], 0, device, workers).epoch(1, 3):
            yield from batch.pairs

    alone, several, elsewhere = (list(everything(*of)) for of in ((data, 1), (data, 3), (sent, 2)))
    assert len(alone) > 9
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(alone, several, elsewhere, strict=True))


def test_banked_pairs_are_two_different_views_of_every_image_once():
    n_views, n = 4, 50
    bank = np.stack(np.meshgrid(np.arange(n_views), np.arange(n), indexing="ij"), axis=-1)  # [N, n, (view, image)]
    views = BankedViews([bank, bank], seed=0)
    seen, epochs = [], []
    for batch in views.epoch(1, 8):
        first, second = batch.pairs
        assert (first == second).all() and (first[0, :, 0] != first[1, :, 0]).all()
        assert (first[..., 1] == batch.index.float()).all() and batch.rotated == []
        seen += batch.index.tolist()
        epochs.append(first)
    assert sorted(seen) == list(range(n))
    again = [batch.pairs[0] for batch in views.epoch(1, 8)]
    other = [batch.pairs[0] for batch in views.epoch(2, 8)]
    assert all((a == b).all() for a, b in zip(epochs, again, strict=True))
    assert not all((a == b).all() for a, b in zip(epochs, other, strict=True))


def test_turned_views_are_one_view_at_four_angles():
    n = 20
    bank = np.stack(np.meshgrid(np.arange(3), np.arange(n), indexing="ij"), axis=-1)  # [R, n, (view, image)]
    four = [bank[:2] + 100 * quarter for quarter in range(4)]
    for batch in BankedViews([bank], seed=0, rotated=[four]).epoch(1, 6):
        (rotated,) = batch.rotated  # [4, B, 2]
        assert (rotated - rotated[0] == 100 * torch.arange(4)[:, None, None]).all()
        assert (rotated[0, :, 1] == batch.index).all() and rotated[0, :, 0].max() <= 1


def test_fresh_views_are_new_each_epoch_and_the_same_when_asked_again(device):
    data = digits.load(limit=12)
    means = lambda pixels: pixels.float().mean(dim=(2, 3))  # noqa: E731
    views = FreshViews(data, [(means, 16), (means, 24)], 0, device, 2, rotated=True)
    once, again, later = (list(views.epoch(e, 5)) for e in (1, 1, 2))
    assert [len(b.index) for b in once] == [5, 5, 2]
    for a, b in zip(once, again, strict=True):
        assert (a.index == b.index).all() and all((x == y).all() for x, y in zip(a.pairs, b.pairs, strict=True))
        assert a.rotated[0].shape == (4, len(a.index), 3) and (a.rotated[0][0] == a.pairs[0][0]).all()
        # A rotation keeps the mean; the two sizes see the same view.
        assert (a.rotated[0] - a.rotated[0][0]).abs().max() < 1e-3 and (a.pairs[0] - a.pairs[1]).abs().max() < 8
    by_image = {i: r for b in once for i, r in zip(b.index.tolist(), b.pairs[0][0], strict=True)}
    assert any((by_image[i] != r).any() for b in later for i, r in zip(b.index.tolist(), b.pairs[0][0], strict=True))


def test_one_view_is_no_pair():
    with pytest.raises(UserError, match="at least 2"):
        BankedViews([np.zeros((1, 5, 3))], seed=0)


def test_of_several_processes_one_downloads(tmp_path, monkeypatch):
    """The others wait, then find it there."""
    calls, inside, most = [], [], []

    class Reader:
        def __init__(self, root, train, download):
            if not download and not (root / "there").exists():
                raise RuntimeError("not found")
            if download and not (root / "there").exists():
                calls.append(train)
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.2)
                inside.pop()
                (root / "there").touch()

    monkeypatch.setattr(cifar10, "CIFAR10", Reader)
    threads = [threading.Thread(target=cifar10._open, args=(tmp_path, True)) for _ in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(calls) == 1 and most == [1]


def test_the_page_of_fashion_mnist_makes_its_folder(tmp_path):
    raw, images = tmp_path / "data/FashionMNIST/raw", np.arange(10 * 28 * 28, dtype=np.uint8).reshape(10, 28, 28)
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):  # as torchvision leaves them: magic number, counts, bytes
        sizes = b"".join(n.to_bytes(4, "big") for n in images.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + sizes[:4] + bytes(range(10)))
    page = (ROOT / "results" / "details" / "fashionmnist.md").read_text()
    exec(page.split("```python\n")[1].split("```")[0], {})  # in a folder of its own
    made = {file.parent.name: file for file in (tmp_path / "data/fashionmnist").glob("*/*.png")}
    assert len(made) == 10 and {"T-shirt or top", "Ankle boot"} < made.keys()
    assert (np.asarray(Image.open(made["Ankle boot"])) == images[9]).all()
