"""Which processes a process has started."""

from pathlib import Path


def below(root: int) -> dict[int, str]:
    """The processes that descend from one: id -> title, such as "ray::Actor.step"."""
    parents, titles = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            title = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:  # gone
            continue
        if state != "Z":
            parents[int(entry.name)], titles[int(entry.name)] = int(parent), title
    found = {}
    for pid, title in titles.items():
        above = parents[pid]
        while above in parents and above != root:
            above = parents[above]
        if above == root:
            found[pid] = title
    return found
