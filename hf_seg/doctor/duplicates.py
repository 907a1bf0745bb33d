"""Find duplicate photographs, even if file format, quality or size differ.

A photograph is shrunk to 16×16 grey values. Candidates are pairs whose perceptual hashes differ in few bits. A hash
has 64 bits, which say which of the lowest frequencies of the cosine transform are above their median. A candidate is a
duplicate if the differences between neighbouring pixels are almost proportional in both. The hash alone is not enough:
it also matches different streets that look alike.

Source of the hash: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image

SIDE = 16
MAX_BITS = 12  # hashes of copies differ in at most this many bits
MIN_SIMILARITY = 0.95  # of copies; docs/doctor.md says on which data it was measured
FLAT = 2.0  # grey values; a picture is flat if neighbouring pixels differ by less (root mean square)
ROWS, COLUMNS = 256, 2048  # hashes compared at once: this fits into a processor's cache
PAIRS_AT_ONCE = 16_384
_FREQUENCIES = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(SIDE) + 1) / (2 * SIDE)).astype(np.float32)


def thumbnail(image: PIL.Image.Image) -> np.ndarray:
    """The picture's mean grey values, uint8 of shape `(16, 16)`, by which copies are recognised."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), PIL.Image.Resampling.BOX))


def find_duplicates(thumbnails: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Find all pairs of copies. Each photograph is compared with every other: 100,000 photographs take ten seconds.

    Args:
        thumbnails (`np.ndarray` of shape `(n, 16, 16)`, uint8): see `thumbnail`. Flat pictures are left out, since
            they all look alike.

    Yields:
        `tuple[int, int, float]`: two indices, the lower one first, and the similarity in [0.95, 1].
    """
    (places,) = np.nonzero(~is_flat(thumbnails))
    kept = thumbnails[places]
    hashes = _in_blocks(_hashes, kept)
    for row in range(0, len(kept), ROWS):
        for column in range(row - row % COLUMNS, len(kept), COLUMNS):
            near = np.bitwise_count(hashes[row : row + ROWS, None] ^ hashes[None, column : column + COLUMNS])
            candidates = np.flatnonzero(near <= MAX_BITS)  # np.nonzero takes three times as long
            candidates = np.stack(np.divmod(candidates, near.shape[1]), axis=1) + (row, column)
            candidates = candidates[candidates[:, 0] < candidates[:, 1]]
            for start in range(0, len(candidates), PAIRS_AT_ONCE):
                left, right = candidates[start : start + PAIRS_AT_ONCE].T
                similarity = (_changes(kept[left]) * _changes(kept[right])).sum(1)
                for pair in np.nonzero(similarity >= MIN_SIMILARITY)[0]:
                    yield int(places[left[pair]]), int(places[right[pair]]), min(1.0, float(similarity[pair]))


def is_flat(thumbnails: np.ndarray) -> np.ndarray:
    """Whether each of n thumbnails is almost empty, such as a photograph of a lens cap; bool of shape `(n,)`."""
    return _in_blocks(_roughness, thumbnails) < FLAT


def _in_blocks(measure: Callable[[np.ndarray], np.ndarray], thumbnails: np.ndarray) -> np.ndarray:
    """Apply `measure` to all thumbnails in blocks: its intermediate results take many times their memory."""
    blocks = [thumbnails[start : start + PAIRS_AT_ONCE] for start in range(0, max(1, len(thumbnails)), PAIRS_AT_ONCE)]
    return np.concatenate([measure(block) for block in blocks])


def _roughness(thumbnails: np.ndarray) -> np.ndarray:
    across, down = _differences(thumbnails)
    return np.sqrt(((across**2).mean((1, 2)) + (down**2).mean((1, 2))) / 2)


def _hashes(thumbnails: np.ndarray) -> np.ndarray:
    frequencies = (_FREQUENCIES @ thumbnails.astype(np.float32) @ _FREQUENCIES.T).reshape(-1, 64)
    above = frequencies > np.median(frequencies[:, 1:], axis=1, keepdims=True)
    above[:, 0] = False  # the mean brightness does not matter
    return np.packbits(above, axis=1).view(np.uint64)[:, 0]


def _changes(thumbnails: np.ndarray) -> np.ndarray:
    """The differences between neighbouring pixels as vectors of length 1, independent of brightness and contrast."""
    changes = np.concatenate([part.reshape(len(thumbnails), -1) for part in _differences(thumbnails)], axis=1)
    return changes / np.linalg.norm(changes, axis=1, keepdims=True)


def _differences(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differences of each pixel to its right and to its lower neighbour, float32, each of shape `(n, 15, 15)`."""
    grey = thumbnails.astype(np.float32)
    return np.diff(grey, axis=2)[:, :-1], np.diff(grey, axis=1)[:, :, :-1]
