import errno
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from hf_seg import cli
from hf_seg.inference import export
from hf_seg.inference.export import (
    LOGITS_TOLERANCE,
    OPSET,
    DisagreementError,
    compare,
    export_model,
    generated_images,
    metadata_of,
)
from hf_seg.inference.exported import load_model
from hf_seg.inference.segmenter import load_segmenter
from hf_seg.models import FCNConfig, FCNForSemanticSegmentation, SmpConfig, SmpForSemanticSegmentation
from hf_seg.models.build import build_image_processor
from hf_seg.problem import Problem, Refusal
from hf_seg.runs.folder import _FILES
from hf_seg.runs.record import PER_IMAGE, load_arrays, load_results
from hf_seg.training.evaluate import examine, find_data

NAMES = {0: "cat", 1: "dog", 2: "ground"}
PALETTE = [[200, 10, 10], [10, 200, 10], [10, 10, 200]]


def save_model(path, arch):
    """A model with random weights, as a run leaves it."""
    torch.manual_seed(0)
    if arch == "fcn":
        model = FCNForSemanticSegmentation(FCNConfig(encoder="resnet10t", id2label=NAMES))
    elif arch == "unet":
        arguments = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
        model = SmpForSemanticSegmentation(SmpConfig(encoder="resnet10t", arguments=arguments, id2label=NAMES))
    else:
        config = SegformerConfig(
            id2label=NAMES,
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[8, 4],
            hidden_sizes=[16, 32],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[4, 4],
            decoder_hidden_size=32,
        )
        model = SegformerForSemanticSegmentation(config)
    model.config.palette = PALETTE
    # random logits differ by little: spread them, so that all classes occur
    if arch == "unet":
        head = model.segmentation_head[0]
    else:
        head = model.classifier[-1] if arch == "fcn" else model.decode_head.classifier
    torch.nn.init.normal_(head.weight, std=1.0)
    model.save_pretrained(path)
    build_image_processor(size=(64, 64), normalize="imagenet" if arch == "segformer" else "none").save_pretrained(path)


@pytest.fixture(scope="module", params=["fcn", "segformer", "unet"])
def exported(request, tmp_path_factory):
    """A saved model, its ONNX file and how they compare; exporting takes seconds."""
    folder = tmp_path_factory.mktemp(request.param)
    save_model(folder, request.param)
    return folder, folder / "new" / "model.onnx", export_model(folder, folder / "new" / "model.onnx")


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A model's folder; exporting it takes no time, because one layer stands for the model and for its file."""
    save_model(tmp_path / "run", "segformer")

    def write(segmenter, path, *_):
        pool = onnx.helper.make_node("AveragePool", ["pixel_values"], ["logits"], kernel_shape=[4, 4], strides=[4, 4])
        ends = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3, side, side])
            for name, side in (("pixel_values", 64), ("logits", 16))
        ]
        graph = onnx.helper.make_graph([pool], "pool", ends[:1], ends[1:])
        opset = onnx.helper.make_opsetid("", OPSET)
        model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
        onnx.helper.set_model_props(model, metadata_of(segmenter))
        onnx.save(model, path)

    monkeypatch.setattr(export, "write_onnx", write)
    monkeypatch.setattr(export.Segmenter, "_scores", lambda self, x: torch.nn.functional.avg_pool2d(x, 4))
    return tmp_path / "run"


def write_older(path):
    """An export of long ago, as far as its metadata says."""
    graph = onnx.helper.make_graph([], "nothing", [], [])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {"class_names": "[]", "image_processor": "{}"})
    onnx.save(model, path)
    return path.read_bytes()


