# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Benchmark of speed and memory against jet-pytorch and against the limit of the machine."""
