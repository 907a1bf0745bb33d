"""No command changes or removes a file that it did not write: a test's own files are hashed around each command."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputTree:
    """Watches a folder over the commands of a test.

    A file that comes into being while a command runs is the program's own; every other one is the user's.

    Args:
        root (`Path`): the folder; `hf_home` in it, the caches, is left out.
    """

    def __init__(self, root: Path):
        self.root, self.written = root, set()

    @contextmanager
    def command(self) -> Iterator[None]:
        """To be entered for each command; fails when it has changed or removed one of the user's files."""
        before = self._digests()
        try:
            yield
        finally:
            after = self._digests()
            self.written |= after.keys() - before.keys()
            lost = [path for path in before if path not in self.written and after.get(path) != before[path]]
            assert not lost, f"changed or removed by a command that had not written them: {lost}"

    def _digests(self) -> dict[str, str]:
        digests = {}
        for place, folders, names in os.walk(self.root):
            if Path(place) == self.root:
                folders[:] = [name for name in folders if name != "hf_home"]
            for name in names + [each for each in folders if os.path.islink(os.path.join(place, each))]:
                path = os.path.join(place, name)
                if os.path.islink(path):
                    digests[path] = os.readlink(path)
                elif os.path.isfile(path):  # not a pipe, which nobody could read to its end
                    with open(path, "rb") as file:
                        digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests
