from __future__ import annotations

import gc
import os


# No test needs the Hub; offline, a wrong path fails at once instead of after the network's time-out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import re
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hub_server import Client, HubServer
from pictures import write_bad, write_good


# The main process of pytest-xdist, which runs no test, imports this file before it starts those that do. Functions
# import torch, so that they need not wait for that.
if TYPE_CHECKING:
    import torch

    from jet_hf import JetConfig, JetForDensityEstimation


# A background job of a shell ignores SIGINT, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"


# `make test-xla` runs this folder, in an environment of its own.
collect_ignore = [] if find_spec("torch_xla") else ["xla"]


# The imports of the tests create hundreds of thousands of objects, hardly any of them garbage.
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_sessionfinish():
    gc.freeze()  # Python and pytest would look at all objects several times before they end


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=3, help="Kills in each loop of tests/test_kills.py.")
    parser.addoption("--codec-crops", type=int, default=128, help="Crops in the rate test of tests/test_codec.py.")
    parser.addoption("--codec-mutations", type=int, default=300, help="Damaged files in tests/test_codec.py.")
    parser.addoption("--large-models", action="store_true", help="Run tests/test_large_models.py, in 9 GiB of memory.")


# Long files start early, so that all processes finish at the same time.
LONGEST = (
    *("test_parity", "test_stopping", "test_space_server", "test_docs", "test_variants", "test_train_script"),
    *("test_space_browser", "test_transformers", "test_codec", "test_recipes", "test_space_deploy", "test_demo"),
    *("test_jobs", "test_benchmark", "test_integrations", "test_prior", "test_sweep", "test_distributed"),
    *("test_sample_quality", "test_kills", "test_site", "test_anomaly", "test_space", "test_hub", "test_cost"),
)


def pytest_collection_modifyitems(items):
    """Run the parity tests first, because nothing else counts if they fail."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture
def within(record_property):
    """Return a function that checks a difference from the original and records it for the table at the end."""

    def check(what: str, difference: float, tolerance: float):
        record_property("parity", (what, difference, tolerance))
        assert difference <= tolerance, what

    return check


def pytest_terminal_summary(terminalreporter):
    rows = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "parity" and report.when == "call"
    ]
    if rows:
        terminalreporter.section("largest differences from the original implementations, and tolerances")
        for what, difference, tolerance in rows:
            terminalreporter.write_line(f"{what:60} {difference:8.1e} {tolerance:8.0e}")
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "demo" and report.when == "call":
                terminalreporter.write_line(f"the demo: {value}")


def tiny_config(**fields) -> JetConfig:
    from jet_hf import JetConfig

    defaults = {
        "image_size": 8,
        "num_channels": 3,
        "patch_size": 2,
        "num_coupling_layers": 5,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return JetConfig(**(defaults | fields))


def randomize(model: torch.nn.Module, std: float = 0.1, seed: int = 0) -> torch.nn.Module:
    """Move the weights away from their initial zeros, which would hide wrong wiring."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter))
    return model


def tiny_model(std: float = 0.1, **fields) -> JetForDensityEstimation:
    import torch

    from jet_hf import JetForDensityEstimation

    torch.manual_seed(0)
    return randomize(JetForDensityEstimation(tiny_config(**fields)), std).eval()


def random_bytes(batch_size: int, config: JetConfig, seed: int = 0) -> torch.Tensor:
    """Return random gray levels: bytes for up to 256 of them, else uint16."""
    import torch

    shape = (batch_size, *config.image_shape)
    generator = torch.Generator().manual_seed(seed)
    if config.num_levels <= 256:
        return torch.randint(config.num_levels, shape, generator=generator, dtype=torch.uint8)
    return torch.randint(config.num_levels, shape, generator=generator).to(torch.uint16)


def random_images(batch_size: int, config: JetConfig, seed: int = 0) -> torch.Tensor:
    from jet_hf.model.modeling_jet import scale_bytes

    return scale_bytes(random_bytes(batch_size, config, seed), config.num_levels)


@pytest.fixture(autouse=True, scope="module")
def isolated_cache(tmp_path_factory):
    """Keep the caches of `datasets` in a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        # `datasets` waits this long at the end of each epoch of parquet files.
        patch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
        yield


@pytest.fixture
def model() -> JetForDensityEstimation:
    return tiny_model()


@pytest.fixture(scope="session")
def running_hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def hub(running_hub):
    yield running_hub
    running_hub.recover()


@pytest.fixture(scope="session")
def client(running_hub, tmp_path_factory):
    client = Client(running_hub, tmp_path_factory.mktemp("client"))
    yield client
    client.close()


@pytest.fixture
def repo_id(request) -> str:
    return "jet/" + re.sub(r"\W+", "-", request.node.name)[-60:].strip("-")


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> dict[str, Path]:
    """Return images of many formats and modes, by name."""
    return write_good(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="session")
def bad(tmp_path_factory) -> dict[str, tuple[Path, str]]:
    """Return files that must be refused, by name, with a part of the error message."""
    return write_bad(tmp_path_factory.mktemp("bad"))
