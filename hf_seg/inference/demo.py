"""`hf-seg demo`: serve the page of `demo_app` with one or two models, or push it as a Space."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import json
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, SpaceCardData, snapshot_download
from packaging.requirements import Requirement
from PIL import Image
from transformers import PreTrainedModel

from hf_seg.data import geometry
from hf_seg.data.sources.synthetic import generate
from hf_seg.hub.client import attempt, full_name, list_files
from hf_seg.hub.push import model_files, stage
from hf_seg.inference.predict import read_image
from hf_seg.inference.segmenter import Segmenter, load_segmenter
from hf_seg.models import OWN_MODELS, SmpForSemanticSegmentation
from hf_seg.problem import HubError, Problem, Refusal
from hf_seg.scoring import upsampling
from hf_seg.text import link, markdown, printable, say

REQUIRED = ("gradio", "pillow", "timm", "torch", "torchvision", "transformers")  # a Space installs these
PYTHON = "3.11"
EXAMPLES = {"synthetic_pet": 4, "synthetic_cityscapes": 2}
BESIDE = (geometry, upsampling)  # the modules of hf_seg that demo_app.py imports; a Space gets copies
ENLARGED = 4  # factor; the generated pictures are too small for a page

README = """
# {title}

Drop a photograph to see the mask over it, a legend with the share of each class, and a slider for the mask's opacity.
Made by `hf-seg demo`.

