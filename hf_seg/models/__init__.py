"""The two models that hf_seg compares: FCN (here) and SegFormer (transformers').

Importing this package makes FCN known to the Auto classes: a saved FCN then loads without `trust_remote_code`.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, SegformerImageProcessor

from .configuration_fcn import FCNConfig
from .modeling_fcn import FCNForSemanticSegmentation

__all__ = ["FCNConfig", "FCNForSemanticSegmentation"]

AutoConfig.register(FCNConfig.model_type, FCNConfig)
AutoModelForSemanticSegmentation.register(FCNConfig, FCNForSemanticSegmentation)
AutoImageProcessor.register(FCNConfig, image_processor_classes={"torchvision": SegformerImageProcessor})
