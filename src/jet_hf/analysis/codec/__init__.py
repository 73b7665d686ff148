# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Lossless compression of images at a model's rate."""
