"""Short names of the points of a study, for tables, progress and folders."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

Point = dict[str, Any]  # dotted key -> value: one trial of a study


def label(point: Mapping[str, Any]) -> str:
    """A short name of a point, fit for a folder: "strategy=diffusion,eps=8-255"."""
    parts = [f"{key.rpartition('.')[2]}={value_label(value)}" for key, value in point.items()]
    return re.sub(r"[^\w.=,+-]", "-", ",".join(parts), flags=re.ASCII)[:100]


def value_label(value: Any) -> str:
    """A short form of one value."""
    if isinstance(value, dict) and {"kind", "agents"} <= value.keys():
        return f"{value['kind']}{value['agents']}"
    if isinstance(value, dict):
        named = [str(value["name"])] if "name" in value else []
        rest = [f"{k}={value_label(v)}" for k, v in value.items() if k != "name"]
        return " ".join(named + rest)
    if isinstance(value, list):
        return "+".join(value_label(each) for each in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def folder_name(point: Mapping[str, Any]) -> str:
    """The folder of a trial within its study: readable, and different for different points."""
    digest = hashlib.sha256(json.dumps(point, sort_keys=True, default=float).encode()).hexdigest()
    return f"{label(point) or 'trial'}-{digest[:6]}"
