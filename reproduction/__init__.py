# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's tables: grids of training runs, the paper's results and claims, and reports that compare both."""
