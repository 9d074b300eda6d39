"""A search page for any static host: the browser hashes the query with the exported student and scans the codes itself.

index.html sw.js page/           the page, and what keeps it for use without a network
data/info.json                   what is searched; names the state, VERSION, that the other files are of
data/VERSION/model.onnx          the exported student
data/VERSION/codes.bin           uint8 [n, w], in the order added; folders.bin: uint32 [n], places in info's folders
data/VERSION/ids.bin             8 bytes of each picture's content hash, by which addresses name it
data/VERSION/looks.bin           8 bytes each of what a second look sees, zeros where there is no thumbnail
data/VERSION/duplicates.json     groups of pictures that are there more than once
data/VERSION/names-G.json        {names, ids, sizes of thumbnails} of a group of pictures
data/VERSION/thumbs-S.bin        thumbnails of a shard, end to end
ort/                             ONNX Runtime Web, which npm has
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import IO, cast

import numpy as np
from tqdm import tqdm

from models.exported import MODEL, Exported
from search.asking import facts
from search.copies import ALIKE, LOOKED, LOW, duplicates, look_of
from search.index import SHORT, Index
from search.server import MAX_GROUPS, MAX_K, MAX_PIXELS, PAGE
from utils.errors import UserError, first_line
from utils.files import ASIDE, read_json, write_json, written_aside

FORMAT = 1
LATER = ("thumbs-",)  # data that not every visit needs
GROUP, SHARD = 4096, 256  # pictures whose names are one file, and whose thumbnails are
COMPARED = 200_000  # pictures: more are not compared with each other, which would take minutes
MAX_UPLOAD = 512 * 2**20  # bytes of a query's file, which stays in the browser
ORT = "1.30.0"  # of onnxruntime-web
ORT_FILES = {"module": "ort.wasm.bundle.min.mjs", "wasm": "ort-wasm-simd-threaded.wasm"}
# Under the site's own roof: many hosts send .mjs as no script, and browsers refuse it.
HERE = {"module": "ort.wasm.bundle.min.js", "wasm": ORT_FILES["wasm"]}
ORT_BYTES = 14_239_897  # of the second, where it is loaded from elsewhere
# npm's own checksum of that version.
ORT_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
WAYS = (
    f"install Node.js, whose npm gets it; or name a folder that has {' and '.join(ORT_FILES.values())} by --ort; or "
    f"let visitors load it from elsewhere: --ort https://cdn.jsdelivr.net/npm/onnxruntime-web@{ORT}/dist/"
)
PAGE_FILES = ("page.css", "page.js", "browser.js", "worker.js", "pixels.js", "icon.svg")


def runtime(cache: Path) -> Path:
    """The folder that holds ONNX Runtime Web's files, got by npm the first time.

    Raises:
        UserError: there is no npm, or it can't get them.
    """
    folder = cache / f"onnxruntime-web-{ORT}"
    if all((folder / name).exists() for name in ORT_FILES.values()):
        return folder
    if not (npm := shutil.which("npm")):
        raise UserError(f"ONNX Runtime Web is needed, and there is no npm: {WAYS}")
    with tempfile.TemporaryDirectory() as aside:
        words = [npm, "pack", f"onnxruntime-web@{ORT}", "--silent", "--pack-destination", aside]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=900, cwd=aside)
        except subprocess.TimeoutExpired:
            raise UserError(f"npm did not get ONNX Runtime Web in 15 minutes; try again, or {WAYS}") from None
        package = next(Path(aside).glob("*.tgz"), None)
        if done.returncode or package is None:
            raise UserError(f"npm could not get ONNX Runtime Web ({first_line(done.stderr)}); try again, or {WAYS}")
        content = package.read_bytes()
        if base64.b64encode(hashlib.sha512(content).digest()).decode() != ORT_SHA512:
            raise UserError("npm got another onnxruntime-web than the one that was tested; try again")
        with tarfile.open(package) as tar:
            for name in ORT_FILES.values():
                with written_aside(folder / name) as file:
                    file.write(cast(IO[bytes], tar.extractfile(f"package/dist/{name}")).read())
    return folder


def common(folders: list[str]) -> str:
    """The folder above all of them, which the site does not name."""
    return os.path.commonpath(folders) if folders else ""


def shown(name: str) -> str:
    """A name as text, whatever bytes it is of."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def groups_of(index: Index, top: str) -> list:
    """As the server's ``/api/duplicates``, with paths below ``top``."""
    return [
        [
            {**facts(one), "path": shown(os.path.relpath(one.path, top)), "kind": group.kind(one)}
            for one in group.pictures
        ]
        for group in duplicates(index)[:MAX_GROUPS]
    ]