def test_file_agrees_with_pytorch(exported):
    folder, file, comparison = exported
    assert comparison.agrees and comparison.images == 16 and comparison.batch_sizes == (1, 16)
    assert comparison.equal_labels >= 0.999 and comparison.unreadable == ()
    assert 0 <= comparison.largest_difference <= LOGITS_TOLERANCE * comparison.largest_logit
    assert {path.name for path in file.parent.iterdir()} == {"model.onnx"}  # weights are in it, nothing is left over

    # by hand, with a batch of a size that was not tried
    segmenter = load_segmenter(folder, device="cpu")
    pixel_values = segmenter.image_processor(generated_images()[:5], return_tensors="pt")["pixel_values"]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixel_values": pixel_values.numpy()})
    with torch.inference_mode():
        expected = segmenter.model(pixel_values=pixel_values).logits.numpy()
    assert logits.shape == expected.shape and np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()
    assert len(np.unique(expected.argmax(axis=1))) > 1


def test_the_file_is_evaluated_as_its_model(exported, tmp_path):
    folder, file, _ = exported
    counts = {f"max_{split}_samples": count for split, count in (("train", 1), ("validation", 1), ("test", 5))}
    recipe = {"model": {"arch": "fcn"}, "data": {"name": "synthetic_pet", **counts}, "training": {}}
    (tmp_path / "pets.json").write_text(json.dumps(recipe))
    same = {"cat": "foreground", "dog": "background", "ground": "boundary"}
    options = [f"--label_map={ours}={theirs}" for ours, theirs in same.items()]
    out = tmp_path / "out"
    assert cli.main(["evaluate", str(file), str(tmp_path / "pets.json"), "--out", str(out), *options]) == 0
    results, found = load_results(out, or_evaluation=True), load_arrays(out / PER_IMAGE)["confusion"]
    examination = examine("it", load_model(folder), find_data(tmp_path / "pets.json"), tmp_path, None, same)
    expected = examination.trainer.test()["per_image"]
    assert np.abs(found - expected).sum() <= 0.001 * expected.sum() and (found.sum(axis=(0, 1)) > 0).sum() > 1
    assert results["model"]["class"] == "a file of hf-seg export" and results["model"]["parameters"] is None
    assert results["recipe"]["data"]["normalize"] == examination.normalized
    height, width = results["model"]["logits_size"]
    assert load_model(file).scores(torch.zeros(2, 3, 64, 64)).shape == (2, 3, height, width)


def test_a_file_of_others_is_not_evaluated(quick, tmp_path, capsys):
    export.write_onnx(load_segmenter(quick, device="cpu"), tmp_path / "a.onnx", [])
    model = onnx.load(tmp_path / "a.onnx")
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"class_names": "[]", "image_processor": "{}"})
    onnx.save(model, tmp_path / "a.onnx")
    assert cli.main(["evaluate", str(tmp_path / "a.onnx"), "quickstart-fcn", "--out", str(tmp_path / "out")]) == 2
    assert "hf_seg (its metadata has no image_size, resize); name a file that" in capsys.readouterr().err


