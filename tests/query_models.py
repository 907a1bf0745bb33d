"""Mask2Former and MaskFormer, small enough for tests: queries instead of logits a pixel."""

import torch
from transformers import (
    DetrConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    SwinConfig,
)


def tiny_query_model(kind, names):
    backbone = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    if kind == "mask2former":
        return Mask2FormerForUniversalSegmentation(
            Mask2FormerConfig(
                backbone_config=backbone,
                id2label=names,
                feature_size=32,
                mask_feature_size=32,
                hidden_dim=32,
                encoder_feedforward_dim=16,
                dim_feedforward=16,
                encoder_layers=1,
                decoder_layers=2,
                num_attention_heads=2,
                num_queries=7,
            )
        )
    decoder = DetrConfig(
        encoder_layers=1,
        decoder_layers=1,
        d_model=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=7,
    )
    return MaskFormerForInstanceSegmentation(
        MaskFormerConfig(
            backbone_config=backbone,
            id2label=names,
            fpn_feature_size=32,
            mask_feature_size=32,
            decoder_config=decoder,
        )
    )


def save_query_model(path, kind, names, **size):
    """Save one with random weights and an image processor of this `size`."""
    torch.manual_seed(0)
    model = tiny_query_model(kind, names)
    # random queries are all alike: spread their classes and masks, so that several classes win
    torch.nn.init.normal_(model.class_predictor.weight, std=0.3)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and ("queries" in name or "mask_embedder" in name):
            torch.nn.init.normal_(parameter, std=0.05 if "mask_embedder.2." in name else 1.0)
    model.save_pretrained(path)
    processor = Mask2FormerImageProcessor if kind == "mask2former" else MaskFormerImageProcessor
    processor(size=size, size_divisor=32).save_pretrained(path)
    return path
