# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Results of the main process for all processes of a run."""

from collections.abc import Callable
from typing import TypeVar, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list


Result = TypeVar("Result")


def on_main_process(function: Callable[[], Result]) -> Result:
    """
    Call a function in the main process; return its result, or raise its exception, in every process.

    All processes call it. None of them is left waiting for a main process that has failed.

    Args:
        function: Function whose results and exceptions are picklable.
    """
    result, error = None, None
    if PartialState().is_main_process:
        try:
            result = function()
        except Exception as raised:
            error = raised
    if PartialState().num_processes > 1:
        result, error = broadcast_object_list([result, error])
    if error is not None:
        raise error
    return cast(Result, result)
