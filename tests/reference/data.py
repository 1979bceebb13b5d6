"""The AG News test split: found on disk or downloaded once, and always checked against its checksum."""

from __future__ import annotations

import csv
import hashlib
import os
import tempfile
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# The copy torchtext uses. The corpus is for research and other non-commercial use, so it is not in the repository.
URL = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/test.csv"
SHA256 = "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699"
ROWS = 7600


def find_data() -> Path:
    """Return a folder that holds the official `test.csv`.

    Looked for in this order: the folder the environment variable AGNEWS_DATA names, `../shared/data/ag_news` beside
    the repository, `~/.cache/agnews_fast` (filled by a download of 1.8 MB when it is empty).

    Raises FileNotFoundError when AGNEWS_DATA names a folder without the file, and ValueError for a wrong checksum.
    """
    named = os.environ.get("AGNEWS_DATA")
    if named:
        folder = Path(named)
        if not (folder / "test.csv").is_file():
            raise FileNotFoundError(f"AGNEWS_DATA={named}: there is no test.csv in it")
    else:
        folder = REPOSITORY.parent / "shared" / "data" / "ag_news"
        if not (folder / "test.csv").is_file():
            folder = Path.home() / ".cache" / "agnews_fast"
            if not (folder / "test.csv").is_file():
                _download(folder / "test.csv")
    _verify((folder / "test.csv").read_bytes(), str(folder / "test.csv"))
    return folder


def read_test_split(folder: Path) -> tuple[list[str], list[int]]:
    """Return the 7,600 texts (title + " " + description) and their labels 0..3 (World, Sports, Business, Sci/Tech).

    Nothing is cleaned: the backslashes and `#39;` of the corpus stay, since the model was trained on them.
    """
    path = folder / "test.csv"
    _verify(path.read_bytes(), str(path))
    texts: list[str] = []
    labels: list[int] = []
    with path.open(encoding="utf-8", newline="") as file:
        for label, title, description in csv.reader(file):
            texts.append(f"{title} {description}")
            labels.append(int(label) - 1)
    if len(texts) != ROWS:
        raise ValueError(f"{path}: expected {ROWS} rows, got {len(texts)}")
    return texts, labels


def _download(target: Path) -> None:
    """Fetch the file; it appears under its name only when complete and right, so a broken download can't be reused."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(URL, timeout=60) as response:
        content = response.read()
    _verify(content, URL)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as partial:
        partial.write(content)
    os.replace(partial.name, target)


def _verify(content: bytes, source: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{source}: expected sha256 {SHA256}, got {digest}")
