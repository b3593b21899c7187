"""One agent's part of a snapshot: all state that (seed, agent, round) does not determine."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from raydist.engine.agent.agent import Agent, Message
from raydist.engine.snapshot.manifest import (
    SnapshotError,
    checksum,
    folder_of,
    read_checked,
    receipt_of,
)
from raydist.storage import Storage, agent_file


@dataclass(frozen=True)
class Shard:
    """One agent's part of a snapshot.

    Attributes:
        tensors: the tensors by name, on the CPU, in memory of their own.
        numbers: the rest of the state, as JSON values.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


def capture(agent: Agent) -> Shard:
    """Copy the state of an agent after its last round, which must be closed."""
    optimiser = agent.local.optimiser.state_dict()["state"].get(0, {})
    found = {"w": agent.flat.w.detach()}
    found |= {f"buffer.{name}": value for name, value in agent.flat.module.named_buffers()}
    found |= {f"optim.{name}": v for name, v in optimiser.items() if isinstance(v, Tensor)}
    found |= {f"period.{i}": state for i, state in enumerate(agent.snapshots)}
    numbers: dict[str, Any] = {
        "round": agent.round,
        "agent": agent.spec.agent,
        "upsilon": agent.local.distributional.upsilon,
        "periods": len(agent.snapshots),
        # in the order in which they are combined
        "optim": [(name, None if isinstance(v, Tensor) else v) for name, v in optimiser.items()],
    }
    if agent.average is not None:
        found["average"], numbers["averaged"] = agent.average.value, agent.average.count
    return Shard({name: value.to("cpu", copy=True) for name, value in found.items()}, numbers)


def apply(agent: Agent, shard: Shard) -> None:
    """Give an agent a state that `capture` took of it or of its predecessor.

    Args:
        agent: the agent, in any state.
        shard: the new state, which is not changed.

    Raises:
        SnapshotError: if the shard is another agent's; the manifest checks the experiment.
    """
    numbers, tensors = shard.numbers, shard.tensors
    if numbers["agent"] != agent.spec.agent:
        raise SnapshotError(f"it is of agent {numbers['agent']}")
    here = {name: tensor.to(agent.device, copy=True) for name, tensor in tensors.items()}
    with torch.no_grad():
        agent.flat.w.copy_(here["w"])
        for name, buffer in agent.flat.module.named_buffers():
            buffer.copy_(here[f"buffer.{name}"])
    state = {
        name: tensors[f"optim.{name}"].clone() if f"optim.{name}" in tensors else value
        for name, value in numbers["optim"]
    }
    groups = agent.local.optimiser.state_dict()["param_groups"]
    agent.local.optimiser.load_state_dict(
        {"state": {0: state} if state else {}, "param_groups": groups}
    )
    agent.local.distributional.upsilon = numbers["upsilon"]
    agent.snapshots = [here[f"period.{i}"] for i in range(numbers["periods"])]
    if agent.average is not None:
        agent.average.value, agent.average.count = here["average"], numbers["averaged"]
    agent.round, agent.open, agent.seconds_combine = numbers["round"], False, None


def pack(shard: Shard) -> bytes:
    """Turn a shard into the bytes of a safetensors file."""
    # NaN and infinities stay what they are: Python reads back what it wrote
    return save_tensors(shard.tensors, {"numbers": json.dumps(shard.numbers)})


def unpack(data: bytes) -> Shard:
    """Turn the bytes of `pack` back into the shard.

    Args:
        data: the bytes.

    Returns:
        The shard.

    Raises:
        SnapshotError: if the bytes are no shard.
    """
    try:
        (size,) = struct.unpack_from("<Q", data)
        numbers = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["numbers"])
        return Shard(load_tensors(data), numbers)
    except (SafetensorError, struct.error, ValueError, KeyError) as error:
        raise SnapshotError(f"not a shard: {error}") from error


class StoredAgent(Agent):
    """An agent that writes its state to files in the background, and restores it from them."""

    _writer: Thread | None = None
    _trouble = ""

    def snapshot(self, n: int, url: str) -> None:
        """Begin to write the state after round n; the agent goes on once the state is copied.

        Args:
            n: the round, finished.
            url: the store of the run's snapshots.

        Raises:
            RuntimeError: if round n is not finished.
        """
        if self.open or n != self.round:
            raise RuntimeError(f"{self._file} cannot be written: round {n} is not just finished")
        self.settle()
        args = capture(self), url, f"{folder_of(n)}/{self._file}"
        self._writer = Thread(target=self._write, args=args, daemon=True)
        self._writer.start()

    def settle(self) -> str:
        """Wait until no write is in progress.

        Returns:
            The reason why the last part could not be written, or "".
        """
        if self._writer is not None:
            self._writer.join()
        return self._trouble

    def _write(self, shard: Shard, url: str, name: str) -> None:
        """Write a shard, and then the receipt that proves it complete."""
        self._trouble = ""
        try:
            data, store = pack(shard), Storage(url)
            store.write(name, data)
            receipt = json.dumps({"sha256": checksum(data)}).encode()
            store.write(receipt_of(name), receipt, durable=False)  # the manifest is what counts
        except Exception as error:  # `settle` tells of it, because nobody waits for this thread
            self._trouble = f"{self._file}: {type(error).__name__}: {error}"

    def restore(self, n: int, url: str, checksums: Sequence[str]) -> str:
        """Go back, or forward, to the state after round n.

        Args:
            n: the round of the snapshot.
            url: the store of the run's snapshots.
            checksums: the checksums of all agents' parts.

        Returns:
            "", or why the snapshot cannot be used; the agent is then at no valid round.
        """
        self.settle()
        sha256 = checksums[self.spec.agent]
        try:
            apply(self, unpack(read_checked(Storage(url), folder_of(n), self._file, sha256)))
        except (SnapshotError, KeyError, RuntimeError) as error:  # of another shape, too
            return str(error)
        return ""

    def save_models(self, folder: str, names: Sequence[str], *centroids: Message) -> None:
        """Write the agent's model; the first agent writes the centroids' as well.

        Args:
            folder: a path or an fsspec URL.
            names: the files of the centroids.
            *centroids: the centroids' vectors.
        """
        self.save(folder, self._file)
        if self.spec.agent == 0:
            for name, centroid in zip(names, centroids, strict=True):
                self.save(folder, name, centroid)

    @property
    def _file(self) -> str:
        return agent_file(self.spec.agent)
