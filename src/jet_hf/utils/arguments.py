# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Dataclasses as command-line arguments: help texts and bounds in the fields, one-line usage errors."""

import argparse
import dataclasses
import difflib
import inspect
import operator
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin


Arguments = TypeVar("Arguments", bound="BoundedArguments")

BOUNDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}
TRUE, FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


class UsageError(ValueError):
    """A command line that does not fit its command."""


def argument(help: str, default: Any = dataclasses.MISSING, **metadata) -> Any:
    """
    Declare a dataclass field that is a command-line argument.

    Args:
        help: Line in `--help`.
        default: Default value, a tuple for a `Sequence`; without one, the argument is required.
        metadata: Bounds of a number, or of each number of a list, by the names in `BOUNDS`; `choices`;
            `positional=True`; `short`, such as "-o".
    """
    # Dataclasses allow a required field after inherited ones with defaults only as a keyword.
    is_required = default is dataclasses.MISSING
    return dataclasses.field(default=default, kw_only=is_required, metadata={"help": help, **metadata})


@dataclasses.dataclass
class BoundedArguments:
    """
    Base class of argument dataclasses; their docstring is the text of `--help`.

    Raises:
        ValueError: for a number outside of the bounds of its field; the message names the field.
    """

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value, is_whole = getattr(self, item.name), value_type(item.type)[0] is int
            for bound, holds in BOUNDS.items():
                limit = item.metadata.get(bound)
                if value is None or limit is None:
                    continue
                for number in value if isinstance(value, list | tuple) else [value]:
                    if not holds(number, limit) or (is_whole and not isinstance(number, int)):
                        words = ("a whole number of " if is_whole else "") + bound.replace("_", " ")
                        raise ValueError(f"`{item.name}` must be {words} {limit}, got {number}.")

    def changed(self, names: Iterable[str]) -> list[str]:
        """Return those of the fields of these names whose values are not the defaults."""
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        return [name for name in names if getattr(self, name) != defaults[name]]


def value_type(annotation: Any) -> tuple[type, bool]:
    """
    Return the type of a value of a field, which may be optional, and whether the field can hold a list of values.

    A field of the type `int | list[int]` holds a single value as such.
    """
    if isinstance(annotation, UnionType):
        parts = [part for part in get_args(annotation) if part is not NoneType]
        annotation = next((part for part in parts if get_origin(part) is list), parts[0])
    return (get_args(annotation)[0], True) if get_origin(annotation) in (list, Sequence) else (annotation, False)


class CommandParser(argparse.ArgumentParser):
    """
    Parser of the arguments of a command.

    Flags are accepted with underscores and with hyphens. An abbreviated or unknown flag is an error that names the
    nearest flag.

    Args:
        arguments: Dataclass of the command.
        prog: Command as the user typed it.
        groups: Headings of `--help`, with dataclasses that together have the fields of `arguments`.
    """

    def __init__(self, arguments: type, prog: str, groups: Mapping[str, type] | None = None):
        items = dataclasses.fields(arguments)
        words = [prog, *(item.name.upper() for item in items if "positional" in item.metadata), "[--flag value ...]"]
        super().__init__(
            prog=prog,
            usage=" ".join(words),
            description=inspect.cleandoc(arguments.__doc__ or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.required = [item.name for item in items if item.default is dataclasses.MISSING]
        for title, group in (groups or {"arguments": arguments}).items():
            container = self.add_argument_group(title)
            # Required arguments come first.
            for item in sorted(dataclasses.fields(group), key=lambda item: item.name not in self.required):
                _add_field(container.add_argument, item)

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """
        Return the values of the arguments by name.

        Raises:
            UsageError: for an unknown flag, a missing argument, or a value of the wrong type; the message names it.
            SystemExit: after `--help`.
        """
        namespace, unknown = self.parse_known_args([_with_underscores(word) for word in argv])
        values = vars(namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            close = difflib.get_close_matches(name.lstrip("-"), values, n=1)
            kind = "flag" if name.startswith("-") else "argument"
            self.error(f"unknown {kind} {name}" + (f", did you mean --{close[0]}?" if close else ""))
        for name in self.required:
            if values[name] is dataclasses.MISSING:
                self.error(f"--{name} is required")
        return values

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def parse(arguments: type[Arguments], argv: list[str], prog: str) -> Arguments:
    """
    Parse a command line into a dataclass.

    Raises:
        UsageError: see [`CommandParser.parse`].
        ValueError: from the dataclass, for a value out of bounds.
    """
    return arguments(**CommandParser(arguments, prog).parse(argv))


def _with_underscores(word: str) -> str:
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _add_field(add_argument, item: dataclasses.Field) -> None:
    """Add the flag of a field, or its positional argument, by the method of a parser or of a group."""
    kind, is_list = value_type(item.type)
    text, default = item.metadata["help"].replace("%", "%%"), item.default
    if item.metadata.get("positional"):
        number, choices = "+" if is_list else None, item.metadata.get("choices")
        add_argument(item.name, metavar=item.name, type=kind, nargs=number, help=text, choices=choices)
        return
    if default is dataclasses.MISSING:
        text += " Required."
    elif default is not None:
        words = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        text += f" (default: {words.lower() if kind is bool else words})"
    choices = item.metadata.get("choices")
    options: dict[str, Any] = {"metavar": None if choices else kind.__name__.upper(), "choices": choices}
    if kind is bool:
        options |= {"type": _parse_bool, "nargs": "?", "const": True}
    else:
        options |= {"type": kind, "nargs": "+" if is_list else None}
    if isinstance(item.type, UnionType) and is_list and kind in get_args(item.type):
        options["action"] = _OneOrList
    flags = [f"--{item.name}", *([item.metadata["short"]] if "short" in item.metadata else [])]
    add_argument(*flags, default=default, help=text, **options)
    if default is True:
        negation = {"action": "store_false", "dest": item.name, "default": argparse.SUPPRESS}
        add_argument(f"--no_{item.name}", help=f"The same as --{item.name} false.", **negation)


class _OneOrList(argparse.Action):
    """Store a list of values, or a single value as such."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def _parse_bool(word: str) -> bool:
    if word.lower() not in TRUE + FALSE:
        raise argparse.ArgumentTypeError(f"expected true or false, got {word!r}")
    return word.lower() in TRUE
