"""What editors and people are told of the VM file's keys, from the same table as the reader."""

from arcsup.spec.codec import Choice, Codec, Flag, Items, Json, Number
from arcsup.spec.struct import Key, OneOf, S, Struct, Words
from arcsup.spec.tables import VM


def vm_schema() -> dict[str, Json]:
    """Return the JSON Schema (draft 2020-12) of a native VM file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "arcsup VM file",
        "description": "One virtual machine: NAME.yaml in the VM directory of arcsup.",
        **VM.schema(),
    }


def vm_reference() -> str:
    """Return all keys of the VM file as a Markdown table: key, type, default, meaning."""
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows += _rows(VM, "")
    return "\n".join(rows) + "\n"


def _rows(struct: Struct[S], prefix: str) -> list[str]:
    rows: list[str] = []
    for key in struct.keys:
        path = prefix + key.name
        rows.append(f"| `{path}` | {_kind(key.codec)} | {_default(struct, key)} | {key.meaning} |")
        inner, mark = key.codec, "."
        if isinstance(inner, Items):
            inner, mark = inner.item, "[]."
        if isinstance(inner, Words):
            inner = inner.other
        if isinstance(inner, Struct):
            rows += _rows(inner, path + mark)
        elif isinstance(inner, OneOf):
            rows += _rows(inner.first, path + mark) + _rows(inner.second, path + mark)
    return rows


def _kind(codec: Codec[object]) -> str:
    if isinstance(codec, Flag):
        return "boolean"
    if isinstance(codec, Number):
        return f"{codec.least} to {codec.most}"
    if isinstance(codec, Choice):
        return codec.kind
    if isinstance(codec, Struct | OneOf):
        return "map"
    if isinstance(codec, Items):
        return f"list: {_kind(codec.item)}"
    if isinstance(codec, Words):
        flags = [str(flag).lower() for flag in codec.flags]
        return ", ".join([*codec.words, *flags, _kind(codec.other)])
    return codec.kind


def _default(struct: Struct[S], key: Key) -> str:
    if key.required:
        return "required"
    default = struct.default_of(key)
    if default is None or isinstance(default, dict):
        return ""
    if isinstance(default, list):
        return "`[{type: user}]`" if default else "`[]`"
    word = str(default).lower() if isinstance(default, bool) else str(default)
    return f"`{word}`" if word else '`""`'
