"""Make the cache of a Pet folder, slowly if asked to: `python prepare.py PETS CACHE [SECONDS]`; a test interferes."""

import sys
import time
from shutil import disk_usage
from types import SimpleNamespace

from hf_seg.data import cache, load_spec, load_splits
from hf_seg.data.cache import prepare_splits
from hf_seg.data.transforms import build_transforms
from hf_seg.problem import DataError
from hf_seg.recipe.keys import DataRecipe

pets, folder, pause = *sys.argv[1:3], float(sys.argv[3]) if len(sys.argv) > 3 else 0
decode_pair, cache.AT_ONCE = cache.decode_pair, 4


def decode(*arguments):
    print("decoding", flush=True)
    time.sleep(pause)
    return decode_pair(*arguments)


cache.decode_pair = decode
if "full" in sys.argv:  # what was free when it was looked at is taken by somebody else
    cache.shutil.disk_usage = lambda path: SimpleNamespace(free=10**12, total=disk_usage(path).total)
data = DataRecipe(name="oxford_pet", root=pets)
spec = load_spec(data)
try:
    prepared = prepare_splits(load_splits(data), spec, build_transforms(data, spec), folder)
except DataError as error:
    sys.exit(f"error: {error}")
print("made", sum(int(split.pixel_values.sum()) for split in prepared.values()))
