"""Averages of the weights of several models."""

import pytest
import torch
from conftest import randomize, tiny_model

from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.averaging import average_models


@pytest.fixture
def save(tmp_path):
    """Return a function that saves a model with its image processor."""

    def write(name: str, model: JetForDensityEstimation, **options) -> str:
        model.save_pretrained(tmp_path / name)
        JetImageProcessor(size=model.config.image_size, **options).save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return write


def test_the_average_is_the_mean_of_all_weights_in_any_order(save):
    models = [randomize(tiny_model(), std=10.0**i, seed=i) for i in range(3)]  # of very different magnitudes
    folders = [save(f"model-{i}", model) for i, model in enumerate(models)]
    average, processor = average_models(folders)
    backward, _ = average_models(folders[::-1])
    assert processor.size["height"] == 8
    states = [dict(model.named_parameters()) for model in models]
    for name, parameter in average.named_parameters():
        expected = torch.stack([state[name].double() for state in states]).mean(0).float()
        torch.testing.assert_close(parameter.data, expected, rtol=1e-7, atol=0, msg=name)
        torch.testing.assert_close(backward.get_parameter(name), parameter, rtol=1e-7, atol=0, msg=name)
    for name, buffer in average.named_buffers():
        assert torch.equal(buffer, models[0].get_buffer(name)), name


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"hidden_size": 32, "scale_factor": 3.0}, {}, r"`hidden_size` is 32 and must be 16; .*`scale_factor` is 3.0"),
        ({}, {"do_center_crop": False}, "`do_center_crop` is False and must be True"),
        ({}, {}, r"model-1 cannot be averaged with .*model-0: `jet.*permutation.*` differs"),
    ],
)
def test_models_that_differ_in_more_than_their_weights_are_refused(save, fields, options, message):
    folders = [save("model-0", tiny_model()), save("model-1", other := tiny_model(**fields), **options)]
    if not fields and not options:
        name, permutation = next((name, buffer) for name, buffer in other.named_buffers() if "permutation" in name)
        other.get_buffer(name).copy_(permutation.flip(0))
        other.save_pretrained(folders[1])
    with pytest.raises(ValueError, match=message):
        average_models(folders)