def test_file_says_what_it_takes_and_what_it_gives(exported):
    folder, file, _ = exported
    model = onnx.load(file)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (given,), (got,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("pixel_values", "tensor(float)", ["batch", 3, 64, 64])
    assert (got.name, got.type, got.shape[:2]) == ("logits", "tensor(float)", ["batch", 3])
    metadata = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata["class_names"] == list(NAMES.values()) and metadata["palette"] == PALETTE
    assert metadata["image_size"] == [64, 64] and metadata["resample"] == "bilinear"
    assert metadata["image_processor"]["size"] == {"height": 64, "width": 64}

    # what it says is enough to make the image processor's pixel_values
    image = generated_images()[0]
    height, width = metadata["image_size"]
    resized = image.resize((width, height), Image.Resampling[metadata["resample"].upper()])
    pixels = np.asarray(resized, dtype=np.float32) * metadata["rescale_factor"]
    if "image_mean" in metadata:
        pixels = (pixels - metadata["image_mean"]) / metadata["image_std"]
    assert ("image_mean" in metadata) == (folder.name.startswith("segformer"))
    expected = load_segmenter(folder, device="cpu").image_processor(image)["pixel_values"][0]
    assert np.abs(pixels.transpose(2, 0, 1) - np.asarray(expected)).max() < 0.03  # a step of eight bits, normalised


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "kind", "int8"),
    [("fcn", "openvino", False), ("segformer", "openvino", True), ("segformer", "onnx", True)],
)
def test_openvino_and_int8(tmp_path, capsys, arch, kind, int8):
    save_model(tmp_path / "model", arch)
    for number, image in enumerate(generated_images()[:6]):
        image.save(tmp_path / f"{number}.png")
    command = ["export", str(tmp_path / "model"), str(tmp_path / "*.png"), "--format", kind, *["--int8"] * int8]
    assert cli.main(command) == 0
    said = capsys.readouterr().out.splitlines()
    out = tmp_path / "model" / f"model{'-int8' * int8}{'.xml' if kind == 'openvino' else '.onnx'}"
    assert said[0].startswith(f"{out}: ") and "PyTorch on 6 images in batches of 1, 6: " in said[1]
    assert said[2:] == (
        [f"not tested, since {tmp_path / 'model'} is not a run; test it with `hf-seg evaluate {out} RECIPE --out DIR`"]
        if int8
        else []
    )
    assert _FILES.fullmatch(out.name)  # of a run, so that --overwrite removes it

    exported, segmenter = load_model(out), load_segmenter(tmp_path / "model", device="cpu")
    assert exported.class_names == segmenter.class_names and exported.framing.size == (64, 64)
    comparison = compare(segmenter, out, generated_images()[6:], int8)
    assert comparison.agrees and comparison.equal_labels >= (0.97 if int8 else 0.999)
    # its own file is replaced, another one is not
    assert cli.main(command) == 0
    if kind == "openvino":
        out.unlink()
        assert cli.main(command) == 2
        assert (
            f"{out.with_suffix('.bin')}: exists and is not an OpenVINO file written by hf_seg"
            in capsys.readouterr().err
        )


def test_what_openvino_and_int8_need(quick, tmp_path, monkeypatch, capsys):
    assert cli.main(["export", str(quick), "--int8"]) == 2
    assert "--int8: the ranges of an int8 model's activations are taken from photographs" in capsys.readouterr().err
    assert cli.main(["export", str(quick), "--format", "openvino", "--out", str(tmp_path / "a.onnx")]) == 2
    assert (
        "a.onnx: does not end in .xml; name an OpenVINO file with --out, such as model.xml" in capsys.readouterr().err
    )
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert cli.main(["export", str(quick), "--format", "openvino"]) == 2
    assert (
        "this export needs nncf, which is not installed; run `pip install 'hf_seg[openvino]'`"
        in capsys.readouterr().err
    )


def test_another_model_of_transformers(tmp_path, capfd):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    config = BeitConfig(
        **sizes, image_size=64, use_relative_position_bias=True, out_indices=[1, 2, 3, 4], id2label=NAMES
    )
    BeitForSemanticSegmentation(config).save_pretrained(tmp_path)  # torch.onnx alone cannot export it
    build_image_processor(size=(64, 64), normalize="none").save_pretrained(tmp_path)
    capfd.readouterr()
    assert cli.main(["export", str(tmp_path)]) == 0
    printed = capfd.readouterr()
    place, agreement = printed.out.splitlines()
    assert place.startswith(f"{tmp_path / 'model.onnx'}: ") and agreement.startswith(
        "agrees with PyTorch on 16 images"
    )
    assert not re.search("warn|experimental|infer the signature", printed.err, re.IGNORECASE)  # of libraries


