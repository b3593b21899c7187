"""Every key of an experiment and of a study's search, with default, range and meaning.

`python -m raydist.config` prints them, and `raydist/config/README.md` holds them as `markdown`
writes them.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic_core import PydanticUndefined

from raydist.config.experiment import Experiment
from raydist.config.fields import Table, UserTable, tables_in, union_in
from raydist.config.messages import unknown_key
from raydist.config.search import Search
from raydist.errors import InputError
from raydist.lookup import closest, nearest

OWN = "package.module:function"


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: the dotted name.
        default: the default in a file's syntax; "" where there is none.
        allowed: its range in words.
        meaning: one line.
        members: names of the tables that alone have this key, where a name chooses the table.
        choices: the tables of which the name chooses one: their names, and what they mean.
    """

    name: str
    default: str
    allowed: str
    meaning: str
    members: tuple[str, ...] = ()
    choices: tuple[tuple[tuple[str, ...], str], ...] = ()

    def within(self, prefix: str) -> bool:
        """Tell whether the key is a prefix or lies below it: "loss" holds "loss.beta"."""
        rest = self.name.removeprefix(prefix)
        return not prefix or (self.name.startswith(prefix) and rest[:1] in ("", ".", "["))


def keys(prefix: str = "") -> list[Key]:
    """The keys that begin with a prefix.

    Args:
        prefix: dotted, such as "loss" or "loss.beta"; "" for all keys.

    Returns:
        The keys, in the order of the tables.

    Raises:
        InputError: there is none; names the closest.

    Example:
        >>> [(key.default, key.members) for key in keys("loss.beta")]
        [('6.0', ('trades',)), ('5.0', ('mart',)), ('1.0', ('wasserstein',))]
    """
    known = [*_of(Experiment, ""), *_of(Search, "search.")]
    found = [key for key in known if key.within(prefix)]
    if not found:
        names = dict.fromkeys(key.name for key in known)
        tables = dict.fromkeys(name.rpartition(".")[0] or name for name in names)
        meant = closest(prefix, [*tables, *names])
        places = [meant] if meant else [name for name in tables if "." not in name]
        raise InputError(unknown_key(prefix, nearest(prefix, places, names)))
    return found


def _of(table: type[Table], above: str) -> Iterator[Key]:
    """Yield the keys of one table and of the tables in it."""
    properties = table.model_json_schema()["properties"]
    for name, info in table.model_fields.items():
        inner, by = [*tables_in(info.annotation)], union_in(info)
        rows = "list[" in str(info.annotation)
        meaning = " ".join((info.description or "").split())
        if by is not None:
            default = "" if info.default is None else json.dumps(by.default)
            row = Key(f"{above}{name}.{by.key}", default, "", meaning)
            yield from _union(row, by.key, sorted(inner, key=_is_own))
        elif not inner or rows:
            default = info.get_default(call_default_factory=True)
            allowed = _allowed(properties[name])
            yield Key(f"{above}{name}", _default(default, allowed), allowed, meaning)
            for each in inner:
                yield from _of(each, f"{above}{name}[k].")
        else:
            yield from _of(inner[0], f"{above}{name}.")


def _is_own(member: type[Table]) -> bool:
    return issubclass(member, UserTable)


def _union(row: Key, tag: str, members: list[type[Table]]) -> Iterator[Key]:
    """Yield the keys of tables of which a name chooses one: the name, those of all, the others."""
    docs = [(member.__doc__ or "").partition("\n")[0] for member in members]
    names = [_names(member, tag) for member in members]
    yield replace(row, choices=tuple(zip(names, docs, strict=True)))
    takers: dict[Key, list[str]] = {}
    for member in members:
        for key in _of(member, row.name.removesuffix(tag)):
            if key.name != row.name:
                takers.setdefault(key, []).extend(_labels(member, tag))
    everyone = sum(len(_labels(member, tag)) for member in members)
    found = {key: () if len(some) == everyone else tuple(some) for key, some in takers.items()}
    for key, some in sorted(found.items(), key=lambda item: bool(item[1])):
        yield replace(key, members=key.members or some)


