"""The consistent state of all agents after a closed round, on disk.

Each snapshot is a folder, `round-000120/`. Each agent writes `agent-003.safetensors` (weights,
buffers, optimiser, averages) and a receipt `agent-003.json`. `rounds.parquet` holds the
measurements so far that no closed part of the trial's rounds holds. `manifest.json`, written last,
holds the checksum of each file. A snapshot counts if and only if its manifest does. All other state
is a function of (seed, agent, round). No file is a pickle.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from raydist.storage import Storage

MANIFEST, HISTORY = "manifest.json", "rounds.parquet"


class SnapshotError(ValueError):
    """Raised if a snapshot or a part of it cannot be used; its one line says why."""


def read_checked(store: Storage, folder: str, name: str, sha256: str) -> bytes:
    """Read a file of a snapshot, and check it.

    Args:
        store: the store.
        folder: the snapshot's folder.
        name: the file's name.
        sha256: the file's checksum in the manifest.

    Returns:
        The content.

    Raises:
        SnapshotError: if the content differs from what was written.
    """
    try:
        data = store.read(f"{folder}/{name}")
    except OSError as error:
        raise SnapshotError(f"{name} cannot be read ({type(error).__name__})") from error
    if checksum(data) != sha256:
        raise SnapshotError(f"{name} is not what was written: its checksum differs")
    return data


def write_manifest(store: Storage, folder: str, body: Mapping[str, Any]) -> None:
    """Make a snapshot count.

    Args:
        store: the store.
        folder: the snapshot's folder.
        body: the content; `files` holds the checksums, `config` the hash of the experiment.
    """
    text = json.dumps(body)
    whole = {"sha256": checksum(text.encode()), "body": text}
    store.write(f"{folder}/{MANIFEST}", json.dumps(whole, indent=1).encode())


def read_manifest(store: Storage, folder: str, config: str) -> dict[str, Any]:
    """Read the manifest that `write_manifest` wrote.

    Args:
        store: the store.
        folder: the snapshot's folder.
        config: the hash of the experiment.

    Returns:
        The body.

    Raises:
        SnapshotError: if the manifest is missing, broken, or of another experiment.
    """
    try:
        whole = json.loads(store.read(f"{folder}/{MANIFEST}"))
        text, sha256 = whole["body"], whole["sha256"]
    except FileNotFoundError:
        raise SnapshotError("it was not completed: it has no manifest") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"its manifest is damaged ({type(error).__name__})") from error
    if not isinstance(text, str) or checksum(text.encode()) != sha256:
        raise SnapshotError("its manifest is damaged: its checksum differs")
    body: dict[str, Any] = json.loads(text)
    if body["config"] != config:
        raise SnapshotError(f"it is of the experiment {body['config']}, this is {config}")
    return body


def checksum(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def folder_of(n: int) -> str:
    """The folder of the snapshot after round n."""
    return f"round-{n:06d}"


def receipt_of(name: str) -> str:
    """Name of the file with the checksum of an agent's shard."""
    return name.removesuffix(".safetensors") + ".json"
