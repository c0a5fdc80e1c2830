"""Faces of a photo: our one pass with three networks against two passes with all five; onnxruntime's options."""

import contextlib
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hyperlora_core import FaceAnalyzer, read_photo
from hyperlora_core.demo.portraits import HELD_OUT, Identity, Scene, render
from hyperlora_core.face.analyzer import DETECTION_SIZES
from hyperlora_core.face.pack import LANDMARKS, find_networks
from hyperlora_core.packages import require

from .bench import Bench, Budget

GROUP = "faces"
MOST = 0.4  # of two passes with five networks
SIDE = 768  # pixels of the drawn photo
NETWORKS = 5


def measure(bench: Bench) -> None:
    """On the CPU, where onnxruntime runs unless its GPU package is there."""
    photo = read_photo(bench.photo) if bench.photo else drawn_photo(bench.seed)
    analyzer = FaceAnalyzer.load(bench.face_pack, "cpu")
    analyzer.face(photo)  # raises for a photo without a face
    files = list(find_networks(bench.face_pack).values())
    bgr = np.ascontiguousarray(photo[..., ::-1])
    with _five_networks(bench.face_pack) as (folder, made):
        theirs = _face_analysis(folder)

        def two_passes() -> None:
            for _ in range(2):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # insightface's own, of scikit-image and numpy, at every face
                    theirs.get(bgr)

        networks = _running(files, lambda options: None)
        ours, two, alone = bench.alternate(f"{GROUP}: passes", [lambda: analyzer.face(photo), two_passes, networks])
    floor = min(alone)
    made_note = f"; {made} of the five are stand-ins that cost less than real ones" if made else ""
    bench.add(GROUP, "one pass, three networks", ours, floor=floor, note="floor: the three networks alone")
    bench.add(
        GROUP,
        f"two passes, {len(theirs.models)} networks (insightface's FaceAnalysis)",
        two,
        floor=floor,
        note="the same photo" + made_note,
    )
    bench.add(
        GROUP,
        "one pass against two",
        [one / both for one, both in zip(ours, two, strict=True)],
        "x",
        budget=Budget(MOST, of_floor=False),
    )
    settings = _settings()
    calls = [_running(files, change) for change in settings.values()]
    measured = bench.alternate(f"{GROUP}: onnxruntime's options", calls)
    best = min(min(seconds) for seconds in measured)
    for name, seconds in zip(settings, measured, strict=True):
        bench.add(GROUP, f"three networks, {name}", seconds, floor=best, note="floor: the fastest of these")


def drawn_photo(seed: int) -> np.ndarray:
    scene = Scene.random(np.random.default_rng(seed), sketch=0, hat=0, glasses=0)
    return render(Identity.from_seed(HELD_OUT[seed]), scene, SIDE).image


def _settings() -> dict[str, Callable]:
    """Name -> what it changes in onnxruntime's SessionOptions."""
    runtime = require("onnxruntime", "Measuring faces")

    def threads(count: int) -> Callable:
        return lambda options: setattr(options, "intra_op_num_threads", count)

    def parallel(options) -> None:
        options.execution_mode = runtime.ExecutionMode.ORT_PARALLEL

    cores = torch.get_num_threads()
    return {
        "as onnxruntime chooses": lambda options: None,
        "1 thread": threads(1),
        **({f"{cores} threads": threads(cores)} if cores > 1 else {}),
        "no spinning": lambda options: options.add_session_config_entry("session.intra_op.allow_spinning", "0"),
        "branches in parallel": parallel,
        "no memory arena": lambda options: setattr(options, "enable_cpu_mem_arena", False),
    }


def _running(files: list[Path], change: Callable) -> Callable[[], None]:
    """The networks once each, on noise of the size that they get for one face."""
    runtime = require("onnxruntime", "Measuring faces")
    rng = np.random.default_rng(0)
    sessions = []
    for file in files:
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        change(options)
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0]
        free = (1, 3, DETECTION_SIZES[0], DETECTION_SIZES[0])
        shape = [size if isinstance(size, int) else at for size, at in zip(given.shape, free, strict=True)]
        sessions.append((session, {given.name: rng.standard_normal(shape, np.float32)}))

    def run() -> None:
        for session, inputs in sessions:
            session.run(None, inputs)

    return run


def _face_analysis(folder: Path):
    """As other packs load it: everything that lies in the folder."""
    analysis = require("insightface.app", "Measuring faces").FaceAnalysis
    with contextlib.redirect_stdout(sys.stderr):  # insightface 0.7 prints
        app = analysis(name=str(folder.resolve()), providers=["CPUExecutionProvider"], static_shape_sessions=False)
        app.prepare(ctx_id=0, det_size=(DETECTION_SIZES[0],) * 2)
    return app


@contextlib.contextmanager
def _five_networks(pack: Path):
    """The pack's folder, and how many stand-ins for its 3-d landmarks and age network had to be made: the demo's has none.

    insightface reads a folder's files only while it loads them, so it may go afterwards; on Windows it can't go earlier.
    """
    networks = find_networks(pack)
    folder = networks[LANDMARKS].parent
    missing = NETWORKS - len(list(folder.glob("*.onnx")))
    if missing <= 0:
        yield folder, 0
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        view = Path(name)
        for file in networks.values():
            (view / file.name).write_bytes(file.read_bytes())
        _write_3d_landmarks(networks[LANDMARKS], view / "stand_in_3d68.onnx")
        _write_age(view / "stand_in_age.onnx")
        yield view, 2


def _write_3d_landmarks(landmarks: Path, path: Path) -> None:
    """The 2-d network with the 3-d one's number of outputs, by which insightface knows it."""
    onnx = require("onnx", "Making a stand-in face network")
    model = onnx.load(str(landmarks))
    (output,) = model.graph.output
    width = output.type.tensor_type.shape.dim[1].dim_value
    pads = onnx.numpy_helper.from_array(np.array([0, 3309 - width, 0, 0], np.int64), "stand_in_pads")
    model.graph.initializer.append(pads)
    model.graph.node.append(onnx.helper.make_node("Pad", [output.name, pads.name], ["stand_in"]))
    output.name = "stand_in"
    output.type.tensor_type.shape.dim[1].dim_value = 3309
    onnx.save(model, str(path))


def _write_age(path: Path) -> None:
    onnx = require("onnx", "Making a stand-in face network")
    node, info, kind = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    nodes = [node("GlobalAveragePool", ["picture"], ["mean"]), node("Flatten", ["mean"], ["ages"])]
    inputs, outputs = [info("picture", kind, ["n", 3, 96, 96])], [info("ages", kind, [1, 3])]
    graph = onnx.helper.make_graph(nodes, "age", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=8)
    onnx.save(model, str(path))
