"""hf_seg's own model classes: FCN, and a wrapper of segmentation_models_pytorch. SegFormer comes from transformers.

Importing this package registers both with the Auto classes. Saved models then load without `trust_remote_code`.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, SegformerImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .configuration_fcn import FCNConfig
from .configuration_smp import SmpConfig
from .modeling_fcn import FCNForSemanticSegmentation
from .modeling_smp import SmpForSemanticSegmentation

__all__ = ["FCNConfig", "FCNForSemanticSegmentation", "SmpConfig", "SmpForSemanticSegmentation"]

OWN_MODELS = {FCNConfig: FCNForSemanticSegmentation, SmpConfig: SmpForSemanticSegmentation}
for config_class, model_class in OWN_MODELS.items():
    AutoConfig.register(config_class.model_type, config_class)
    AutoModelForSemanticSegmentation.register(config_class, model_class)
    AutoImageProcessor.register(config_class, image_processor_classes={"torchvision": SegformerImageProcessor})
    # The segmentation pipeline looks for a model's name in this table only, not among the registered classes. Without
    # an entry it works, but logs an error first.
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[config_class.model_type] = model_class.__name__
