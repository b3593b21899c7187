"""Files that appear whole or not at all, in a folder of this machine or at any fsspec URL."""

import os
import uuid

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Store:
    """A folder of small trees of files, named by paths with "/"."""

    def __init__(self, url: str) -> None:
        """Name the folder; nothing is written yet.

        Args:
            url: a path, or what fsspec understands, such as "s3://bucket/runs".
        """
        self.url = url
        self._files, self._root = fsspec.core.url_to_fs(url)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, through to the disk before it gets its name.

        Args:
            name: its path in the store; what has that name is replaced.
            data: its content.
        """
        path = self._path(name)
        self._files.makedirs(os.path.dirname(path), exist_ok=True)
        if not isinstance(self._files, LocalFileSystem):
            self._files.pipe_file(path, data)  # object stores show nothing but whole objects
            return
        part = f"{path}.{uuid.uuid4().hex}.part"
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError if there is none."""
        data: bytes = self._files.cat_file(self._path(name))
        return data

    def names(self, folder: str = "") -> list[str]:
        """What lies in a folder, sorted; nothing if there is no such folder."""
        try:
            found = self._files.ls(self._path(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def remove(self, folder: str) -> None:
        """Remove a folder with all that it holds, if it exists."""
        try:
            self._files.rm(self._path(folder), recursive=True)
        except FileNotFoundError:
            pass

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")
