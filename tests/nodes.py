"""A Ray cluster of several nodes on this machine, each a raylet with its own resources.

The nodes are processes of their own, started as a user would (`ray start`), with a token of their
own, and killed as a machine that loses its power: all of its processes at once.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# `ray start`, which gives a node 30 s to come up, with the patience that a busy machine needs
RAY = """
import time
from ray._private import services
from ray.scripts.scripts import main

once, end = services.get_node, time.monotonic() + 300

def get_node(*args):
    while True:
        try:
            return once(*args)
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)

services.get_node = get_node
main()
"""


def below(root):
    """The process and all that descend from it: id -> title."""
    children, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:  # gone
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state != "Z":
            children.setdefault(int(parent), []).append(int(folder.name))
            titles[int(folder.name)] = title
    found, open_ = {}, [root]
    while open_:
        pid = open_.pop()
        if pid in titles:
            found[pid] = titles[pid]
        open_ += children.get(pid, [])
    return found


class Node:
    """One node: `ray start --block` and what it starts."""

    def __init__(self, folder, environment, arguments):
        command = [
            sys.executable,
            "-c",
            RAY,
            "start",
            "--block",
            "--disable-usage-stats",
            *arguments,
        ]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        self.log = Path(folder) / f"node-{secrets.token_hex(3)}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def up(self):
        return "Ray runtime started" in self.log.read_text()

    def processes(self):
        return below(self.process.pid)

    def kill(self):
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


class Cluster:
    """A head and other nodes; a context manager that ends them all."""

    def __init__(self, cpus=1):
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # socket names are short
        self.token = self.folder / "token"
        self.token.write_text(secrets.token_hex(32))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        # nothing of this process's own: no path to our code, no address of another cluster
        kept = {k: os.environ[k] for k in ("PATH", "HOME", "TMPDIR") if k in os.environ}
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        own |= {"RAY_agent_register_timeout_ms": "300000"}
        accelerators = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        self.environment = kept | own | accelerators
        port = self.address.rpartition(":")[2]
        arguments = ["--head", f"--port={port}", f"--num-cpus={cpus}"]
        arguments += ["--include-dashboard=false", f"--temp-dir={self.folder}"]
        arguments += [f"--object-store-memory={200 * 2**20}"]
        self.nodes = [Node(self.folder, self.environment, arguments)]

    def __enter__(self):
        return self.wait()

    def __exit__(self, *_):
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, cpus):
        """One more node, which is there after `wait`."""
        arguments = [f"--address={self.address}", f"--num-cpus={cpus}"]
        arguments += [f"--object-store-memory={200 * 2**20}"]
        self.nodes.append(Node(self.folder, self.environment, arguments))
        return self.nodes[-1]

    def wait(self):
        """Until all nodes are there."""
        while not all(node.up for node in self.nodes):
            for node in self.nodes:
                assert node.process.poll() is None, node.log.read_text()
            time.sleep(0.1)
        return self

    def joining(self, **environment):
        """The environment of a process that may join."""
        return os.environ | self.environment | environment