{sources}
"""
INSIDE = """
The weights under `models/` are published with this Space. Make it public only if the terms of the data and of the
initial weights that they come from allow that.
"""


def serve(models: Sequence[str | Path], *, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the page until Ctrl-C or SIGTERM, then delete the uploaded files. The page loads nothing from other hosts.

    Args:
        models: one run folder or Hub id, or two to be compared.
        host: `"0.0.0.0"` allows access from other machines.

    Raises:
        Refusal: before anything is served: when there are more than two models, a model cannot be loaded, gradio is
            missing, or the port is in use.
    """
    names, segmenters = _load(models)
    from hf_seg.inference import demo_app  # needs gradio

    shown = [
        demo_app.ShownModel(name, each.model, each.image_processor, each.palette)
        for name, each in zip(names, segmenters, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        page = demo_app.build_page(shown, _write_examples(Path(folder)), _decode)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, which gradio handles
        try:
            page.launch(server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, **demo_app.LAUNCH)
            say(f"serving {' and '.join(names)} on {page.local_url} (Ctrl-C stops it)")
            page.block_thread()
        except KeyboardInterrupt:  # before block_thread, which handles it itself
            page.close(verbose=False)
        except (OSError, OverflowError) as error:  # OverflowError: a port above 65,535
            what = "cannot be used: the port is in use, or the host is not this machine"
            raise Refusal(f"{host}:{port}", what, "choose others with --port or --host") from error
        finally:
            signal.signal(signal.SIGTERM, before)


def _decode(path: str | Path, value_range: Sequence[float] | None = None) -> Image.Image:
    """Decode an uploaded file as training does, to an upright RGB image; raise a `PhotographError` if it cannot be."""
    from hf_seg.inference.demo_app import PhotographError

    image = read_image(Path(path), value_range)
    if isinstance(image, Problem):
        raise PhotographError(f"{Path(path).name}: {image.what}. {image.remedy}")
    return image


def push_space(models: Sequence[str | Path], repo_id: str, *, private: bool = False) -> str:
    """Push the page as a Space, as one commit, and return its URL.

    Args:
        models: one or two; a Hub id is referenced, the model in a folder is uploaded.
        repo_id: `owner/name` or `name` of the Space, which is created if it does not exist.
        private: applies if the Space is created.

    Raises:
        Refusal: as [`stage_space`].
        HubError: when the Hub cannot be reached or refuses, or the Space was not made by `hf-seg demo`.
    """
    with tempfile.TemporaryDirectory() as folder:
        stage_space(models, Path(folder))
        repo_id, api = full_name(repo_id, "--space"), HfApi()
        space = {"repo_id": repo_id, "repo_type": "space"}
        files = list_files(**space)
        if files and "models.json" not in files:
            raise HubError(repo_id, "exists on the Hub and was not made by hf-seg demo", "choose another name")
        made = {"space_sdk": "gradio", "private": private or None, "exist_ok": True}
        url = attempt(lambda: api.create_repo(**space, **made), repo_id)
        more = {"commit_message": "hf-seg demo", "delete_patterns": "models/*"}  # models of an earlier push
        attempt(lambda: api.upload_folder(**space, folder_path=folder, **more), repo_id)
    return str(url)


def stage_space(models: Sequence[str | Path], folder: Path) -> None:
    """Write the files that [`push_space`] uploads: app, requirements, card, examples, and the models in folders.

    Raises:
        Refusal: when there are more than two models, a model cannot be loaded or has code other than that of this
            version, or gradio is missing.
    """
    names, segmenters = _load(models)
    entries, references, inside = [], [], False
    for model, name, segmenter in zip(models, names, segmenters, strict=True):
        source, revision, files = str(model), None, Path(model)
        runs_code = type(segmenter.model.config) in OWN_MODELS
        if files.is_dir():
            source, inside = f"models/{name.replace('/', '--')}", True
            wanted = [file for file in model_files(files) if runs_code or not file.endswith(".py")]
            stage(files, folder / source, wanted)
        else:
            references.append(source)
            get = functools.partial(snapshot_download, source, allow_patterns=["*.json", "*.py"])
            files = Path(attempt(get, source))
            revision = files.name  # pins the model and its code to the commit that is checked now
        if runs_code:
            _check_code(model, files, segmenter.model)
        how = {"trust_remote_code": runs_code, "has_queries": segmenter.has_queries, "colours": segmenter.palette}
        entries.append({"name": name, "model": source, "revision": revision, **how})
    (folder / "models.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    for source in (Path(__file__).with_name("demo_app.py"), *(Path(module.__file__) for module in BESIDE)):
        text = source.read_text(encoding="utf-8")
        for module in BESIDE:  # a Space has no hf_seg
            text = text.replace(f"from {module.__name__} import", f"from {module.__name__.rpartition('.')[2]} import")
        (folder / source.name.replace("demo_app", "app")).write_text(text, encoding="utf-8")
    packages, floors = [*REQUIRED], map(Requirement, importlib.metadata.requires("hf_seg"))
    packages += ["scipy"] if any(each.has_queries for each in segmenters) else []  # for transformers
    smp = any(isinstance(each.model, SmpForSemanticSegmentation) for each in segmenters)
    packages += ["segmentation-models-pytorch"] if smp else []
    floors = {each.name: each.specifier for each in floors}
    lines = [f"{name}{floors.get(name, '')}\n" for name in packages]
    (folder / "requirements.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "examples").mkdir()
    _write_examples(folder / "examples")
    title = f"Segmentation: {' and '.join(names)}"
    gradio = {"sdk": "gradio", "sdk_version": importlib.metadata.version("gradio"), "app_file": "app.py"}
    data = SpaceCardData(title=title, **gradio, python_version=PYTHON, models=references or None)
    sources = "".join(f"- {link(name, f'https://huggingface.co/{name}')}\n" for name in references)
    text = README.format(title=markdown(title), sources=sources + (INSIDE if inside else ""))
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n{text.rstrip()}\n", encoding="utf-8")


def _check_code(model: str | Path, files: Path, loaded: PreTrainedModel) -> None:
    """Refuse a model whose code differs from that of this version of hf_seg: the Space would run it."""
    remedy = "save the model again with this version, or push the run again"
    auto_map = {}
    for auto, each in (("AutoConfig", type(loaded.config)), ("AutoModelForSemanticSegmentation", type(loaded))):
        ours = Path(inspect.getfile(each))
        auto_map[auto] = f"{ours.stem}.{each.__name__}"
        if not (path := files / ours.name).is_file() or path.read_bytes() != ours.read_bytes():
            what = f"its {ours.name} is not the one that this version of hf_seg ships, and the Space would run it"
            raise Refusal(model, what, remedy)
    if json.loads((files / "config.json").read_text(encoding="utf-8")).get("auto_map") != auto_map:
        what = "its config.json names code that is not hf_seg's (auto_map), and the Space would run it"
        raise Refusal(model, what, remedy)


def _load(models: Sequence[str | Path]) -> tuple[list[str], list[Segmenter]]:
    """Load the models; return their names and segmenters. A name is the run folder's name or the Hub id; if two names
    are equal, enough parent folders are prepended to tell them apart."""
    if len(models) > 2:
        raise Refusal("", f"{len(models)} models are named", "name one, or two to show them side by side")
    if importlib.util.find_spec("gradio") is None:
        raise Refusal("", "the page needs gradio, which is not installed", "run `pip install 'hf_seg[demo]'`")
    places = [Path(model).resolve().parts if Path(model).is_dir() else (str(model),) for model in models]
    if len(set(places)) < len(places):
        raise Refusal(models[0], "is named twice", "name two different models")
    parts = next(count for count in itertools.count(1) if len({place[-count:] for place in places}) == len(places))
    names = ["/".join(place[-parts:]) for place in places]
    segmenters = [load_segmenter(model) for model in models]
    ranges = [each.value_range for each in segmenters]
    if ranges[0] != ranges[-1]:
        what = (
            f"they were trained with data.value_range {ranges[0]} and {ranges[1]}, but the page reads each file once"
        )
        raise Refusal(" and ".join(names), what, "show them separately")
    return [printable(name) for name in names], segmenters


def _write_examples(folder: Path) -> list[Path]:
    paths = []
    for name, count in EXAMPLES.items():
        pictures = generate(name, {"train": 1, "validation": 1, "test": count})["test"]["image"]
        for number, picture in enumerate(pictures):
            with Image.open(io.BytesIO(picture["bytes"])) as image:
                enlarged = image.resize((image.width * ENLARGED, image.height * ENLARGED), Image.Resampling.BICUBIC)
            paths.append(folder / f"{name}-{number}.jpg")
            enlarged.save(paths[-1], quality=90)
    return paths
