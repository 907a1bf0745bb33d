"""What several tests use, and that is no fixture."""

# Small enough to train in seconds on two cores, whole enough that every part of the real models is there.
TINY_MODELS = {
    "fcn": {"arch": "fcn", "encoder": "resnet10t"},
    "smp": {
        "arch": "smp",
        "path": "unet",
        "encoder": "test_resnet",
        "config": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
    },
    "segformer": {
        "arch": "segformer",
        "config": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 96], "decoder_hidden_size": 32},
    },
}


def describe_dropped(data):
    """What a run on a data section would record of the pairs that were left out."""
    from hf_seg import data as data_room

    return data_room.describe_dropped(data_room.load_pairs(data)[2])
