# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Anomaly scores of images under a model. `jet_hf.anomaly` has the public names."""
