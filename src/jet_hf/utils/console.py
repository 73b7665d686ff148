# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Log lines and error messages of the scripts."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def console(*errors: type[Exception]) -> Iterator[None]:
    """
    Log to stderr, and end the script with one line and exit code 1 for errors of the given kinds, 130 for Ctrl-C.

    With several processes only the first one prints information and the error.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("jet_hf").setLevel(logging.INFO if is_first else logging.WARNING)
    try:
        yield
    except errors as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}" if is_first else 1) from error
    except KeyboardInterrupt:
        if is_first:
            print("stopped by SIGINT.", file=sys.stderr)
        raise SystemExit(130) from None
