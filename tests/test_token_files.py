"""Token files: every layout is read with its own dtype, or refused by name."""

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import DataFacts
from flops_fit_ray.training.data import TokenFile
from flops_fit_ray.training.preflight.model_size import measure_sizes
from flops_fit_ray.training.user.parts import load_user_parts
from tests.parts import spec_of

TEXT = "To be, or not to be: that is the question. " * 100


def zipf(count: int, vocabulary: int, kind: str = "uint16") -> Any:
    """Ids as a tokenizer gives them: small ones often, all of them sometimes."""
    ids = np.random.default_rng(0).zipf(1.2, count).astype(np.float64) % vocabulary
    return ids.astype(kind)


def llm_c(ids: Any, magic: int) -> bytes:
    head = np.zeros(256, dtype=np.int32)
    head[:3] = magic, 1, len(ids)
    return head.tobytes() + bytes(ids.tobytes())


def megatron(path: Path, code: int) -> None:
    path.with_suffix(".idx").write_bytes(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, 1, 1))


def npy(path: Path, ids: Any) -> None:
    with path.open("wb") as file:
        np.save(file, ids)


WIDE = zipf(20_000, 100_000, "uint32")
LAYOUTS: dict[str, tuple[Any, str, str]] = {  # name: what writes it, its dtype, how that is known
    "plain.bin": (zipf(20_000, 50_257), "uint16", "assumed"),
    "characters.bin": (zipf(20_000, 65), "uint16", "assumed"),
    "uniform.bin": (np.random.default_rng(0).integers(0, 2**16, 20_000).astype(np.uint16), "uint16", "assumed"),
    "wide.bin": (WIDE, "uint32", "found: as uint16 every second id would be 0 to 1"),
    "wide_characters.bin": (zipf(20_000, 65, "uint32"), "uint32", "found: as uint16 every second id would be 0 to 0"),
    "int64.bin": (zipf(20_000, 65, "int64"), "int64", "found: as uint32"),
    "int64_wide.bin": (zipf(20_000, 100_000, "int64"), "int64", "found: as uint32"),
    "bytes.bin": (np.frombuffer(TEXT.encode(), dtype=np.uint8), "uint8", "found: even and odd bytes"),
    "cyrillic.bin": (np.frombuffer("Быть или не быть, вот в чём вопрос. ".encode() * 50, np.uint8), "uint8", "found"),
    "gpt2.bin": (llm_c(zipf(5000, 50_257), 20240520), "uint16", "as its header says"),
    "llama.bin": (llm_c(zipf(5000, 128_256, "uint32"), 20240801), "uint32", "as its header says"),
    "array.npy": (lambda path: npy(path, WIDE.astype(np.int32)), "int32", "as its header says"),
    "array.bin": (lambda path: npy(path, WIDE), "uint32", "as its header says"),
}


def write(path: Path, content: Any) -> Path:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.tobytes())
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_read_with_its_own_dtype(name: str, tmp_path: Path) -> None:
    content, dtype, known_by = LAYOUTS[name]
    data = TokenFile(write(tmp_path / name, content), context=16)
    assert data.files[0].dtype.name == dtype and data.files[0].known_by.startswith(known_by)
    ids = {"llama.bin": zipf(5000, 128_256), "gpt2.bin": zipf(5000, 50_257), "array.npy": WIDE, "array.bin": WIDE}
    expected = ids.get(name, content)
    if name != "llama.bin":
        assert data.files[0].tokens == len(expected)
        assert torch.equal(data[3][0], torch.from_numpy(np.asarray(expected[48:64]).astype(np.int64)))


def test_an_index_and_a_vocabulary_beside_a_file_say_its_dtype(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.bin", WIDE[:40])
    megatron(path, 4)
    assert (TokenFile(path, 8).files[0].dtype, TokenFile(path, 8).files[0].tokens) == (np.dtype("int32"), 40)
    megatron(path, 7)
    with pytest.raises(SpecError, match=r"corpus.idx says dtype 7, which is none of whole numbers"):
        TokenFile(path, 8)
    short = write(tmp_path / "short.bin", WIDE[:40])  # too short to be known by its bytes
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 100_000}))
    assert TokenFile(short, 8).files[0].known_by == "as meta.pkl says, with a vocabulary of 100,000"
    assert TokenFile(short, 8).files[0].tokens == 40


def facts(directory: Path, *, vocab: int = 1 << 17, **data: Any) -> DataFacts:
    spec = spec_of(
        model={"target": "tests.parts:Bigram", "size_param": "width", "sizes": [4, 8], "kwargs": {"vocab": vocab}},
        data={"train": "train.bin", "context": 16, **data}, loss="cross_entropy", budgets=[1e10, 2e10],
    )  # fmt: skip
    return measure_sizes(spec, load_user_parts(spec, directory)).data


