"""The two models that hf_seg compares: FCN (here) and SegFormer (transformers').

Importing this package makes FCN known to the Auto classes: a saved FCN then loads without `trust_remote_code`.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, SegformerImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .configuration_fcn import FCNConfig
from .modeling_fcn import FCNForSemanticSegmentation

__all__ = ["FCNConfig", "FCNForSemanticSegmentation"]

AutoConfig.register(FCNConfig.model_type, FCNConfig)
AutoModelForSemanticSegmentation.register(FCNConfig, FCNForSemanticSegmentation)
AutoImageProcessor.register(FCNConfig, image_processor_classes={"torchvision": SegformerImageProcessor})
# The segmentation pipeline looks for a model's name in this table alone, not among the registered classes, and would
# log an error before it works all the same.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[FCNConfig.model_type] = FCNForSemanticSegmentation.__name__
