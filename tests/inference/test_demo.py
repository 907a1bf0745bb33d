"""The demo's page: its parts, the real page in a real browser, and the Space that is made of it."""

import base64
import contextlib
import html
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from pathlib import Path
from unittest.mock import Mock

import gradio
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import ExifTags, Image
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
)
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_seg import cli
from hf_seg.data import geometry
from hf_seg.data.columns import UprightImage
from hf_seg.inference import demo as demo_module
from hf_seg.inference import demo_app
from hf_seg.inference.demo import push_space, serve, stage_space
from hf_seg.inference.predict import predict, read_image
from hf_seg.inference.segmenter import load_segmenter
from hf_seg.models import FCNConfig, FCNForSemanticSegmentation, SmpConfig, SmpForSemanticSegmentation
from hf_seg.models.build import build_image_processor
from hf_seg.problem import HubError, Refusal
from hf_seg.scoring import upsampling

NAMES = {0: "cat", 1: "dog & <b>co</b>", 2: "ground"}
PALETTE = [[200, 10, 10], [10, 200, 10], [10, 10, 200]]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Run folders of both models, with random weights."""
    torch.manual_seed(0)
    fcn = FCNForSemanticSegmentation(FCNConfig(encoder="resnet10t", id2label=NAMES))
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 96], "decoder_hidden_size": 32}
    segformer = SegformerForSemanticSegmentation(SegformerConfig(id2label=NAMES, **sizes))
    root = tmp_path_factory.mktemp("runs")
    for model, head in ((fcn, fcn.classifier[-1]), (segformer, segformer.decode_head.classifier)):
        # random logits differ by little: spread them, so that all classes occur
        torch.nn.init.normal_(head.weight, std=1.0)
        model.config.palette = PALETTE
        folder = root / ("tiny-fcn" if model is fcn else "tiny-segformer")
        model.save_pretrained(folder)
        build_image_processor(size=(64, 64), normalize="none").save_pretrained(folder)
        (folder / "results.json").write_text("{}")
    return [root / "tiny-fcn", root / "tiny-segformer"]


@pytest.fixture
def photograph(tmp_path):
    coarse = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path = tmp_path / "photograph.png"
    Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).save(path)
    return path


def shown_models(folders):
    segmenters = [load_segmenter(folder, device="cpu") for folder in folders]
    return [
        demo_app.ShownModel(
            name=folder.name, model=each.model, image_processor=each.image_processor, colours=each.palette
        )
        for folder, each in zip(folders, segmenters, strict=True)
    ]


def expected_legend(folder, photograph):
    """Class names and shares as the page should print them, from `hf_seg.inference.predict`."""
    (result,) = predict(folder, [photograph], device="cpu")
    ordered = sorted(result.class_shares.items(), key=lambda item: -item[1])
    return [(name, demo_app.per_cent(share)) for name, share in ordered], result


def legends(page):
    """Name and share of each class, by panel, in the page's HTML."""
    line = re.compile(r'<span class="name">(.*?)</span><span class="share">(.*?)</span>')
    panels = re.findall(r'<ul class="legend">.*?</ul>', page)
    return [[(html.unescape(name), share) for name, share in line.findall(panel)] for panel in panels]


