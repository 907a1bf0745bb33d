"""`hf_seg/train.py` of which each rank has a folder of its own under the same name, as two machines may."""

import os
import sys

from hf_seg import train

os.environ["HF_SEG_DATA"] += os.environ["RANK"]

if __name__ == "__main__":
    sys.exit(train.main())
