"""ASCII text that every Python installation has: the sources of its standard library, file by file."""

import sysconfig
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Windows(Dataset[dict[str, Tensor]]):
    """Each sample: `length` characters and, as labels, the one that follows each of them."""

    def __init__(self, text: bytes, length: int = 64) -> None:
        self.ids, self.length = torch.frombuffer(bytearray(text), dtype=torch.uint8), length

    def __len__(self) -> int:
        return (len(self.ids) - 1) // self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        window = self.ids[index * self.length : (index + 1) * self.length + 1].long()
        return {"ids": window[:-1], "labels": window[1:]}


def train() -> Windows:
    return Windows(_text()[300_000:])


def held_out() -> Windows:
    return Windows(_text()[:300_000])


def _text() -> bytes:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    folders = [folder for folder in root.iterdir() if folder.is_dir() and folder.name not in skipped]
    found = [*root.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    files = sorted(file for file in found if not skipped & set(file.parts))  # the same order everywhere
    return b"".join(file.read_bytes() for file in files).translate(None, bytes(range(128, 256)))
