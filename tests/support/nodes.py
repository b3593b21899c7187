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

import ray

# named, so that the raylet does not wait for them: on a busy machine it gives up, and dies
PORTS = ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


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
    """One node: `ray start --block` and what it starts; `within` is a command to put before it."""

    def __init__(self, folder, environment, arguments, within=()):
        self.folder, self.environment = folder, environment
        self.command = [*within, str(Path(sys.executable).with_name("ray")), "start", "--block"]
        self.command += ["--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"]
        self.command += [*arguments, *(f"--{name}-port={free_port()}" for name in PORTS)]
        self.start()

    def start(self):
        self.log = Path(self.folder) / f"node-{secrets.token_hex(3)}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.folder,
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

    def __init__(self, cpus=1, ip=None, **settings):
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # socket names are short
        self.token = self.folder / "token"
        self.token.write_text(secrets.token_hex(32))
        port = free_port()
        self.address = f"{ip or '127.0.0.1'}:{port}"
        # nothing of this process's own: no path to our code, no address of another cluster
        kept = {k: os.environ[k] for k in ("PATH", "HOME", "TMPDIR") if k in os.environ}
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        accelerators = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        self.environment = kept | own | accelerators | settings
        arguments = ["--head", f"--port={port}", f"--num-cpus={cpus}"]
        arguments += [f"--node-ip-address={ip}"] if ip else []
        arguments += ["--include-dashboard=false", f"--temp-dir={self.folder}"]
        arguments += [f"--object-store-memory={200 * 2**20}"]
        self.nodes = [Node(self.folder, self.environment, arguments)]

    def __enter__(self):
        return self.wait()

    def __exit__(self, *_):
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, cpus, ip=None, within=()):
        """One more node, which is there after `wait`; two at a time take each other's names."""
        self.wait()
        arguments = [f"--address={self.address}", f"--num-cpus={cpus}"]
        arguments += [f"--object-store-memory={200 * 2**20}"]
        arguments += [f"--node-ip-address={ip}"] if ip else []
        self.nodes.append(Node(self.folder, self.environment, arguments, within))
        return self.nodes[-1]

    def wait(self, tries=20):
        """Until all nodes are there: Ray gives up on one that takes 30 s, on a busy machine too."""
        while waiting := [node for node in self.nodes if not node.up]:
            for node in waiting:
                if node.process.poll() is not None:
                    tries -= 1
                    assert tries and node is not self.nodes[0], node.log.read_text()
                    node.kill()
                    node.start()
            time.sleep(0.1)
        return self

    def joining(self, **environment):
        """The environment of a process that may join."""
        return os.environ | self.environment | environment


def free_resources():
    have = ray.available_resources()
    return have.get("CPU", 0.0), have.get("GPU", 0.0)


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False