def pictures(page, kind):
    sources = re.findall(rf'<img class="{kind}" src="data:image/\w+;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(source))) for source in sources]


def test_page_says_what_predict_says(folders, photograph):
    page = demo_app.show(shown_models(folders), photograph)
    assert len(legends(page)) == 2
    results = []
    for folder, legend, mask in zip(folders, legends(page), pictures(page, "mask"), strict=True):
        expected, result = expected_legend(folder, photograph)
        assert legend == expected
        assert (np.asarray(mask) == np.array(PALETTE, dtype=np.uint8)[result.mask]).all()
        confidence = demo_app.per_cent(result.mean_confidence)
        assert f"input 64 × 64 pixels · mean confidence {confidence} · " in page
        results.append(result)
    assert any(len(legend) > 1 for legend in legends(page))
    agreement = demo_app.per_cent((results[0].mask == results[1].mask).mean())
    assert f"The two masks agree on {agreement} of the pixels." in page
    assert "<h2>tiny-fcn</h2>" in page and "<h2>tiny-segformer</h2>" in page
    assert "<b>" not in page  # names are text, not markup
    (alone,) = legends(demo_app.show(shown_models(folders[:1]), photograph))
    assert alone == legends(page)[0]


@pytest.mark.parametrize("queries", [False, True])
def test_a_few_classes_are_enlarged_at_a_time(monkeypatch, queries):
    scores = torch.randn(1, 150, 5, 4, generator=torch.Generator().manual_seed(0)) * 3
    scores = scores.abs() if queries else scores
    whole = F.interpolate(scores, size=(33, 47), mode="bilinear", align_corners=False)[0]
    outputs = {"masks_queries_logits": None} if queries else SemanticSegmenterOutput(logits=scores)
    processor = build_image_processor(size=(32, 32), normalize="none")
    monkeypatch.setattr(
        type(processor), "post_process_semantic_segmentation", lambda *_, **__: [{"segmentation_scores": scores[0]}]
    )
    enlarged, interpolate = [], F.interpolate
    monkeypatch.setattr(
        F, "interpolate", lambda part, **how: enlarged.append(part.shape[1]) or interpolate(part, **how)
    )
    model = Mock(return_value=outputs, device="cpu", dtype=torch.float32)
    shown = demo_app.ShownModel("a", model, processor, [])
    before = time.perf_counter()
    result = demo_app.segment(shown, Image.new("RGB", (40, 30)), (47, 33))
    assert 0 < result.seconds < time.perf_counter() - before
    assert max(enlarged) == upsampling.CLASSES_AT_ONCE and sum(enlarged) == 150
    assert (result.mask == whole.argmax(dim=0).numpy()).all()
    shares = whole / whole.sum(dim=0) if queries else whole.softmax(dim=0)
    assert result.mean_confidence == pytest.approx(float(shares.amax(dim=0).mean()), rel=1e-5)


def test_a_model_with_queries_instead_of_logits(photograph, tmp_path):
    backbone = SwinConfig(image_size=32, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4)
    backbone.out_features = ["stage1", "stage2", "stage3", "stage4"]
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
    layers = {"dim_feedforward": 16, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=backbone, id2label=NAMES, num_queries=7, **sizes, **layers)
    )
    torch.nn.init.normal_(model.class_predictor.weight, std=0.3)
    model.save_pretrained(tmp_path)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(tmp_path)
    Image.new("RGB", (300, 1)).save(tmp_path / "thin.png")
    assert "300 × 1 pixels cannot be segmented" in demo_app.show(shown_models([tmp_path]), tmp_path / "thin.png")
    page = demo_app.show(shown_models([tmp_path]), photograph)
    expected, result = expected_legend(tmp_path, photograph)
    assert legends(page) == [expected]
    assert f"mean confidence {demo_app.per_cent(result.mean_confidence)} · " in page
    (tmp_path / "space").mkdir()
    stage_space([tmp_path], tmp_path / "space")
    assert "\nscipy>=" in (tmp_path / "space" / "requirements.txt").read_text()
    (loaded,) = demo_app.load_models(tmp_path / "space")
    assert legends(demo_app.show([loaded], photograph)) == [expected]


def test_shares_of_small_classes_are_not_rounded_to_nothing():
    nbsp = "\u00a0"
    assert demo_app.per_cent(0.0004) == f"<{nbsp}0.1{nbsp}%"
    assert demo_app.per_cent(0.0005) == f"0.1{nbsp}%" and demo_app.per_cent(1.0) == f"100.0{nbsp}%"


