"""A face pack of toy networks in InsightFace's forms, written at test time.

The toy "face" is a bright green square. The detector fires where the green of a 96 px window stands out from the 224 px
around it, so it knows faces of about 40 to 160 px at its input, as a real one has its range; the landmarks are fixed
points in the face; the embedding is a random linear map of the aligned face.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FACE = (0, 255, 0)
BACKGROUND = (90, 90, 90)


def save(path, nodes, weights, inputs, outputs, ir_version=8, weights_as_inputs=False):
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    if weights_as_inputs:
        infos += [helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in initializers]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    graph = helper.make_graph(nodes, path.stem, infos, results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=ir_version)
    onnx.save(model, path)


def make_detector(path, size=("?", "?")):
    """SCRFD's form: for strides 8, 16, 32 scores [n, 1], boxes [n, 4] and 5 points [n, 10], two anchors per cell."""
    node = helper.make_node
    nodes = [node("Conv", ["image", "green"], ["greenness"])]
    weights = {"green": np.float32([-0.5, 1, -0.5]).reshape(1, 3, 1, 1) / 2}
    # a face's box and points around the anchor, in strides; the detector is calibrated for a face of 96 px
    rows = {
        "score": np.float32([0, 0]),
        "box": np.float32([1.5, 1.5, 1.5, 1.5] * 2),
        "points": np.float32([-0.6, -0.5, 0.6, -0.5, 0, 0, -0.5, 0.6, 0.5, 0.6] * 2),
    }
    outputs = {"score": {}, "box": {}, "points": {}}
    for stride in (8, 16, 32):
        before = "greenness" if stride == 8 else f"mean{stride // 2}"
        factor = 8 if stride == 8 else 2
        nodes.append(node("AveragePool", [before], [f"mean{stride}"], kernel_shape=[factor] * 2, strides=[factor] * 2))
    for name, window in (("inner", 96 // 8), ("outer", 224 // 8)):
        half = window // 2
        nodes.append(
            node(
                "AveragePool",
                ["mean8"],
                [name],
                kernel_shape=[window] * 2,
                strides=[4, 4],
                pads=[half, half, half - 4, half - 4],
            )
        )
    nodes.append(node("Sub", ["inner", "outer"], ["contrast32"], name="contrast"))
    for stride in (8, 16, 32):
        cells = "contrast32" if stride == 32 else f"mean{stride}"
        for kind, bias in rows.items():
            width = len(bias) // 2
            fires = kind == "score" and stride == 32
            weights[f"{kind}_w{stride}"] = np.full((len(bias), 1, 1, 1), 40.0 if fires else 0.0, np.float32)
            weights[f"{kind}_b{stride}"] = bias - (20.0 if fires else 30.0) if kind == "score" else bias
            weights[f"{kind}_shape{stride}"] = np.int64([-1, width])
            inputs = [cells, f"{kind}_w{stride}", f"{kind}_b{stride}"]
            nodes += [
                node("Conv", inputs, [f"{kind}_map{stride}"]),
                node("Transpose", [f"{kind}_map{stride}"], [f"{kind}_last{stride}"], perm=[0, 2, 3, 1]),
                node("Reshape", [f"{kind}_last{stride}", f"{kind}_shape{stride}"], [f"{kind}_raw{stride}"]),
                node("Sigmoid" if kind == "score" else "Identity", [f"{kind}_raw{stride}"], [f"{kind}{stride}"]),
            ]
            outputs[kind][f"{kind}{stride}"] = ["n", width]
    ordered = {name: shape for kind in outputs.values() for name, shape in kind.items()}
    save(path, nodes, weights, {"image": [1, 3, *size]}, ordered)


def make_landmarks(path, points=106, coordinates=2):
    """[1, 3, 192, 192] -> [1, 212]: a spiral in -1..1, whatever the picture."""
    angle = np.linspace(0, 6 * np.pi, points)
    spiral = (
        np.stack([np.cos(angle), np.sin(angle), angle][:coordinates], axis=1) * np.linspace(0.1, 0.6, points)[:, None]
    )
    width = 3309 if coordinates == 3 else points * coordinates
    bias = np.zeros((1, width), np.float32)
    bias[0, -points * coordinates :] = spiral.ravel()
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["points"]),
    ]
    weights = {"weight": np.zeros((3, width), np.float32), "bias": bias}
    save(path, nodes, weights, {"image": ["None", 3, 192, 192]}, {"points": [1, width]})


def make_recognition(path, width=512, old=False, scale=1.0, several=False):
    nodes = [
        helper.make_node("AveragePool", ["image"], ["small"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["small"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["embedding"]),
    ]
    weight = np.random.default_rng(0).normal(size=(147, width)).astype(np.float32) * np.float32(scale)
    shapes = {"image": ["None", 3, 112, 112]}, {"embedding": ["None" if several else 1, width]}
    save(path, nodes, {"weight": weight}, *shapes, ir_version=3 if old else 8, weights_as_inputs=old)


def make_attributes(path):
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["ages"]),
    ]
    save(path, nodes, {}, {"image": ["None", 3, 96, 96]}, {"ages": [1, 3]})


def write_face_pack(folder):
    """All five networks, under antelopev2's names."""
    folder.mkdir()
    make_detector(folder / "scrfd_10g_bnkps.onnx")
    make_landmarks(folder / "2d106det.onnx")
    make_landmarks(folder / "1k3d68.onnx", 68, 3)
    make_recognition(folder / "glintr100.onnx", old=True)
    make_attributes(folder / "genderage.onnx")
    return folder


def photo_with(*boxes, size=(640, 640)):
    photo = np.empty((size[1], size[0], 3), np.uint8)
    photo[:] = BACKGROUND
    for x0, y0, x1, y1 in boxes:
        photo[y0:y1, x0:x1] = FACE
    return photo
