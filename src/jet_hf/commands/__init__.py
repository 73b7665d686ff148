# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The work of the commands: a module with `run(arguments)` for each, imported after its arguments are parsed."""

from .. import auto as auto
