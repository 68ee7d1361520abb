"""Files: atomic writes, strict JSON, checksums, safetensors."""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ConfigError, first_line, short

CHECKSUMS = "checksums.json"
"""File of an export or a checkpoint with the SHA-256 of every other file, and of its own content."""
CHECKSUMS_FORMAT = "relic-jax-checksums-1"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a unique temporary name beside `path`; on success, rename that file to `path`.

    On an error, the temporary file is removed and `path` keeps its previous content.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows only flushes files that are open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file such that at any time either the whole old or the whole new content exists.

    Raises:
        OSError: If writing fails. It names `path`, which keeps its previous content.
    """
    data = content if isinstance(content, bytes) else content.encode()
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not UTF-8, or for the reasons that `parse_json` states.
    """
    if not path.is_file():  # opening a named pipe would block forever
        raise FileNotFoundError(f"'{path}' is not a file")
    return parse_json(path.read_bytes().decode())


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: If the text is not JSON, or has a number that is not finite (NaN, 1e400), a key that occurs twice
            in an object, or too many levels.
    """

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{short(text)} is not a finite number")
        return value

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {short(key)} occurs twice")
            found[key] = value
        return found

    try:
        return json.loads(text, parse_float=number, parse_constant=number, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_record(path: Path, kind: str, formats: Sequence[str]) -> dict[str, Any]:
    """Return the JSON object in a file that states its format.

    Args:
        path: The file.
        kind: What its folder is called in errors: "export" or "checkpoint".
        formats: The values of "format" that this version reads.

    Raises:
        ConfigError: If the file is missing, truncated or not a JSON object, or has another format.
    """
    try:
        record = read_json(path)
        version = record["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        allowed = f"a folder with a readable {path.name} of relic-jax{reason}"
        raise ConfigError(f"{kind} is '{path.parent}'; allowed: {allowed}") from None
    if version not in formats:
        allowed = " or ".join(map(repr, formats))
        raise ConfigError(f"{kind} '{path.parent}' has format {short(version)}; allowed: {allowed}")
    return dict(record)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file's content. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return "sha256:" + digest.hexdigest()


def checksums_text(files: Mapping[str, str]) -> str:
    """Return the content of CHECKSUMS for checksums by file name, relative to the folder."""
    body = {"format": CHECKSUMS_FORMAT, "files": {name: files[name] for name in sorted(files)}}
    own = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps({**body, "self": f"sha256:{own}"}, indent=1) + "\n"


def verify_files(folder: Path, kind: str, required: bool = True) -> None:
    """Compare every file that a folder's CHECKSUMS lists with its checksum, and CHECKSUMS with its own.

    Args:
        folder: The folder.
        kind: What it is called in errors.
        required: Whether CHECKSUMS must exist. Folders of earlier versions have none.

    Raises:
        ConfigError: If a file is missing, cannot be read or differs. The message names the first such file.
    """
    path, start = folder / CHECKSUMS, f"{kind} '{folder}' is truncated or damaged: "
    if not required and not os.path.lexists(path):
        return
    if not path.is_file():
        raise ConfigError(f"{start}file {CHECKSUMS} is missing")
    try:
        text = path.read_bytes().decode()  # as bytes: reading as text would normalize line ends
        files = parse_json(text)["files"]
        whole = text == checksums_text(files) and all(_is_inside(name) for name in files)
    except (OSError, ValueError, LookupError, TypeError):
        whole = False
    if not whole:
        raise ConfigError(f"{start}file {CHECKSUMS} does not have the content that was written")
    for name, expected in files.items():
        try:
            actual = checksum(folder / name) if (folder / name).is_file() else ""
        except OSError as error:
            raise ConfigError(f"{start}file {name} cannot be read ({error.strerror})") from None
        if not actual:
            raise ConfigError(f"{start}file {name} is missing")
        if actual != expected:
            raise ConfigError(f"{start}file {name} has {actual[:19]}…, allowed: {short(expected)[1:20]}…")


def _is_inside(name: str) -> bool:
    path = Path(name)
    return bool(path.parts) and not path.anchor and ".." not in path.parts


def safetensors_package() -> Any:
    """Return the package safetensors. Raises ConfigError if it is not installed."""
    try:
        import safetensors
    except ImportError:
        raise ConfigError("reading and writing safetensors files needs: pip install safetensors") from None
    return safetensors


def read_safetensors(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of a safetensors file by name, and the metadata of its header.

    Args:
        path: The file.
        kind: What it is called in errors.

    Raises:
        ConfigError: If the file is missing, truncated or not a safetensors file.
    """
    safetensors = safetensors_package()
    try:
        if not path.is_file():  # opening a named pipe would block forever
            raise FileNotFoundError("no such file")
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, ValueError, LookupError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        reason = first_line(error)
    raise ConfigError(f"{kind} is '{path}'; allowed: a whole safetensors file ({reason})")