def test_photographs_are_turned_upright_and_shown_no_larger_than_needed(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_app, "SHOWN_SIDE", 80)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.new("RGB", (160, 120), (90, 60, 30)).save(tmp_path / "phone.jpg", exif=exif)
    page = demo_app.show(shown_models(folders[1:]), tmp_path / "phone.jpg")
    (picture,), (mask,) = pictures(page, "photograph"), pictures(page, "mask")
    assert picture.size == mask.size == (60, 80)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "CMYK"])
def test_photographs_of_other_modes(tmp_path, mode):
    path = tmp_path / f"picture.{'tif' if mode == 'CMYK' else 'png'}"
    Image.new("RGB", (40, 30), (255, 255, 255)).convert(mode).save(path)
    assert demo_app.read_photograph(path).mode == "RGB"


def damaged(path):
    Image.effect_noise((90, 70), 50).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("notes.txt", lambda path: path.write_text("not an image"), "notes.txt cannot be read as an image"),
        ("empty.jpg", lambda path: path.touch(), "empty.jpg cannot be read as an image"),
        ("<b>.jpg", damaged, "&lt;b&gt;.jpg cannot be read as an image: it is damaged, or not a JPEG, PNG"),
        # one pixel more than allowed, and so many that Pillow itself refuses
        ("large.png", lambda path: Image.new("1", (7000, 7143)).save(path), "more than 50 megapixels"),
        ("huge.png", lambda path: Image.new("1", (20000, 20000)).save(path), "more than 50 megapixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_that_cannot_be_shown_say_why(tmp_path, name, write, message):
    write(tmp_path / name)
    page = demo_app.show([], tmp_path / name)
    assert page.startswith('<p class="problem" role="alert">') and message in page


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_deep_photographs_are_refused_as_in_training(tmp_path, kind):
    Image.fromarray(np.full((40, 30), 1000, dtype=kind)).save(tmp_path / "deep.tif")
    for decode in (demo_module._decode, demo_app.decode):  # here, and in a Space
        page = demo_app.show([], tmp_path / "deep.tif", decode)
        assert page.startswith('<p class="problem" role="alert">deep.tif') and "8 bits" in page


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float32])
def test_training_predict_and_demo_make_the_same_of_turned_and_deep_photographs(tmp_path, kind):
    values = np.random.default_rng(0).integers(0, 4096, (40, 30)).astype(kind)
    values[0, 0] = np.nan if kind is np.float32 else 0
    path, value_range = tmp_path / "deep.tif", [100, 4000.5]
    Image.fromarray(values).save(path, tiffinfo={ExifTags.Base.Orientation: 6})
    trained = UprightImage(value_range=value_range).decode_example({"path": str(path), "bytes": None})
    assert trained.size == (40, 30) and len(np.unique(trained)) > 250
    shades = values if kind is np.uint8 else np.rint(np.clip((values.astype(float) - 100) / 3900.5, 0, 1) * 255)
    assert np.array_equal(np.asarray(trained)[..., 0], np.rot90(np.nan_to_num(shades), -1))
    for read in (read_image, demo_module._decode, demo_app.decode):
        assert np.array_equal(read(path, value_range), trained)


def test_a_page_reads_deep_photographs_as_its_model(folders, tmp_path):
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(40, 30)).save(tmp_path / "deep.png")
    model = shutil.copytree(folders[0], tmp_path / "deep")
    build_image_processor(size=(64, 64), normalize="none", value_range=[0, 1200]).save_pretrained(model)
    (shown,) = shown_models([model])
    for decode in (demo_module._decode, demo_app.decode):  # here, and in a Space
        page = demo_app.build_page([shown], [tmp_path / "deep.png"], decode)
        (click,) = [fn.fn for fn in page.fns.values() if fn.fn and fn.fn.__name__ == "show_example"]
        seen = np.asarray(pictures(click(0), "photograph")[0]).astype(int)
        assert np.abs(seen[..., 0] - np.arange(1200).reshape(40, 30) * 255 / 1200).max() < 8  # it is a JPEG
    with pytest.raises(
        Refusal, match=r"with data.value_range \[0, 1200\] and None, but the page reads each file once"
    ):
        stage_space([model, folders[1]], tmp_path / "space")