def write_data(index: Index, student: Exported, folder: Path) -> dict:
    """Codes, names, thumbnails and the model; returns what info.json says of them."""
    ids, codes = index.codes()
    folders = index.folders()
    place = {path: n for n, path in enumerate(folders)}
    top = common(folders)
    places, taken, contents, looks = np.zeros(len(ids), "<u4"), np.zeros(len(ids)), [], []
    for start in tqdm(range(0, len(ids), GROUP), "writing", unit="group"):
        records = index.records(ids[start : start + GROUP].tolist())
        places[start : start + GROUP] = [place[os.path.dirname(record.path)] for record in records]
        taken[start : start + GROUP] = [record.taken for record in records]
        thumbnails = [index.thumbnail(record.id) for record in records]
        contents += [record.digest[:SHORT] for record in records]
        looks += [bytes(LOW) if (look := look_of(index, record.id)) is None else look.tobytes() for record in records]
        for at in range(0, len(records), SHARD):
            (folder / f"thumbs-{(start + at) // SHARD}.bin").write_bytes(b"".join(thumbnails[at : at + SHARD]))
        names = {"names": [shown(os.path.basename(r.path)) for r in records], "sizes": [len(t) for t in thumbnails]}
        names["ids"] = contents[start:]
        (folder / f"names-{start // GROUP}.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
    (folder / "codes.bin").write_bytes(codes.tobytes())
    (folder / "folders.bin").write_bytes(places.tobytes())
    (folder / "taken.bin").write_bytes(taken.astype("<f8").tobytes())
    (folder / "looks.bin").write_bytes(b"".join(looks))
    (folder / "ids.bin").write_bytes(bytes.fromhex("".join(contents)))
    if len(ids) <= COMPARED:
        (folder / "duplicates.json").write_text(json.dumps(groups_of(index, top), ensure_ascii=False), encoding="utf-8")
    shutil.copyfile(student.folder / MODEL, folder / MODEL)
    below = ["" if path == top else shown(os.path.relpath(path, top)) for path in folders]
    return {
        "format": FORMAT,
        "pictures": len(ids),
        "newest": index.newest,
        "bits": student.bits,
        "width": student.width,
        "group": GROUP,
        "shard": SHARD,
        "student": student.card,
        "folders": below,
        "max_upload": MAX_UPLOAD,
        "max_pixels": MAX_PIXELS,
        "max_k": MAX_K,
        "duplicates": len(ids) <= COMPARED,
        "looked": LOOKED,
        "alike": ALIKE,
        "problem": None if len(ids) else "the index was empty when this site was written",
        "sizes": {name: (folder / name).stat().st_size for name in ("codes.bin", "folders.bin", MODEL)},
        "later": sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith(LATER)),
    }


def page_files(ort: str) -> dict[str, bytes]:
    """What stands beside the data: by name, the page that takes the browser as its engine."""
    elsewhere = f" {'/'.join(ort.split('/')[:3])}" if "://" in ort else ""
    policy = (
        f"default-src 'none'; script-src 'self' 'wasm-unsafe-eval'{elsewhere}; style-src 'self'; img-src 'self' blob:; "
        f"connect-src 'self'{elsewhere}; worker-src 'self'; base-uri 'none'; form-action 'none'"
    )
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    html = html.replace('data-engine="server"', 'data-engine="browser"')
    html = html.replace("<head>", f'<head>\n<meta http-equiv="Content-Security-Policy" content="{policy}">')
    html = html.replace('<a id="api" href="docs">API</a>', '<span id="api"></span>')
    return {"index.html": html.encode(), **{f"page/{name}": (PAGE / name).read_bytes() for name in PAGE_FILES}}


