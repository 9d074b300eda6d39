"""From a folder of pictures to answers, by the one command that people run."""

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import ROOT, STUDENT, TEACHER
from PIL import Image, ImageDraw

from models.backbones import hash_state
from models.trained import read_run

N = 200


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """200 pictures in two folders: discs and squares of many colours; one broken, one twice, one lying."""
    top, draw = tmp_path_factory.mktemp("pictures"), np.random.RandomState(0)
    for i in range(N):
        image = Image.new("RGB", (96, 72), tuple(draw.randint(0, 256, 3)))
        x, y, r = draw.randint(20, 50), draw.randint(20, 50), draw.randint(8, 20)
        shape = ImageDraw.Draw(image).ellipse if i % 2 else ImageDraw.Draw(image).rectangle
        shape((x - r, y - r, x + r, y + r), fill=tuple(draw.randint(0, 256, 3)))
        file = top / ("discs" if i % 2 else "squares") / f"{i:03}.jpg"
        file.parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 5 else 1
        image.save(file, exif=exif)
    (top / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (top / "copy.jpg").write_bytes((top / "discs" / "001.jpg").read_bytes())
    return top


@pytest.fixture(autouse=True)
def forked(monkeypatch, python):
    monkeypatch.setenv("PYTHON", python)


def settings(folder, **more) -> dict[str, str]:
    small = {"TEACHER": TEACHER, "STUDENT": STUDENT, "BITS": "16", "VIEWS": "2", "TRAIN_IMAGES": "60"}
    small |= {
        "TEACHER_EPOCHS": "2",
        "EPOCHS": "2",
        "CLUSTERS": "4",
        "RUNS": f"{folder}/runs",
        "CACHE_DIR": f"{folder}/cache",
    }
    return {**os.environ, **small, "SERVE": "no", "PYTHONPATH": str(ROOT), **more}


def search_script(pictures, folder, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["sh", ROOT / "scripts" / "search.sh", pictures],
        env=settings(folder, **more),
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_from_a_folder_of_pictures_to_a_page(pictures, tmp_path, command):
    done = search_script(pictures, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "of the teacher's nearest by features" in done.stdout and "broken.jpg" in done.stdout + done.stderr
    index, asked = tmp_path / "runs" / "index", pictures / "discs" / "005.jpg"

    found = command("search", "query", "--index", index, asked, "-k", 5, "--json")
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)[0]
    assert answer["searched"] == N + 1 and len(answer["results"]) == 5
    own = [one["path"] for one in answer["results"] if one["distance"] == 0]
    assert str(asked) in own or len(own) == 5, answer  # codes of 16 bits: others may lie at distance 0 as well

    again = search_script(pictures, tmp_path)
    assert again.returncode == 0 and "== teacher" not in again.stdout, again.stdout + again.stderr

    port = 8000 + os.getpid() % 1000
    env = settings(tmp_path, SERVE="yes", PORT=str(port))
    server = subprocess.Popen(["sh", ROOT / "scripts" / "search.sh", pictures], env=env, start_new_session=True)
    try:
        info = json.loads(first_answer(f"http://127.0.0.1:{port}/api/info", server))
        assert N + 1 in info.values(), info
    finally:
        os.killpg(server.pid, signal.SIGINT)
        assert server.wait(60) in (0, 130)


@pytest.mark.slow
def test_without_training_the_student_of_the_checkpoints_is_used(pictures, tmp_path, monkeypatch):
    env = {**os.environ, "RUNS": f"{tmp_path}/runs", "CACHE_DIR": f"{tmp_path}/cache", "SERVE": "no"}
    run = ["sh", ROOT / "scripts" / "search.sh", pictures]
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "== teacher" not in done.stdout, done.stdout + done.stderr
    card = json.loads((tmp_path / "runs" / "export" / "card.json").read_text())
    monkeypatch.chdir(ROOT)  # a student names its teacher from there
    ready = read_run(ROOT / "checkpoints/photos64/student")
    assert card["head"] == hash_state(ready.heads["sshp"]) and card["data"]["fingerprint"] == ready.facts["data"]
    assert card["licence"] == "Apache-2.0" and f"{N + 1} pictures" in done.stdout


def first_answer(address: str, server: subprocess.Popen) -> bytes:
    for _ in range(600):
        assert server.poll() is None, "the server has ended"
        try:
            return urllib.request.urlopen(address, timeout=5).read()
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            said = error
            time.sleep(0.2)
    raise AssertionError(f"{address}: {said!r}")


def test_a_folder_that_is_none_is_one_line(tmp_path):
    done = search_script(tmp_path / "none", tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no such folder" in done.stderr
