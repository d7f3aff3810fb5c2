"""Files that were made to do harm: everything that a user may download, and what must become of it.

Broken checkpoints are opened here, in a process of little memory. Scenes, products, settings and shards are part of the
corpus of bad input, which ``tests/unit/data/test_bad_input.py`` puts through the commands, likewise in processes of
little memory and with a server that no file may have asked; here is the list of those that are attacks.
"""

import hashlib
import json
import os
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ringmoe.checkpoint.manifest import FileEntry, Manifest, TensorEntry, write_manifest
from ringmoe.checkpoint.pretrained import load_weights
from ringmoe.checkpoint.runs import open_checkpoint
from ringmoe.checkpoint.store import CheckpointWriter
from ringmoe.config import to_dict
from ringmoe.errors import RingMoEError
from ringmoe.layers.init import initialise
from ringmoe.models import build_model, check_stored, config_from
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.naming import canonical_entries
from tests.fixtures.child import exit_code_of
from tests.fixtures.corpus import commands, images, products, shards

MODEL = RingMoEConfig(modalities=("opt",), image_size=16, patch_size=2, depths=(1,), dims=(8,), head_dim=4, mask_unit=4)
WEIGHTS, FIRST = "weights-00000.safetensors", "embed"
MOST_MEMORY = 1 << 30  # bytes of address space beyond those that Python and torch take
NEVER = "never"


class Harm:
    """Makes a file where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._place),)


def sealed(change: Callable[[Path], Any]) -> Callable[[Path], None]:
    """A change of files under a manifest whose sizes and checksums agree."""

    def make(root: Path) -> None:
        change(root)
        manifest = open_manifest(root)
        files = {}
        for name in manifest["files"]:
            content = (root / name).read_bytes()
            files[name] = FileEntry(len(content), hashlib.sha256(content).hexdigest())
        tensors = {name: TensorEntry(**entry) for name, entry in manifest["tensors"].items()}
        write_manifest(root, Manifest(files=files, tensors=tensors))

    return make


def open_manifest(root: Path) -> dict[str, Any]:
    return json.loads((root / "manifest.json").read_text())


def text(name: str, content: str | bytes) -> Callable[[Path], Any]:
    return lambda root: (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def config(**changes: Any) -> Callable[[Path], None]:
    """Another model in config.json."""

    def change(root: Path) -> None:
        values = json.loads((root / "config.json").read_text())
        values["model"] |= changes
        (root / "config.json").write_text(json.dumps(values))

    return sealed(change)


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Another header in front of the weights."""

    def make(root: Path) -> None:
        content = (root / WEIGHTS).read_bytes()
        (size,) = struct.unpack_from("<Q", content)
        values = json.loads(content[8 : 8 + size])
        change(values)
        fresh = json.dumps(values).encode()
        (root / WEIGHTS).write_bytes(struct.pack("<Q", len(fresh)) + fresh + content[8 + size :])

    return sealed(make)


def each(**fields: Any) -> Callable[[dict[str, Any]], None]:
    """The same fields for every tensor of a header."""
    return lambda values: [entry.update(fields) for name, entry in values.items() if name != "__metadata__"]


def pickled(root: Path) -> bytes:
    return pickle.dumps(Harm(root.parent / NEVER))


def torch_pickled(root: Path) -> None:
    torch.save({"w": Harm(root.parent / NEVER)}, root / WEIGHTS)