def test_plans_say_dtype_number_and_largest_id_and_how_it_begins(tmp_path: Path) -> None:
    letters = sorted(set(TEXT))
    write(tmp_path / "train.bin", np.array([letters.index(c) for c in TEXT], dtype=np.uint16))
    meta = tmp_path / "meta.pkl"
    meta.write_bytes(pickle.dumps({"vocab_size": len(letters), "itos": dict(enumerate(letters)), "stoi": {}}))
    (note,) = facts(tmp_path).notes
    assert note == (
        f"data.train: train.bin: uint16 (as meta.pkl says, with a vocabulary of {len(letters)}), {len(TEXT):,} tokens, "
        f"largest id {len(letters) - 1}, begins 'To be, or not to be: that is the'"
    )
    meta.write_bytes(pickle.dumps({"vocab_size": 5}))
    with pytest.raises(SpecError, match=r"train.bin has the id \d+, and meta.pkl a vocabulary of 5; set data.dtype"):
        facts(tmp_path)
    with pytest.raises(SpecError, match="largest lookup table 5 entries; set its vocabulary"):
        meta.unlink()
        facts(tmp_path, vocab=5)
    write(tmp_path / "train.bin", WIDE)
    assert facts(tmp_path, dtype="uint16").warnings == (
        "data.train: train.bin looks like uint32 (found: as uint16 every second id would be 0 to 1), and data.dtype "
        "says uint16 [token_file]",
    )


def test_a_pickle_beside_a_file_runs_no_code(tmp_path: Path) -> None:
    write(tmp_path / "train.bin", zipf(2000, 60))
    touched = tmp_path / "touched"

    class Touches:
        def __reduce__(self) -> Any:
            return Path.touch, (touched,)

    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 3, "itos": Touches()}))
    assert "(assumed" in facts(tmp_path).notes[0] and not touched.exists()


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in (2, 0, 1):
        write(shards / f"train_{number}.bin", zipf(1000, 50_000) // 3 * 3 + number)
    for named in ("shards", "shards/", "shards/*.bin", str(shards)):
        user = load_user_parts(spec_of(data={"train": named, "context": 10, "eval_fraction": 0}), tmp_path)
        assert isinstance(user.train_data, TokenFile)
        assert [int(user.train_data[i * 99][0][0]) % 3 for i in range(3)] == [0, 1, 2]
    write(shards / "val_0.bin", zipf(1000, 50_000))
    assert facts(tmp_path, train="shards/*.bin").warnings[0].startswith("data.train: val_0.bin is among the files")


REFUSED = {
    "shards": "has training and held-out files (train_0.bin, val_0.bin); name the ones meant, for example shards/train",
    "shards/*.bin": "data.eval: {}/shards/val_0.bin is in data.train too; hold other files out",
    "texts": "has no file of token ids (.bin or .npy), but 2 with .parquet; tokenize it to uint16 or uint32 ids first",
    "texts/*.parquet": "a.parquet is no file of token ids",
    "input.txt": "input.txt is no file of token ids",
    "columns.bin": "columns.bin is a parquet file, not token ids; tokenize its text",
    "pointer.bin": "pointer.bin is a Git LFS pointer, not token ids; fetch the file itself with git lfs pull",
    "packed.bin": "packed.bin is compressed with gzip, not token ids; unpack it",
    "rows.npy": "rows.npy has the shape (10, 20), and token ids have one axis; save them flattened",
    "floats.npy": "floats.npy holds float64, not whole numbers",
    "gpt2.bin": "gpt2.bin has ids of uint16, as its header says, not of uint32; leave data.dtype out",
    "negative.npy": "negative.npy has the id -99929; ids are 0 or more",
    "gone.bin": "data.train: no file 'gone.bin' in",
    "nothing/here": "data.train: no file 'nothing/here' in {}; a dataset of your own is written module:attribute",
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_no_token_file_is_refused_by_name(named: str, tmp_path: Path) -> None:
    for directory in ("shards", "texts"):
        (tmp_path / directory).mkdir()
    for name in ("shards/train_0.bin", "shards/val_0.bin"):
        write(tmp_path / name, zipf(1000, 50_000))
    for name in ("texts/a.parquet", "texts/b.parquet", "columns.bin"):
        write(tmp_path / name, b"PAR1" + b"\0" * 1000)
    write(tmp_path / "input.txt", TEXT.encode())
    write(tmp_path / "pointer.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    write(tmp_path / "packed.bin", b"\x1f\x8b" + b"\0" * 1000)
    write(tmp_path / "gpt2.bin", llm_c(zipf(5000, 50_257), 20240520))
    for name, ids in {
        "rows": WIDE[:200].reshape(10, 20),
        "floats": WIDE / 2,
        "negative": -WIDE.astype("i8"),
    }.items():
        npy(tmp_path / f"{name}.npy", ids)
    more: dict[str, Any] = {"gpt2.bin": {"dtype": "uint32"}, "shards/*.bin": {"eval": "shards/val_0.bin"}}.get(
        named, {}
    )
    with pytest.raises(SpecError) as caught:
        facts(tmp_path, train=named, **more)
    assert REFUSED[named].format(tmp_path) in str(caught.value)
