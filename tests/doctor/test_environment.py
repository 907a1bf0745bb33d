"""What of a machine hurts a run: broken and old packages, a GPU that is not used, no room."""

import json
import os
import subprocess
import sys
from collections import namedtuple

import pytest
import torch

from hf_seg.doctor import environment as environment_check
from hf_seg.doctor.environment import check_gpu, check_packages, check_shared_memory

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def installed(monkeypatch):
    """`installed(requirements, **versions)`: what hf_seg asks for, and what is there."""

    def install(requirements, **versions):
        def version(name):
            if name not in versions:
                raise environment_check.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(environment_check.metadata, "requires", lambda name: requirements)
        monkeypatch.setattr(environment_check.metadata, "version", version)

    return install


def test_versions(installed):
    installed(
        ["a>=2.4", "b>=2.10", "c>=1.0.31", "d", 'e>=1; extra == "test"', "f>=3"],
        **{"a": "2.4.0+cu132", "b": "2.9.1", "c": "1.0.31rc1", "d": "0.1"},
    )
    found = {finding.place: (finding.level, finding.code, finding.remedy) for finding in check_packages()}
    assert found == {
        "b": ("warning", "old-package", "pip install 'b>=2.10'"),
        "f": ("error", "missing-package", "pip install 'f>=3'"),
    }


def test_a_torchvision_for_another_torch(installed, monkeypatch):
    installed(["torch==2.14.0", "numpy"], torch="2.15.0", torchvision="0.29.1", numpy="2.4")

    def nms(*arguments):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", nms)
    (finding,) = [finding for finding in check_packages() if finding.code == "torch-torchvision"]
    assert finding.level == "error" and "pip install" in finding.remedy
    assert finding.what == (
        "torchvision 0.29.1 does not work with torch 2.15.0 (RuntimeError: operator torchvision::nms does not exist); "
        "its package requires torch==2.14.0"
    )


def test_no_torchvision(installed, monkeypatch):
    installed(["torchvision>=0.29"], torch="2.15.0")
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)  # importing it raises ModuleNotFoundError
    (finding,) = check_packages()
    assert (finding.code, finding.place) == ("missing-package", "torchvision")


def test_a_torchvision_that_cannot_be_imported(tmp_path):
    # the real way in which it shows: hf_seg.data cannot be imported, and the doctor must say why all the same
    (tmp_path / "torchvision").mkdir()
    broken = 'raise RuntimeError("operator torchvision::nms does not exist")'
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    process = subprocess.run(
        [sys.executable, "-m", "hf_seg.cli", "doctor", "--json", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1, process.stderr
    (finding,) = [entry for entry in json.loads(process.stdout)["findings"] if entry["level"] == "error"]
    assert finding["code"] == "torch-torchvision" and "torchvision::nms does not exist" in finding["what"]


class TestGpu:
    @pytest.fixture(autouse=True)
    def devices(self, tmp_path, monkeypatch):
        """A machine with a network card, and a torch that sees no accelerator."""
        monkeypatch.setattr(environment_check, "PCI_DEVICES", tmp_path)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        self.root = tmp_path
        self.add("00", "0x8086", "0x020000")

    def add(self, name, vendor, kind):
        (self.root / name).mkdir()
        (self.root / name / "vendor").write_text(f"{vendor}\n")
        (self.root / name / "class").write_text(f"{kind}\n")

    def test_there_is_none(self):
        self.add("01", "0x10de", "0x040300")  # a sound chip of the same maker
        assert check_gpu() == []

    @pytest.mark.parametrize(
        ("cuda", "expected"), [(None, "is built without CUDA"), ("13.2", "cannot use the NVIDIA GPU")]
    )
    def test_it_is_not_used(self, monkeypatch, cuda, expected):
        self.add("01", "0x10de", "0x030200")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "init", lambda: 1 / 0)
        (finding,) = check_gpu()
        assert (finding.level, finding.code) == ("warning", "unused-gpu") and expected in finding.what
        assert ("division by zero" in finding.what) == (cuda is not None)

    def test_it_is_used(self, monkeypatch):
        self.add("01", "0x10de", "0x030200")
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        assert check_gpu() == []


def test_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(environment_check, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(environment_check.shutil, "disk_usage", lambda path: Usage(0, 0, 64 * 10**6))
    assert check_shared_memory(4, 8 * 10**6) == []
    (finding,) = check_shared_memory(4, 9 * 10**6)
    assert (
        finding.code == "small-shared-memory"
        and "has 64 MB free, but 4 data loader workers need 72 MB" in finding.what
    )