@pytest.mark.parametrize("index", [999, -1, None, "a", 0.5, [0]])
def test_an_example_that_is_not_there(index, photograph):
    page = demo_app.build_page([], [photograph])
    (click,) = [fn.fn for fn in page.fns.values() if fn.fn and fn.fn.__name__ == "show_example"]
    assert click(index).startswith('<p class="problem" role="alert">There is no example ')
    assert click(0).startswith('<div class="results">')


def test_no_path_is_no_photograph():
    assert "None cannot be read as an image" in demo_app.show([], None)


def test_sigterm_deletes_the_uploads(folders, photograph, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    before = signal.getsignal(signal.SIGTERM)
    port, answers = free_port(), []

    def visit():
        try:
            url = f"http://127.0.0.1:{port}/gradio_api"
            body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="secret.png"\r\n\r\n'
            body += photograph.read_bytes() + b"\r\n--x--\r\n"
            head = {"Content-Type": "multipart/form-data; boundary=x"}
            for _ in range(300):
                with contextlib.suppress(OSError):
                    answers.append(urllib.request.urlopen(urllib.request.Request(f"{url}/upload", body, head)).status)
                    break
                time.sleep(0.1)
            answers.append(len(list((tmp_path / "cache").rglob("secret.png"))))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit)
    visitor.start()
    serve(folders[1:], port=port)
    visitor.join()
    assert answers == [200, 1]
    assert not list((tmp_path / "cache").rglob("secret.png"))
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_port_that_is_none(folders, capsys):
    assert cli.main(["demo", str(folders[1]), "--port", "99999"]) == 2
    assert "127.0.0.1:99999: cannot be used" in capsys.readouterr().err


@pytest.fixture
def no_server(monkeypatch):
    monkeypatch.setattr(gradio.Blocks, "launch", lambda *args, **kwargs: pytest.fail("the server was started"))


def test_three_models_are_too_many(folders, capsys, no_server):
    assert cli.main(["demo", *map(str, folders), str(folders[0])]) == 2
    assert capsys.readouterr().err == "error: 3 models are named; name one, or two to show them side by side\n"


