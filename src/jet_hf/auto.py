# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Registration of Jet with `AutoConfig`, `AutoModel` and `AutoImageProcessor`."""

from transformers import AutoConfig, AutoModel

# From its own module: some releases of transformers hide it behind torchvision, which Jet does not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .model.configuration_jet import JetConfig
from .model.image_processing_jet import JetImageProcessor
from .model.modeling_jet import JetForDensityEstimation, JetModel


class _SavedJetModel(JetModel):
    """Entry of `AutoModel`: `from_pretrained` opens the class that was saved, `from_config` builds a `JetModel`."""

    def __new__(cls, config: JetConfig, *args, **kwargs) -> JetModel:
        return JetModel(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config: JetConfig | None = None, **kwargs):
        is_density = JetForDensityEstimation.__name__ in (getattr(config, "architectures", None) or ())
        model_class = JetForDensityEstimation if is_density else JetModel
        return model_class.from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)


AutoConfig.register("jet", JetConfig, exist_ok=True)
AutoModel.register(JetConfig, _SavedJetModel, exist_ok=True)
AutoImageProcessor.register(JetConfig, image_processor_classes={"pil": JetImageProcessor}, exist_ok=True)

__all__ = ["JetConfig", "JetForDensityEstimation", "JetImageProcessor", "JetModel"]
