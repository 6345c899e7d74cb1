"""Write train.bin, val.bin and meta.pkl as nanoGPT's data/*/prepare.py do: token ids as uint16, one after another.

The text is the sources of Python's standard library. A token is one of the 1,000 most frequent pieces (a word with the
space before it, an indented line end, ...), or a single byte of a piece that is rarer.
"""

import pickle
import re
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PIECES = re.compile(rb" ?[A-Za-z_]+|\n *|[0-9]|[^A-Za-z_0-9\n]+?")
VOCABULARY = 256 + 1_000


def prepare(text: bytes, folder: Path, held_out: int = 100_000) -> None:
    """Write the files; the last `held_out` tokens are val.bin."""
    pieces = PIECES.findall(text)
    common = [piece for piece, _ in Counter(pieces).most_common() if len(piece) > 1][: VOCABULARY - 256]
    number = {piece: 256 + i for i, piece in enumerate(common)}
    ids = np.array([i for piece in pieces for i in ([number[piece]] if piece in number else piece)], dtype=np.uint16)
    ids[:-held_out].tofile(folder / "train.bin")
    ids[-held_out:].tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": VOCABULARY, "pieces": common}))
    print(f"{len(text):,} bytes, {len(ids):,} tokens, bytes_per_token: {len(text) / len(ids):.3f}")


def standard_library() -> bytes:
    """All sources but tests, in an order that is the same everywhere."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    files = sorted(file for file in root.rglob("*.py") if not skipped & set(file.parts))
    return b"".join(file.read_bytes() for file in files)


if __name__ == "__main__":
    prepare(standard_library(), HERE)