def test_missing_gradio_is_named(folders, monkeypatch, no_server):
    find = demo_module.importlib.util.find_spec
    monkeypatch.setattr(demo_module.importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    for start in (lambda: serve(folders), lambda: push_space(folders, "alice/demo")):
        with pytest.raises(Refusal, match=r"pip install 'hf_seg\[demo\]'"):
            start()


def test_a_model_that_cannot_be_loaded_is_not_served(tmp_path, no_server):
    with pytest.raises(Refusal, match="no semantic segmentation model"):
        serve([tmp_path])


def test_a_taken_port_is_an_error(folders, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert cli.main(["demo", str(folders[1]), "--port", str(port)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: 127.0.0.1:{port}: cannot be used: the port is in use") and "--port" in error


# -- in a browser -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(command, log, **options):
    """Start a program that serves a page, and wait for the URL that it prints."""

    def heed_ctrl_c():  # a shell that runs the tests in the background has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, preexec_fn=heed_ctrl_c, **options)
        try:
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
                assert process.poll() is None, log.read_text()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
            yield process, found[0]
        finally:
            process.kill()
            process.wait()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_the_page_in_a_browser(folders, photograph, browser, tmp_path):
    program = [sys.executable, "-m", "hf_seg.cli", "demo", *map(str, folders), "--port", str(free_port())]
    cache = tmp_path / "cache"
    with served(program, tmp_path / "log.txt", env=os.environ | {"GRADIO_TEMP_DIR": str(cache)}) as (process, url):
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(url)
        upload = page.locator("#upload input[type=file]")
        upload.wait_for(state="attached")

        upload.set_input_files(photograph)
        page.locator(".legend").nth(1).wait_for()
        for folder, panel in zip(folders, page.locator(".result").all(), strict=True):
            expected, _ = expected_legend(folder, photograph)
            texts = [line.inner_text().split("\n") for line in panel.locator(".legend li").all()]
            assert [tuple(part for part in text if part) for text in texts] == expected
            assert panel.locator("h2").inner_text() == folder.name
            assert "input 64 × 64 pixels" in panel.locator(".facts").inner_text()
        left, right = (panel.bounding_box() for panel in page.locator(".result").all())
        assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]  # side by side

        # the slider: the same mask over the same photograph, blended otherwise, without asking the server
        mask = page.locator(".result img.mask").first
        source, slider = mask.get_attribute("src"), page.locator("#opacity input[type=range]")
        before = picture_on_screen(page)
        asked = len(requests)
        slider.fill("100")
        page.wait_for_function("getComputedStyle(document.querySelector('img.mask')).opacity == 1")
        opaque = picture_on_screen(page)
        slider.fill("0")
        page.wait_for_function("getComputedStyle(document.querySelector('img.mask')).opacity == 0")
        clear = picture_on_screen(page)
        assert not [address for address in requests[asked:] if not address.startswith("data:")]
        assert mask.get_attribute("src") == source
        blended = clear + (opaque - clear) * demo_app.OPACITY / 100
        assert np.abs(before - blended).max() < 3 and np.abs(before - clear).mean() > 5
        seen = {tuple(colour) for colour in opaque.reshape(-1, 3).astype(int).tolist()}
        assert seen <= {tuple(colour) for colour in PALETTE}
        slider.fill(str(demo_app.OPACITY))
        page.screenshot(path=tmp_path / "page.png", full_page=True)

        # a file that is no image; then one of the examples, so nothing is stuck
        (tmp_path / "notes.txt").write_text("not an image")
        upload.set_input_files(tmp_path / "notes.txt")
        page.locator(".problem").wait_for()
        assert "notes.txt cannot be read as an image" in page.locator(".problem").inner_text()
        assert page.locator(".result").count() == 0
        page.locator(".gallery-item").first.click()
        page.locator(".legend").nth(1).wait_for()
        assert page.locator(".problem").count() == 0

        # on a phone one below the other, and nothing sticks out
        page.set_viewport_size({"width": 390, "height": 800})
        above, below = (panel.bounding_box() for panel in page.locator(".result").all())
        assert above["y"] + above["height"] <= below["y"] and above["x"] == below["x"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

        assert not errors
        assert requests and not [
            address for address in requests if not address.startswith((url, "data:", f"blob:{url}"))
        ]
        page.close()
        assert list(cache.rglob("photograph.png"))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, (tmp_path / "log.txt").read_text()
        assert "Traceback" not in (tmp_path / "log.txt").read_text()
        assert not list(cache.rglob("photograph.png"))  # uploads do not outlive the server


def picture_on_screen(page):
    """The pixels of the first panel's picture, without its border, where scaling mixes neighbours."""
    shot = Image.open(io.BytesIO(page.locator(".result .picture").first.screenshot())).convert("RGB")
    return np.asarray(shot, dtype=float)[4:-4, 4:-4]


# -- as a Space -------------------------------------------------------------------------------------------------------

RUN_APP = """
import json, runpy, sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_seg":
            raise AssertionError("hf_seg was imported")
sys.meta_path.insert(0, Forbidden())
from pathlib import Path
app = runpy.run_path("app.py")
models = app["load_models"](Path("."))
app["build_page"](models, sorted(Path("examples").glob("*.jpg")))
print(json.dumps(app["show"](models, sys.argv[1])))
"""


def space_page(folder, photograph, **environment):
    """What the Space's program, in a process without hf_seg, makes of a photograph."""
    ran = subprocess.run(
        [sys.executable, "-c", RUN_APP, photograph],
        cwd=folder,
        env=os.environ | environment,
        text=True,
        capture_output=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_what_a_space_is_made_of(folders, tmp_path):
    stage_space(folders, tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    weights = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {name for name in files if not name.startswith("examples/")} == (
        {"app.py", "geometry.py", "upsampling.py", "models.json", "requirements.txt", "README.md"}
        | {f"models/tiny-segformer/{name}" for name in weights}
        | {f"models/tiny-fcn/{name}" for name in weights | {"configuration_fcn.py", "modeling_fcn.py"}}
    )
    assert sum(name.startswith("examples/") for name in files) == 6
    code = [(tmp_path / name).read_text() for name in ("app.py", "geometry.py", "upsampling.py")]
    assert "from geometry import" in code[0] and "from hf_seg" not in "".join(code)
    assert code[1] == Path(geometry.__file__).read_text()

    metadata, text = re.fullmatch(r"---\n(.*?)\n---\n(.*)", (tmp_path / "README.md").read_text(), re.DOTALL).groups()
    assert yaml.safe_load(metadata) == {
        "title": "Segmentation: tiny-fcn and tiny-segformer",
        "sdk": "gradio",
        "sdk_version": gradio.__version__,
        "python_version": demo_module.PYTHON,
        "app_file": "app.py",
    }
    assert "only if the terms of the data" in text

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = {requirement.strip() for requirement in project["dependencies"]}
    floors |= set(project["optional-dependencies"]["demo"])
    assert set((tmp_path / "requirements.txt").read_text().splitlines()) <= floors
    assert project["requires-python"] == f">={demo_module.PYTHON}"


def test_a_space_with_a_model_of_smp(photograph, tmp_path):
    torch.manual_seed(0)
    arguments = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    SmpForSemanticSegmentation(SmpConfig(encoder="resnet10t", arguments=arguments, id2label=NAMES)).save_pretrained(
        tmp_path / "unet"
    )
    build_image_processor(size=(64, 64), normalize="none").save_pretrained(tmp_path / "unet")
    (tmp_path / "space").mkdir()
    stage_space([tmp_path / "unet"], tmp_path / "space")
    files = {path.name for path in (tmp_path / "space" / "models" / "unet").iterdir()}
    assert files >= {"configuration_smp.py", "modeling_smp.py"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*extras["smp"]} < {*(tmp_path / "space" / "requirements.txt").read_text().splitlines()}
    (loaded,) = demo_app.load_models(tmp_path / "space")
    expected, _ = expected_legend(tmp_path / "unet", photograph)
    assert legends(demo_app.show([loaded], photograph)) == [expected]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("modeling_fcn.py", lambda text: text + "\nopen('/tmp/x', 'w')\n"),
        ("configuration_fcn.py", lambda text: "import os\n" + text),
        ("config.json", lambda text: text.replace('"modeling_fcn.FCN', '"owner/name--modeling_fcn.FCN')),
    ],
)
def test_code_of_others_does_not_get_into_a_space(folders, tmp_path, file, change):
    folder = shutil.copytree(folders[0], tmp_path / "run")
    (folder / "settings.py").write_text("TOKEN = 'secret'")
    (tmp_path / "good").mkdir()
    stage_space([folder], tmp_path / "good")
    assert not list((tmp_path / "good").rglob("settings.py"))
    (folder / file).write_text(change((folder / file).read_text()))
    (tmp_path / "space").mkdir()
    with pytest.raises(Refusal, match=f"run: its {file} (is not the one|names code that is not)"):
        stage_space([folder], tmp_path / "space")


@pytest.mark.slow
def test_a_space_runs_without_hf_seg(folders, photograph, tmp_path):
    (tmp_path / "space").mkdir()
    stage_space(folders, tmp_path / "space")
    page = space_page(tmp_path / "space", photograph, HF_HOME=str(tmp_path / "hf_home"))
    assert legends(page) == [expected_legend(folder, photograph)[0] for folder in folders]


def test_folders_of_one_name_are_told_apart(folders, tmp_path):
    for parent in ("a", "b"):
        shutil.copytree(folders[1], tmp_path / parent / "run")
    (tmp_path / "space").mkdir()
    stage_space([tmp_path / "a" / "run", tmp_path / "b" / "run"], tmp_path / "space")
    entries = json.loads((tmp_path / "space" / "models.json").read_text())
    assert [entry["name"] for entry in entries] == ["a/run", "b/run"]  # and nothing else of this machine's folders
    assert len({entry["model"] for entry in entries}) == 2
    with pytest.raises(Refusal, match="run: is named twice"):
        stage_space([tmp_path / "a" / "run", tmp_path / "a" / "run"], tmp_path / "again")


@pytest.mark.slow
def test_pushing_a_space(folders, photograph, hub, tmp_path, capsys):
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("lab/pets")
    api.upload_folder(repo_id="lab/pets", folder_path=folders[0], ignore_patterns=["results.json"])
    status = cli.main(["demo", "lab/pets", str(folders[1]), "--space", "alice/pets-demo", "--private"])
    said = capsys.readouterr()
    assert status == 0, said.err
    assert said.out.splitlines()[-1] == f"{hub.endpoint}/spaces/alice/pets-demo"
    assert hub.repositories["space", "alice/pets-demo"].private
    assert len(hub.repositories["space", "alice/pets-demo"].messages) == 2  # the Hub's own commit, and one of ours

    files = hub.files("alice/pets-demo", kind="space")
    entries = json.loads(files["models.json"])
    assert [entry["model"] for entry in entries] == ["lab/pets", "models/tiny-segformer"]
    # what runs in the Space is the code that was there when it was pushed
    assert entries[0]["trust_remote_code"] and entries[0]["revision"] == api.repo_info("lab/pets").sha
    assert not entries[1]["trust_remote_code"]
    assert b"models:\n- lab/pets\n" in files["README.md"]
    assert not [name for name in files if name.startswith("models/tiny-fcn")]
    token = os.environ["HF_TOKEN"].encode()
    assert not [name for name, content in files.items() if token in content]

    for name, content in files.items():
        path = tmp_path / "space" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    page = space_page(tmp_path / "space", photograph)
    assert legends(page) == [expected_legend(folder, photograph)[0] for folder in folders]

    # again with one model: what the first push uploaded is not left behind
    push_space([folders[0]], "alice/pets-demo")
    models = {name.split("/")[1] for name in hub.files("alice/pets-demo", kind="space") if name.startswith("models/")}
    assert models == {"tiny-fcn"}


def no_token(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")


def somebody_elses(hub, monkeypatch):
    from huggingface_hub import HfApi

    HfApi().create_repo("alice/demo", repo_type="space", space_sdk="gradio")
    HfApi().upload_file(
        path_or_fileobj=b"print()", path_in_repo="app.py", repo_id="alice/demo", repo_type="space", commit_message="-"
    )


def forbidden(hub, monkeypatch):
    hub.fail("POST", "/api/repos/create", status=403)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (no_token, "cannot be pushed without a token; run `hf auth login`"),
        (somebody_elses, "alice/demo: exists on the Hub and was not made by hf-seg demo; choose another name"),
        (forbidden, "alice/demo: the Hub does not allow it"),
    ],
)
def test_what_the_hub_refuses(folders, hub, monkeypatch, prepare, message):
    prepare(hub, monkeypatch)
    with pytest.raises(HubError, match=re.escape(message)):
        push_space([folders[1]], "alice/demo")