def test_a_model_that_cannot_be_traced_is_refused(tmp_path, monkeypatch):
    save_model(tmp_path, "segformer")
    forward = SegformerForSemanticSegmentation.forward

    def forward_by_value(self, pixel_values):
        return forward(self, pixel_values if pixel_values.sum() > 0 else -pixel_values)

    monkeypatch.setattr(SegformerForSemanticSegmentation, "forward", forward_by_value)
    with pytest.raises(Refusal, match="transformers cannot export this segformer to ONNX"):
        export_model(tmp_path, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx*"))


def test_a_file_with_other_weights_is_found_out(exported, tmp_path):
    folder, file, _ = exported
    segmenter = load_segmenter(folder, device="cpu")
    assert compare(segmenter, file, generated_images()[:3]).agrees
    model = onnx.load(file)
    kernel = next(each for each in model.graph.initializer if len(each.dims) == 4)
    values = onnx.numpy_helper.to_array(kernel)
    kernel.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), kernel.name))
    onnx.save(model, tmp_path / "tampered.onnx")
    comparison = compare(segmenter, tmp_path / "tampered.onnx", generated_images()[:3])
    assert not comparison.agrees
    assert comparison.largest_difference > LOGITS_TOLERANCE * comparison.largest_logit


def test_command_compares_on_photographs(quick, tmp_path, capsys):
    for number, image in enumerate(generated_images()):
        image.save(tmp_path / f"{number}.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    arguments = ["export", str(quick)]
    assert cli.main([*arguments, "--out", str(tmp_path / "a.onnx"), str(tmp_path / "1*.jpg")]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'a.onnx'}: 0.0 MB\n" in out
    assert "on 7 images in batches of 1, 7: largest difference of a logit " in out
    assert "equal labels on 100.0000% of the pixels" in out

    assert cli.main([*arguments, str(tmp_path)]) == 1  # 17 files, one of them no image
    printed = capsys.readouterr()
    assert f"{tmp_path / 'bad.jpg'}: left out: cannot be decoded (UnidentifiedImageError: " in printed.err
    assert "on 16 images in batches of 1, 16: " in printed.out
    assert (quick / "model.onnx").is_file()

    # one photograph is computed as a pair too
    assert cli.main([*arguments, str(tmp_path / "1.jpg")]) == 0
    assert "on 1 images in batches of 1, 2: " in capsys.readouterr().out


def test_a_file_that_disagrees_is_not_kept(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export.Segmenter, "_scores", lambda self, x: torch.nn.functional.avg_pool2d(1 - x, 4))
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "model.onnx"
    older = write_older(out)
    with pytest.raises(DisagreementError, match="does not agree with PyTorch and was not kept: 16 images in batches"):
        export_model(quick, out)
    assert out.read_bytes() == older and list(out.parent.iterdir()) == [out]
    assert cli.main(["export", str(quick), "--out", str(out)]) == 1
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_do_not_agree(quick, tmp_path, monkeypatch, value):
    scores = export.Segmenter._scores

    def broken(self, pixel_values):
        result = scores(self, pixel_values)
        if len(result) > 1:  # not yet when the model is tried out
            result[0, 0, 0, 0] = value
        return result

    monkeypatch.setattr(export.Segmenter, "_scores", broken)
    with pytest.raises(DisagreementError):
        export_model(quick, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_an_export_that_fails_leaves_the_older_file(quick, tmp_path, monkeypatch):
    out = tmp_path / "out" / "model.onnx"
    out.parent.mkdir()
    older = write_older(out)

    def fail(_, path, *__):
        path.write_bytes(b"half of a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "write_onnx", fail)
    with pytest.raises(KeyboardInterrupt):
        export_model(quick, out)
    assert out.read_bytes() == older and list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("package", export.PACKAGES["onnx"])
def test_a_missing_package_is_named_with_its_remedy(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["export", str(tmp_path)]) == 2
    assert f"error: this export needs {package}, which is not installed" in (said := capsys.readouterr().err)
    assert "run `pip install 'hf_seg[export]'`" in said


def test_what_cannot_work_is_refused(quick, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    (tmp_path / "file").write_text("")
    for arguments, said in (
        ([str(tmp_path)], "no semantic segmentation model"),
        (["owner/name"], "owner/name: is not a folder; name the output file with --out"),
        ([str(quick), "--out", str(tmp_path)], f"is a folder; name the file in it, such as {tmp_path}/model.onnx"),
        ([str(quick), "--out", str(tmp_path / "file" / "model.onnx")], "model.onnx: cannot be written ("),
        ([str(quick), str(tmp_path / "none.jpg")], "none.jpg: there is no such file, folder or match"),
        ([str(quick), str(tmp_path / "bad.jpg")], "none of the 1 images can be read ("),
    ):
        assert cli.main(["export", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.onnx")) and not list(tmp_path.rglob("*.partial"))


def test_models_that_an_onnx_file_cannot_hold_are_refused(tmp_path, monkeypatch):
    save_model(tmp_path, "segformer")
    SegformerImageProcessor(do_resize=False).save_pretrained(tmp_path)
    with pytest.raises(Refusal, match="does not set a fixed input size"):
        export_model(tmp_path, tmp_path / "model.onnx")
    monkeypatch.setattr(export, "LARGEST_FILE", 1000)
    with pytest.raises(Refusal, match="exceed 2 GiB"):
        export_model(tmp_path, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx*"))


def test_a_file_that_onnxruntime_cannot_open_is_not_kept(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "write_onnx", lambda _, path, *__: path.write_bytes(b"not ONNX"))
    with pytest.raises(Refusal, match="cannot be read as a file exported by hf_seg"):
        export_model(quick, tmp_path / "out" / "model.onnx")
    assert not list((tmp_path / "out").iterdir())


def test_every_file_that_cannot_be_read_is_told(quick, tmp_path):
    generated_images()[0].save(tmp_path / "a.png")
    for name in ("b.png", "c.png"):
        (tmp_path / name).write_bytes(b"not an image")
    comparison = export_model(quick, tmp_path / "model.onnx", images=[tmp_path])
    assert comparison.images == 1 and [Path(file.place).name for file in comparison.unreadable] == ["b.png", "c.png"]
    assert all(isinstance(file, Problem) for file in comparison.unreadable)


@pytest.mark.parametrize("broken", [".xml", ".bin"])
def test_two_files_are_replaced_together_or_not_at_all(quick, tmp_path, monkeypatch, capsys, broken):
    out = tmp_path / "out" / "model.xml"

    def write(segmenter, path, samples):
        path.write_text("new"), path.with_suffix(".bin").write_text("new")

    def copy(source, target):
        if source.suffix == broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return shutil.copyfile(source, target)

    monkeypatch.setattr(export, "PACKAGES", {"openvino": ()})
    monkeypatch.setattr(export, "write_openvino", write)
    monkeypatch.setattr(export, "compare", lambda *_: SimpleNamespace(agrees=True, unreadable=()))
    monkeypatch.setattr(export, "_is_export", lambda path: True)
    assert cli.main(["export", str(quick), "--format", "openvino", "--out", str(out)]) == 0
    for file in (out, out.with_suffix(".bin")):
        assert file.read_text() == "new"
        file.write_text("older")
    monkeypatch.setattr(export, "shutil", SimpleNamespace(copyfile=copy))
    capsys.readouterr()
    assert cli.main(["export", str(quick), "--format", "openvino", "--out", str(out)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [file.read_text() for file in out.parent.iterdir()] == ["older", "older"]


@pytest.mark.parametrize("name", ["model.safetensors", "photograph.jpg", "other.onnx", "link.onnx"])
def test_a_file_that_is_no_export_is_not_replaced(quick, tmp_path, capsys, name):
    out = quick / name
    if name == "photograph.jpg":
        generated_images()[0].save(out)
    elif name == "other.onnx":
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "theirs", [], [])), out)
    elif name == "link.onnx":
        out.symlink_to(quick / "model.safetensors")
    before = out.read_bytes()
    assert cli.main(["export", str(quick), "--out", str(out)]) == 2
    assert f"error: {out}: exists and is not an ONNX file written by hf_seg" in capsys.readouterr().err
    assert out.read_bytes() == before

    older = quick / "model.onnx"
    write_older(older)
    export_model(quick, older)
    assert len(onnx.load(older).graph.node) == 1
