# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
OpenAPI description of the public functions.

It replaces that of Gradio, in which files are strings, numbers have no bounds, no value is required, and results are
prose.
"""

import gradio as gr
from components import ChoiceInput, ChoiceMenu, ClassMenu, FileInput, ImageInput, NumberField, NumberInput
from guard import API
from jet_demo import ALL_CLASSES, MAX_CLASS
from uploads import MAX_FILE_SIZE

import jet_hf


ABOUT = """\
A call takes two requests: the first returns the number of an event, and the second its result, as server-sent events.
Images and files are uploaded before, and are kept for an hour."""
STREAM = """\
Server-sent events. The last one is `complete`, with the result as JSON ({result}), or `error`, with a JSON object
whose `error` is a sentence. Events before it, such as `heartbeat`, can be ignored."""


def _reference(name: str) -> dict:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(schema: dict, description: str, media_type: str = "application/json") -> dict:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _refusals(descriptions: dict[str, str]) -> dict:
    """Return the responses of refused requests, from descriptions by status."""
    return {status: _content(_reference("Refusal"), description) for status, description in descriptions.items()}


def _uploaded(description: str) -> dict:
    return {
        "type": "object",
        "description": description,
        "properties": {
            "path": {"type": "string", "description": "Path that the upload was answered with."},
            "meta": {"const": {"_type": "gradio.FileData"}},
        },
        "required": ["path", "meta"],
    }


SCHEMAS = {
    "Refusal": {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]},
    "UploadedImage": _uploaded("PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF file."),
    "UploadedFile": _uploaded("File of the function `compress`."),
    "Event": {"type": "object", "properties": {"event_id": {"type": "string"}}, "required": ["event_id"]},
    "File": {
        "type": "object",
        "properties": {"url": {"type": "string", "format": "uri", "description": "Address of the file."}},
        "required": ["url"],
    },
    "Gallery": {
        "type": "array",
        "items": {"type": "object", "properties": {"image": _reference("File")}, "required": ["image"]},
    },
}
UPLOAD = {
    "summary": "Upload files.",
    "operationId": "upload",
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                            "description": f"At most {MAX_FILE_SIZE // 2**20} MB each.",
                        }
                    },
                    "required": ["files"],
                }
            }
        },
    },
    "responses": {
        "200": _content({"type": "array", "items": {"type": "string"}}, "Path of each file."),
        **_refusals(
            {
                "400": "The request is no form with files.",
                "413": "The files are too large.",
                "429": "A limit of the stored files or simultaneous uploads is reached.",
            }
        ),
    },
}


def _input_schema(component: gr.blocks.Block) -> dict:
    if isinstance(component, ImageInput):
        return _reference("UploadedImage")
    if isinstance(component, FileInput):
        return _reference("UploadedFile")
    if isinstance(component, ClassMenu):
        return {"type": "integer", "minimum": ALL_CLASSES, "maximum": MAX_CLASS}
    if isinstance(component, NumberInput | NumberField):
        kind = "integer" if component.precision == 0 else "number"
        return {"type": kind, "minimum": component.minimum, "maximum": component.maximum}
    if isinstance(component, ChoiceInput | ChoiceMenu):
        return {"enum": [choice for _, choice in component.choices]}
    raise TypeError(f"an input of a public function must have a description here, got {type(component).__name__}.")


def _output_schema(component: gr.blocks.Block) -> dict:
    if isinstance(component, gr.Image | gr.File):
        return _reference("File")
    if isinstance(component, gr.Gallery):
        return _reference("Gallery")
    if isinstance(component, gr.JSON):
        return {"type": "object"}
    raise TypeError(f"an output of a public function must have a description here, got {type(component).__name__}.")


def _call(function: gr.blocks.BlockFunction, info: dict) -> dict:
    """Return the operation that starts a call, from Gradio's information on the function."""
    name, properties, required = function.api_name, {}, []
    for component, parameter in zip(function.inputs, info["parameters"], strict=True):
        schema = _input_schema(component)
        if parameter["parameter_has_default"]:
            schema = schema | {"default": parameter["parameter_default"]}
        else:
            required.append(parameter["parameter_name"])
        properties[parameter["parameter_name"]] = schema
    values = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    result = {"operationId": f"{name}_result", "parameters": {"event_id": "$response.body#/event_id"}}
    started = _content(_reference("Event"), "Number of the event.") | {"links": {"result": result}}
    return {
        "summary": info["description"].split(". ")[0].rstrip(".") + ".",
        "description": info["description"],
        "operationId": name,
        "requestBody": {"required": True, "content": {"application/json": {"schema": values}}},
        "responses": {
            "200": started,
            **_refusals(
                {
                    "400": "The body is no JSON.",
                    "413": "The body is too large.",
                    "422": "The body is no object of these values.",
                }
            ),
        },
    }


def _result(name: str) -> dict:
    """Return the operation that reads the result of a call."""
    schema = {"type": "string", "description": STREAM.format(result=f"#/components/schemas/{name}_result")}
    event = {"name": "event_id", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "summary": f"Read the result of `{name}`.",
        "operationId": f"{name}_result",
        "parameters": [event],
        "responses": {
            "200": _content(schema, "Events until the result.", "text/event-stream"),
            **_refusals({"404": "There is no such call, or its result has been read or dropped."}),
        },
    }


def describe(blocks: gr.Blocks) -> dict:
    """Return the description of the public functions of a page, an OpenAPI 3.1 document."""
    information = blocks.get_api_info()["named_endpoints"]
    public = [function for function in blocks.fns.values() if function.api_visibility == "public"]
    paths, schemas = {f"{API}/upload": {"post": UPLOAD}}, dict(SCHEMAS)
    for function in public:
        name, outputs = function.api_name, [_output_schema(output) for output in function.outputs]
        size = len(outputs)
        schemas[f"{name}_result"] = {"type": "array", "prefixItems": outputs, "minItems": size, "maxItems": size}
        paths[f"{API}/call/v2/{name}"] = {"post": _call(function, information[f"/{name}"])}
        paths[f"{API}/call/{name}/{{event_id}}"] = {"get": _result(name)}
    return {
        "openapi": "3.1.0",
        "info": {"title": blocks.title, "description": ABOUT, "version": jet_hf.__version__},
        "paths": paths,
        "components": {"schemas": schemas},
    }