def check_out(out: Path) -> None:
    """Raises UserError where a site would be mixed with something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    # The first writing leaves nothing but what it was writing aside, until all is there.
    begun = [name for name in os.listdir(out) if name != "data"] == [] and os.listdir(out / "data") != []
    begun = begun and all(name.startswith(ASIDE) for name in os.listdir(out / "data"))
    try:
        ours = begun or read_json(out / "data" / "info.json").get("format") == FORMAT
    except (UserError, OSError):
        ours = False
    if not ours:
        raise UserError(f"--out {out}: holds something else than a site; name a new folder")


def write_site(index: Index, student: Exported, out: Path, ort: str | Path) -> dict:
    """Write the site, or a new state of it, into ``out``; a visitor meets one state or the other.

    Args:
        ort: the folder with ONNX Runtime Web's files, or the address where visitors find them.

    Returns:
        info.json's content.

    Raises:
        UserError: ``out`` holds something else, or ``ort`` lacks a file.
    """
    check_out(out)
    here = "://" not in str(ort)
    if missing := [name for name in ORT_FILES.values() if here and not (Path(ort) / name).is_file()]:
        raise UserError(f"{ort}: no {' and no '.join(missing)} in it; {WAYS}")
    (out / "data").mkdir(parents=True, exist_ok=True)
    address = "ort/" if here else str(ort).rstrip("/") + "/"
    with tempfile.TemporaryDirectory(prefix=ASIDE, dir=out / "data") as aside:
        folder = Path(aside) / "state"
        folder.mkdir()
        try:
            info = write_data(index, student, folder)
        except KeyError:
            raise UserError(f"{index.path}: pictures were removed while the site was written; run it again") from None
        info |= {"runtime": {"address": address, **(HERE if here else ORT_FILES)}}
        wasm = ORT_FILES["wasm"]
        info["sizes"][wasm] = (Path(ort) / wasm).stat().st_size if here else ORT_BYTES
        files = page_files(address)
        if here:
            files |= {f"ort/{HERE[key]}": (Path(ort) / name).read_bytes() for key, name in ORT_FILES.items()}
        info["version"] = version = state(folder, files, info)
        if (out / "data" / version).exists():
            shutil.rmtree(out / "data" / version)
        folder.rename(out / "data" / version)
    for name, content in files.items():
        with written_aside(out / name) as file:
            file.write(content)
    write_json(out / "data" / "info.json", info)
    with written_aside(out / "sw.js") as file:
        file.write(worker(out, info, files))
    for old in (out / "data").iterdir():  # other states, and what a killed writing has left
        if old.is_dir() and old.name != version:
            shutil.rmtree(old)
    return info


def state(folder: Path, files: dict[str, bytes], info: dict) -> str:
    """A name for all of the site's contents."""
    digest = hashlib.sha256(json.dumps(info, sort_keys=True).encode())
    for content in (
        *(p.read_bytes() for p in sorted(folder.iterdir())),
        *files.values(),
        (PAGE / "sw.js").read_bytes(),
    ):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def worker(out: Path, info: dict, files: dict[str, bytes]) -> bytes:
    """sw.js with the names of the files that it keeps: thumbnails only when a visitor wants that."""
    data = f"data/{info['version']}"
    written = sorted(f"{data}/{path.name}" for path in (out / data).iterdir())
    later = [name for name in written if name.startswith(tuple(f"{data}/{kind}" for kind in LATER))]
    ort = info["runtime"]
    elsewhere = [ort["address"] + ort[key] for key in ORT_FILES] if "://" in ort["address"] else []
    first = ["./", *files, "data/info.json", *elsewhere, *(name for name in written if name not in later)]
    content = json.dumps({"version": info["version"], "first": first, "later": later})
    script = (PAGE / "sw.js").read_text(encoding="utf-8")
    return script.replace("/* FILES */ {}", content).encode()