def replaced(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Something else in place of a file."""

    def change(root: Path) -> None:
        (root / name).unlink()
        make(root / name)

    return change


def names_file(name: str) -> Callable[[Path], None]:
    """A manifest that names another file."""

    def change(root: Path) -> None:
        tensors = {"w": TensorEntry(name, "float32", (1,))}
        write_manifest(root, Manifest(files={name: FileEntry(1, "0" * 64)}, tensors=tensors))

    return change


def sparse(path: Path) -> None:
    """Two terabytes of zeros that take no space."""
    with path.open("wb") as file:
        file.truncate(2 << 40)


def only_pickles(root: Path) -> None:
    """What other projects call a checkpoint."""
    for path in root.iterdir():
        path.unlink()
    torch.save({"w": Harm(root.parent / NEVER)}, root / "pytorch_model.bin")


DEEP = "[" * 100_000
CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a manifest of a hundred thousand brackets": (text("manifest.json", DEEP), "manifest.json is damaged"),
    "a manifest of two terabytes": (replaced("manifest.json", sparse), "no regular file of at most 256 MiB"),
    "a named pipe in place of the manifest": (replaced("manifest.json", os.mkfifo), "no regular file"),
    "an endless device in place of the manifest": (
        replaced("manifest.json", lambda path: path.symlink_to("/dev/zero")),
        "no regular file",
    ),
    "a pickle in place of the manifest": (
        lambda root: (root / "manifest.json").write_bytes(pickled(root)),
        "cannot be read",
    ),
    "a manifest that names a file outside": (names_file("../outside"), "only plain names"),
    "a manifest that names an absolute path": (names_file("/etc/passwd"), "only plain names"),
    "a config of a hundred thousand brackets": (sealed(text("config.json", DEEP)), "nest too deeply"),
    "a config that is a number of ten thousand digits": (sealed(text("config.json", "9" * 10_000)), "digits"),
    "a config that is a list": (sealed(text("config.json", "[1, 2]")), "holds a list"),
    "a config without a model": (sealed(text("config.json", '{"family": "ringmoe"}')), "lacks what a model"),
    "a config whose inputs are a list": (
        sealed(text("config.json", '{"family": "ringmoe", "inputs": [1], "model": {}}')),
        "lacks what a model",
    ),
    "a config of a family that is a path": (
        sealed(text("config.json", '{"family": "os.system"}')),
        "unknown model fam",
    ),
    "a model of 10^18 weights": (config(dims=[2**30], head_dim=2**30), "larger than the"),
    "a model of a billion blocks": (config(depths=[10**9]), "larger than the"),
    "a model of a billion experts": (config(num_collaborative=10**9), "larger than the"),
    "a model of images of 10^18 pixels": (
        config(image_size=2**30, window=2**29, mask_unit=2**30),
        "larger than the",
    ),
    "a pickle in place of the config": (
        sealed(lambda root: (root / "config.json").write_bytes(pickled(root))),
        "cannot be read",
    ),
    "a pickle in place of the weights": (
        sealed(lambda root: (root / WEIGHTS).write_bytes(pickled(root))),
        "cannot be read",
    ),
    "a pickle of torch in place of the weights": (sealed(torch_pickled), "cannot be read"),
    "a folder of pickles as other projects have": (only_pickles, "has no manifest.json"),
    "a named pipe in place of the weights": (replaced(WEIGHTS, os.mkfifo), "is missing"),
    "an endless device in place of the weights": (
        replaced(WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
        "is missing",
    ),
    "a header that promises 2^63 bytes": (sealed(text(WEIGHTS, struct.pack("<Q", 1 << 63) + b"{}")), "cannot be read"),
    "a header that promises 90 megabytes in a file of a few": (
        sealed(text(WEIGHTS, struct.pack("<Q", 90_000_000) + b"{}")),
        "cannot be read",
    ),
    "a header of ten million brackets": (
        sealed(text(WEIGHTS, struct.pack("<Q", 10_000_000) + b"[" * 10_000_000)),
        "cannot be read",
    ),
    "a header of no JSON": (sealed(text(WEIGHTS, struct.pack("<Q", 8) + b"\xff" * 8)), "cannot be read"),
    "tensors beyond the end of the file": (header(each(data_offsets=[0, 1 << 62])), "cannot be read"),
    "tensors that end before they begin": (header(each(data_offsets=[64, 0])), "cannot be read"),
    "tensors that all lie in one place": (header(each(data_offsets=[0, 32])), "cannot be read"),
    "shapes whose product overflows": (header(each(shape=[1 << 40, 1 << 40])), "cannot be read"),
    "tensors of Python objects": (header(each(dtype="O")), "cannot be read"),
    "tensors of another shape": (header(each(shape=[1], dtype="F32")), "cannot be read"),
}

CORPUS = {
    "Scenes: dimensions": (
        "2,147,483,647 columns in a small file",
        "2,147,483,647 x 2,147,483,647 pixels in one block",
        "a gigabyte of zeros in a file of a few hundred bytes",
        "one block of 20,000 x 20,000 pixels",
        "a TIFF whose list of tags claims 65,535 entries",
        "a BigTIFF whose list of tags claims 2^63 entries",
        "65,535 bands in the header",
    ),
    "Scenes: references": (
        "a VRT of an image on the network",
        "a VRT of a file outside of the folder",
        "a VRT named .tif",
        "a VRT named .jp2",
        "an .ovr beside that is a VRT of a file elsewhere",
        "an .msk beside that is a VRT of a file elsewhere",
        "a folder named like a URL",
        "a name that means something to GDAL",
        "a pickle",
        "a link to an endless device",
        "a named pipe",
    ),
    "Products": (
        "XML entities that expand to a gigabyte",
        "an XML entity that reads a file of the machine",
        "a document type on the network",
        "a hundred thousand elements inside of each other",
        "metadata of 65 MiB",
        "metadata that names a file outside of the product",
        "a band that is a link to a file outside of the product",
        "a manifest that names a file outside of the product",
        "Landsat metadata that names /etc/passwd",
        "JSON of a hundred thousand brackets",
    ),
    "Shards: manifest and index": (
        "a manifest of a hundred thousand brackets",
        "a file outside of the folder",
        "an absolute path",
        "a command in place of a shard",
        "tiles of a billion pixels",
        "tiles of Python objects",
        "a member index of pickled objects",
        "a pickle in place of the member index",
        "a member index whose header promises 2^62 rows",
        "an offset beyond what files can have",
        "a link in place of a shard",
        "a named pipe in place of a shard",
    ),
    "Shards: members": (
        "a pickle behind the samples",
        "a pickle behind the samples; the manifest agrees",
        "a member that would lie outside of the folder; the manifest agrees",
        "a member with an absolute path; the manifest agrees",
        "a member that is a link; the manifest agrees",
        "a member that is a hard link; the manifest agrees",
        "a member that is a device; the manifest agrees",
    ),
}


def use(path: Path) -> None:
    """What every command does with a checkpoint, and training with its state."""
    reader = open_checkpoint(path)
    for name in reader.names:
        reader.tensor(name)
    found = config_from(reader.config, where=str(path / "config.json"))
    check_stored(found, reader.weight_bytes, str(path))
    load_weights(build_model(found), reader)


def try_all(folder: Path) -> None:
    """Opens all of them, in this process of little memory; what each came to is written down."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_MEMORY, now + MOST_MEMORY))
    said = {}
    for number, name in enumerate(CHECKPOINTS):
        try:
            use(folder / str(number))
            said[name] = "it was taken for good"
        except RingMoEError as error:
            said[name] = f"refused: {error}"
        except BaseException as error:
            said[name] = f"{type(error).__name__}: {error}"
        (folder / "said.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    model = build_model(MODEL)
    initialise(model, 0)
    for number, (change, _) in enumerate(CHECKPOINTS.values()):
        with CheckpointWriter(folder / str(number)) as writer:
            for entry in canonical_entries(model):
                writer.add(entry.name, entry.tensor)
            writer.commit(config={"format": 1, "family": "ringmoe", "model": to_dict(MODEL), "inputs": {}})
        if not number:
            use(folder / "0")  # as it is, it is good
        change(folder / str(number))
    assert exit_code_of(try_all, folder) == 0
    assert not (folder / NEVER).exists(), "something was unpickled"
    return json.loads((folder / "said.json").read_text())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_malicious_checkpoint_is_refused(said, name):
    assert said[name].startswith("refused: ")
    assert CHECKPOINTS[name][1] in said[name]


@pytest.mark.parametrize(("kind", "names"), CORPUS.items(), ids=list(CORPUS))
def test_malicious_scenes_and_shards_are_in_the_corpus(kind, names):
    rooms = (images, products, commands, shards)
    known = {case.what for room in rooms for cases in room.CASES.values() for case in cases}
    assert set(names) <= known, kind


def test_the_pickles_of_this_list_would_do_harm(tmp_path):
    """Else it would show nothing that they did not."""
    (tmp_path / "checkpoint").mkdir()
    pickle.loads(pickled(tmp_path / "checkpoint"))
    assert (tmp_path / NEVER).is_dir()