def _names(member: type[Table], tag: str) -> tuple[str, ...]:
    """The names of a table; of one that takes any name those that its field lists."""
    info = member.model_fields[tag]
    if _is_own(member):
        return (OWN,)
    return get_args(info.annotation) or (*re.split(r",\s+", info.description or "any other"),)


def _labels(member: type[Table], tag: str) -> list[str]:
    """The names of a table in few words."""
    own = "your own" if _is_own(member) else "any other"
    return [*get_args(member.model_fields[tag].annotation)] or [own]


def _default(value: object, allowed: str) -> str:
    """A default as a file has it; "" where there is none."""
    if value is None:
        return ""
    if value is PydanticUndefined:
        return "required"
    grey = value * 255 if isinstance(value, float) and "pixel range" in allowed else 0.5
    return f'"{grey:.0f}/255"' if grey and abs(grey - round(grey)) < 1e-9 else json.dumps(value)


def _allowed(schema: dict[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    kind = schema.get("type")
    if "anyOf" in schema:
        return " or ".join(_allowed(each) for each in schema["anyOf"] if each != {"type": "null"})
    if "const" in schema or "enum" in schema:
        return ", ".join(json.dumps(name) for name in schema.get("enum", [schema.get("const")]))
    if kind == "array":
        inner = schema["items"]
        return "list of tables" if "$ref" in inner else f"list: {_allowed(inner)}"
    if kind in ("integer", "number"):
        fraction = schema.get("format") == "budget"
        noun = "whole number" if kind == "integer" else "number"
        return "fraction of the pixel range" if fraction else f"{noun}{_bounds(schema)}"
    return {"boolean": "true, false", "string": "text", "object": "table"}.get(str(kind), "any")


def _bounds(schema: dict[str, Any]) -> str:
    """The bounds of a number: " ≥ 0", " in (0, 1]" or none."""
    least, most = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if schema["type"] == "integer" and above is not None:
        least, above = above + 1, None
    low, high = (above if least is None else least), (below if most is None else most)
    if high is None:
        return "" if low is None else f" {'>' if least is None else '≥'} {low:g}"
    return f" in {'(' if least is None else '['}{low:g}, {high:g}{')' if most is None else ']'}"


def markdown() -> str:
    """The keys as sections of a README, one for each table.

    Returns:
        Markdown, with a line break at its end.
    """
    known = keys()
    alone = [key for key in known if not re.search(r"[.\[]", key.name)]
    text = ["## The experiment itself", "", *_rows(alone)]
    tables = dict.fromkeys(key.name.partition(".")[0] for key in known if key not in alone)
    for table in tables:
        info = Experiment.model_fields.get(table)
        title = (Search.__doc__ or "") if info is None else (info.description or "")
        found = [key for key in known if key.name != table and key.within(table)]
        text += ["", f"## {table}", "", title.partition("\n")[0], "", *_rows(found)]
        for key in found:
            if key.choices:
                text += ["", f"| `{key.name}` | chooses |", "|---|---|"]
                text += [f"| {_cell(names)} | {meaning} |" for names, meaning in key.choices]
    return "\n".join(text) + "\n"


def _rows(found: Iterable[Key]) -> list[str]:
    rows = ["| key | default | range | meaning |", "|---|---|---|---|"]
    for key in found:
        of = f"Of {_cell(key.members)}. " if key.members else ""
        default = f"`{key.default}`" if key.default not in ("", "required") else key.default
        allowed = "one of these" if key.choices else key.allowed
        rows.append(f"| `{key.name}` | {default} | {allowed} | {of}{key.meaning} |")
    return rows


def _cell(names: Iterable[str]) -> str:
    """Names in a table of Markdown."""
    return ", ".join(name if " " in name else f"`{name}`" for name in names)
