# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Extension of griffe, which reads the docstrings for the reference, for the style of transformers."""

import re
from collections.abc import Iterator
from contextlib import suppress

import griffe


REFERENCE = re.compile(r"\[`([\w.]+)`\](?![\[(])")
TYPE = re.compile(r"`([^`]+)`(?:, \*optional\*(?:, defaults to (.+))?)?")
logger = griffe.get_logger("jet_hf")


class TransformersStyle(griffe.Extension):
    """
    Link references such as [`JetModel`], and split the types of arguments such as `seed (int, *optional*, defaults to
    0)` from their defaults.
    """

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """Rewrite all docstrings of a package."""
        objects = list(members_of(pkg))
        paths = {item.path: item.target_path if item.is_alias and item.inherited else item.path for item in objects}
        for item in objects:
            if item.is_alias or item.docstring is None:
                continue
            text = item.docstring.value.replace("```python\n>>>", "```pycon\n>>>")
            item.docstring.value = REFERENCE.sub(lambda match, item=item: link(match[1], item, paths), text)
            for section in item.docstring.parsed:
                if section.kind is griffe.DocstringSectionKind.parameters:
                    for parameter in section.value:
                        if parameter.annotation is None and parameter.name in item.members:
                            parameter.annotation = item.members[parameter.name].annotation
                        split_type(parameter, item.docstring)


def members_of(item: griffe.Object) -> Iterator[griffe.Object | griffe.Alias]:
    """Yield an object and all that it contains or inherits."""
    yield item
    for member in (item.all_members if item.is_class else item.members).values():
        if member.is_alias:
            yield member
        else:
            yield from members_of(member)


def link(name: str, item: griffe.Object, paths: dict[str, str]) -> str:
    """Return a link to the object that a docstring names, which is plain code if the object is not on the site."""
    first, _, rest = name.partition(".")
    path = None
    with suppress(griffe.NameResolutionError):
        path = ".".join(filter(None, [item.resolve(first), rest]))
    if path not in paths:
        ends = sorted((path for path in paths if f".{path}".endswith(f".{name}")), key=len)
        if not ends:
            logger.warning(f"{item.path} refers to `{name}`, which is no name of the package")
            return f"`{name}`"
        path = ends[0]
    return f'<autoref optional identifier="{paths[path]}"><code>{name}</code></autoref>'


def split_type(parameter: griffe.DocstringParameter, docstring: griffe.Docstring) -> None:
    """Read the type and the default of an argument in the style of transformers."""
    if not isinstance(parameter.annotation, str):
        return
    if match := TYPE.fullmatch(parameter.annotation):
        parameter.annotation = griffe.parse_docstring_annotation(match[1], docstring)
        if "*optional*" in match[0]:
            parameter.value = (match[2] or "None").replace("`", "")
    else:
        parameter.annotation = re.sub("[`*]", "", parameter.annotation)
