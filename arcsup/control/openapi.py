"""The OpenAPI 3.1 description of the control socket, made from the table of routes."""

import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from attrs import field, frozen

from arcsup.control.requests import Handler
from arcsup.control.shapes import ErrorJson

_SCALARS: dict[object, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
}


@frozen
class Operation:
    """One route. ``answer`` is a shape of shapes.py, or a media type; ``query`` name -> meaning."""

    method: Literal["GET", "POST"]
    path: str
    summary: str
    handler: Handler
    answer: object
    body: object = None
    query: Mapping[str, str] = field(factory=dict)


def describe_api(operations: Iterable[Operation], version: str) -> dict[str, Any]:
    """Return the OpenAPI document."""
    schemas: dict[str, Any] = {}
    error = {"application/json": {"schema": _describe(ErrorJson, schemas)}}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described: dict[str, Any] = {
            "summary": operation.summary,
            "operationId": _identify(operation),
            "parameters": _describe_parameters(operation),
            "responses": {
                "2XX": {
                    "description": "done",
                    "content": _describe_content(operation.answer, schemas),
                },
                "default": {"description": "refused or failed", "content": error},
            },
        }
        if operation.body is not None:
            content = _describe_content(operation.body, schemas)
            # A body of which every key may be left out may be left out itself.
            required = bool(getattr(operation.body, "__required_keys__", True))
            described["requestBody"] = {"required": required, "content": content}
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "arcsup",
            "version": version,
            "description": "HTTP on the control socket RUN/arcsup.sock; a supervisor of QEMU VMs.",
        },
        "servers": [{"url": "http://localhost"}],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _identify(operation: Operation) -> str:
    words = [word for word in operation.path.strip("/").split("/") if word != "v1"]
    return "_".join([operation.method.lower(), *(word.strip("{}").split(".")[0] for word in words)])


def _describe_parameters(operation: Operation) -> list[dict[str, Any]]:
    in_path = [
        {"name": part.strip("{}"), "in": "path", "required": True, "schema": {"type": "string"}}
        for part in operation.path.split("/")
        if part.startswith("{")
    ]
    in_query = [
        {"name": name, "in": "query", "description": meaning, "schema": {"type": "string"}}
        for name, meaning in operation.query.items()
    ]
    return [*in_path, *in_query]


def _describe_content(shape: object, schemas: dict[str, Any]) -> dict[str, Any]:
    if isinstance(shape, str):
        return {shape: {}}
    return {"application/json": {"schema": _describe(shape, schemas)}}


def _describe(shape: object, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a type of shapes.py; TypedDicts go to ``schemas`` by name."""
    if shape in _SCALARS:
        return _SCALARS[shape]
    if isinstance(shape, type) and is_typeddict(shape):
        name = shape.__name__.removesuffix("Json")
        if name not in schemas:
            properties: dict[str, Any] = {}
            schemas[name] = {"type": "object", "properties": properties}
            for key, hint in get_type_hints(shape).items():
                properties[key] = _describe(hint, schemas)
            required: frozenset[str] = getattr(shape, "__required_keys__", frozenset())
            schemas[name]["required"] = [key for key in properties if key in required]
        return {"$ref": f"#/components/schemas/{name}"}
    origin, arguments = get_origin(shape), get_args(shape)
    if origin is list:
        return {"type": "array", "items": _describe(arguments[0], schemas)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _describe(arguments[1], schemas)}
    if origin in {Union, types.UnionType}:
        return {"anyOf": [_describe(argument, schemas) for argument in arguments]}
    raise TypeError(f"no JSON Schema for {shape!r}")
