"""The models that hf_seg has code for: FCN, and those of segmentation_models_pytorch. SegFormer is transformers'.

Importing this package makes both known to the Auto classes: what is saved then loads without `trust_remote_code`.
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
    # The segmentation pipeline looks for a model's name in this table alone, not among the registered classes, and
    # would log an error before it works all the same.
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[config_class.model_type] = model_class.__name__
