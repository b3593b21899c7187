"""Files that appear whole or not at all, in a folder of this machine or at any fsspec URL."""

import os
import re
import uuid
from pathlib import Path

from raydist.errors import InputError, MachineError

LONGEST_NAME = 255  # bytes, on every file system in use


def locate(path: str | os.PathLike[str]) -> str:
    """The place of something: a URL as it is, or the absolute path on this machine.

    Args:
        path: a path, or a URL; those of "file" are paths of this machine.

    Returns:
        The URL or the path.

    Raises:
        InputError: if it names no folder.

    Example:
        >>> locate("s3://bucket/runs/"), locate("file:///runs"), locate("file://localhost/runs")
        ('s3://bucket/runs', '/runs', '/runs')
    """
    _check_form(os.fspath(path))
    text = re.sub(r"^(file|local):(//(localhost(?=/))?|(?=/))", "", os.fspath(path))
    kind, url, rest = text.partition("://")
    if url and not rest.strip("/"):
        raise InputError(f"{text} names no folder: write {kind}://bucket/runs")
    try:
        return text.rstrip("/") if url else str(Path(text).expanduser().absolute())
    except RuntimeError as error:  # ~ of somebody who is not known here
        raise InputError(f"{text} cannot be found: {error}") from error


def _check_form(path: str) -> None:
    """A path that any storage could take."""
    if not path:
        raise InputError('"" names no folder: write a path or a URL')
    if "::" in path:
        raise InputError(f"{path} chains file systems with ::, expected one path or URL")
    if "\0" in path:
        raise InputError(f"{path!r} holds a zero byte, expected a path or a URL")
    longest = max(path.split("/"), key=lambda name: len(os.fsencode(name)))
    if len(os.fsencode(longest)) > LONGEST_NAME:
        raise InputError(
            f"{longest[:20]}... is a name of {len(os.fsencode(longest))} bytes, expected at most "
            f"{LONGEST_NAME}: write a shorter path"
        )


def _write_whole(path: str, data: bytes, durable: bool) -> None:
    """Write a file of this machine, and give it its name when it is whole."""
    part = f"{path}.{uuid.uuid4().hex}.part"
    try:
        with open(part, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


class Storage:
    """A folder of small trees of files, named by paths with "/"."""

    def __init__(self, url: str | os.PathLike[str]) -> None:
        """Name the folder; nothing is written yet.

        Args:
            url: a path, or a URL that fsspec understands, such as "s3://bucket/runs".

        Raises:
            InputError: if there is no file system of that name, or its package is not installed.
        """
        import fsspec  # takes a while, and --help names no files

        self.url = locate(url)
        self.name = self.url.rpartition("/")[2]
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.url)
        except Exception as error:  # each kind of storage has its own; some connect at once
            raise InputError(f"{self.url} cannot be reached: {error}") from error

    @property
    def local(self) -> bool:
        """Tell whether it is a folder of this machine (or one that is mounted there)."""
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self.files, LocalFileSystem)

    def under(self, name: str) -> "Storage":
        """A folder below this one."""
        return Storage(f"{self.url}/{name}")

    def write(self, name: str, data: bytes, durable: bool = True) -> None:
        """Write a file.

        Args:
            name: its path in the store; what has that name is replaced.
            data: its content.
            durable: whether it reaches the disk before it gets its name, if the disk is local.

        Raises:
            MachineError: if it cannot be written; nothing of it is left behind.
        """
        path = self._path(name)
        try:
            self.files.makedirs(os.path.dirname(path), exist_ok=True)
            if self.local:
                _write_whole(path, data, durable)
            else:
                self.files.pipe_file(path, data)  # object stores show nothing but whole objects
        except OSError as error:
            told = MachineError.of(f"{self.url}/{name} cannot be written", error)
            raise told from error

    def create(self, name: str, data: bytes) -> None:
        """Write a file that is not there yet; FileExistsError if it is.

        One of several at a time succeeds where the storage can tell (this machine, S3).
        """
        path = self._path(name)
        self.files.makedirs(os.path.dirname(path), exist_ok=True)
        if self.local:
            with open(path, "xb") as file:
                file.write(data)
        else:
            self.files.pipe_file(path, data, mode="create")

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError if there is none."""
        data: bytes = self.files.cat_file(self._path(name))
        return data

    def find(self, name: str) -> bytes | None:
        """The content of a file, None if there is none."""
        try:
            return self.read(name)
        except (FileNotFoundError, NotADirectoryError):  # or its folder is a file
            return None

    def modified(self, name: str) -> float:
        """The time at which a file was written, in seconds since 1970."""
        when: float = self.files.modified(self._path(name)).timestamp()
        return when

    def names(self, folder: str = "") -> list[str]:
        """The names in a folder, sorted; none if there is no such folder."""
        try:
            found = self.files.ls(self._path(folder), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that it holds, if it exists."""
        try:
            self.files.rm(self._path(name), recursive=True)
        except FileNotFoundError:
            pass

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")


def agent_file(k: int) -> str:
    """The file name of agent k's weights, or of its part of a snapshot."""
    return f"agent-{k:03d}.safetensors"
