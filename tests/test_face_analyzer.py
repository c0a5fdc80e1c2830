"""FaceAnalyzer on a face pack of toy networks (toy_face_pack.py), run by insightface's own classes."""

import os
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest

from hyperlora_core.errors import HyperLoRAError, MissingPackageError, NoFaceError
from hyperlora_core.face import FaceAnalyzer, analyzer, pack
from hyperlora_core.face.pack import Signature, find_networks, read_signature, task_of

onnx = pytest.importorskip("onnx")
insightface_app = pytest.importorskip("insightface.app")

from toy_face_pack import make_detector, make_recognition, photo_with, save, write_face_pack  # noqa: E402


@pytest.fixture(scope="session")
def face_pack(tmp_path_factory):
    return write_face_pack(tmp_path_factory.mktemp("packs") / "antelopev2")


@pytest.fixture(scope="module")
def analysis(face_pack):
    return FaceAnalyzer.load(face_pack, "cpu")


# --- loading ---------------------------------------------------------------------------------------------------------


def test_only_three_networks_are_built(face_pack, monkeypatch):
    from insightface.model_zoo import model_zoo

    built = []
    original = model_zoo.get_model
    monkeypatch.setattr(model_zoo, "get_model", lambda name, **options: built.append(name) or original(name, **options))
    loaded = FaceAnalyzer.load(face_pack, "cpu")
    assert sorted(os.path.basename(name) for name in built) == [
        "2d106det.onnx",
        "glintr100.onnx",
        "scrfd_10g_bnkps.onnx",
    ]
    assert set(loaded.app.models) == {"detection", "landmark_2d_106", "recognition"}
    assert loaded.recognition_name == "glintr100"


@pytest.mark.skipif(version("insightface").startswith("0."), reason="insightface 0.7 passes no session options on")
def test_idle_threads_leave_the_processor_to_others(analysis):
    for network in analysis.app.models.values():
        assert network.session.get_session_options().get_session_config_entry(analyzer.SPINNING) == "0"


def test_links_live_as_long_as_the_app(face_pack):
    loaded = FaceAnalyzer.load(face_pack, "cpu")
    folder = os.path.dirname(loaded.app.models["detection"].model_file)
    assert os.path.exists(loaded.app.models["detection"].model_file)
    del loaded
    assert not os.path.exists(folder)


def test_app_is_usable_by_other_packs(analysis):
    assert isinstance(analysis.app, insightface_app.FaceAnalysis)
    assert tuple(analysis.app.det_model.input_size) == (640, 640)
    photo = photo_with((200, 200, 296, 296))
    (theirs,) = analysis.app.get(np.ascontiguousarray(photo[..., ::-1]))
    ours = analysis.face(photo)
    np.testing.assert_allclose(ours.box, theirs.bbox, atol=1e-3)
    np.testing.assert_allclose(ours.landmarks, theirs.landmark_2d_106, atol=1e-3)
    np.testing.assert_allclose(ours.embedding, theirs.normed_embedding, atol=1e-5)


def test_without_links_the_folder_itself_is_loaded(face_pack, monkeypatch):
    def refuse(*arguments):
        raise OSError("no links here")

    monkeypatch.setattr(analyzer.Path, "symlink_to", refuse)
    loaded = FaceAnalyzer.load(face_pack, "cpu")
    assert set(loaded.app.models) == {"detection", "landmark_2d_106", "recognition"}
    assert loaded.face(photo_with((200, 200, 296, 296))).embedding.shape == (512,)


def test_one_folder_level_too_deep(face_pack, tmp_path):
    (tmp_path / "antelopev2").mkdir()
    (tmp_path / "antelopev2" / "antelopev2").symlink_to(face_pack)
    assert find_networks(tmp_path / "antelopev2")["recognition"].name == "glintr100.onnx"


def test_signatures(face_pack):
    assert read_signature(face_pack / "glintr100.onnx") == Signature([[0, 3, 112, 112]], [[1, 512]])
    assert read_signature(face_pack / "scrfd_10g_bnkps.onnx").inputs == [[1, 3, 0, 0]]
    tasks = {path.stem: task_of(read_signature(path)) for path in face_pack.glob("*.onnx")}
    assert tasks == {
        "scrfd_10g_bnkps": "detection",
        "2d106det": "landmark_2d_106",
        "1k3d68": "landmark_3d_68",
        "glintr100": "recognition",
        "genderage": "genderage",
    }
    assert task_of(Signature([[1, 3, 128, 128], [1, 512]], [[1, 3, 128, 128]])) is None  # inswapper


def copy_pack(source, target, *without):
    target.mkdir()
    for file in source.glob("*.onnx"):
        if file.name not in without:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_missing_folder_and_networks(face_pack, tmp_path):
    with pytest.raises(HyperLoRAError, match=r"nowhere doesn't exist. Run: .* download antelopev2"):
        FaceAnalyzer.load(tmp_path / "nowhere")
    with pytest.raises(HyperLoRAError, match=r"holds no \.onnx files"):
        FaceAnalyzer.load(tmp_path)
    folder = copy_pack(face_pack, tmp_path / "partial", "2d106det.onnx", "glintr100.onnx")
    with pytest.raises(HyperLoRAError, match=r"partial lacks the 106 landmarks .* and face recognition .*download"):
        FaceAnalyzer.load(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"<!DOCTYPE html><html></html>", "web page"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (lambda data: b"", "empty file"),
        (lambda data: data[:-1000], "cut off"),
        (lambda data: data[: len(data) // 2], "cut off"),
        (lambda data: b"PK\x03\x04" + data, "cut off or isn't an ONNX network"),
        (lambda data: data.replace(b"MatMul", b"NatMul"), "can't be loaded"),
    ],
)
def test_damaged_network_is_named(face_pack, tmp_path, damage, message):
    folder = copy_pack(face_pack, tmp_path / "broken")
    file = folder / "glintr100.onnx"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(HyperLoRAError, match=message) as caught:
        FaceAnalyzer.load(folder, "cpu")
    assert "broken" in str(caught.value) and "ownload" in str(caught.value)


def test_a_damaged_file_that_is_not_needed_does_no_harm(face_pack, tmp_path):
    folder = copy_pack(face_pack, tmp_path / "half")
    (folder / "1k3d68.onnx").write_bytes(b"<html>")
    assert set(FaceAnalyzer.load(folder, "cpu").app.models) == {"detection", "landmark_2d_106", "recognition"}


def test_loading_prints_nothing(face_pack, capsys):
    FaceAnalyzer.load(face_pack, "cpu")
    assert capsys.readouterr().out == ""


def test_without_insightface(face_pack, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "insightface.app", None)
    with pytest.raises(MissingPackageError, match="Finding faces needs insightface"):
        FaceAnalyzer.load(face_pack)


# --- a peer pack's object --------------------------------------------------------------------------------------------


def test_the_object_of_a_peer_pack(face_pack):
    """All five networks, detector at another size, as cubiq's loaders make it."""
    app = insightface_app.FaceAnalysis(name=str(face_pack), providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=0, det_size=(320, 320))
    face = FaceAnalyzer(app).face(photo_with((200, 200, 296, 296)))
    assert face.landmarks.shape == (106, 2)
    assert tuple(app.det_model.input_size) == (320, 320), "left as it was"


def test_unsuitable_objects_are_refused():
    with pytest.raises(HyperLoRAError, match="A dict was given as face analysis"):
        FaceAnalyzer({})
    detector = SimpleNamespace(use_kps=True)
    with pytest.raises(HyperLoRAError, match=r"without the 106 landmarks .* and face recognition"):
        FaceAnalyzer(SimpleNamespace(models={"detection": detector}))
    complete = dict.fromkeys(("landmark_2d_106", "recognition")) | {"detection": SimpleNamespace(use_kps=False)}
    with pytest.raises(HyperLoRAError, match="no key points"):
        FaceAnalyzer(SimpleNamespace(models=complete))


# --- finding ---------------------------------------------------------------------------------------------------------


def sizes_tried(analysis, monkeypatch):
    """Record (photo's side, input size) of every detection pass."""
    tried = []
    detector = analysis.app.models["detection"]
    original = detector.detect

    def detect(bgr, input_size):
        tried.append((bgr.shape[0], input_size[0]))
        return original(bgr, input_size=input_size)

    monkeypatch.setattr(detector, "detect", detect)
    return tried


def test_an_ordinary_face_takes_one_pass(analysis, monkeypatch):
    tried = sizes_tried(analysis, monkeypatch)
    (found,) = analysis.detect(photo_with((208, 144, 304, 240)))
    assert tried == [(640, 640)]
    np.testing.assert_allclose(found.box, (208, 144, 304, 240), atol=1)
    assert 0.5 < found.score <= 1
    np.testing.assert_allclose(found.keypoints[2], (256, 192), atol=1)


def test_a_large_face_is_found_at_a_smaller_size(analysis, monkeypatch):
    tried = sizes_tried(analysis, monkeypatch)
    (found,) = analysis.detect(photo_with((160, 160, 480, 480)))
    assert [size for _, size in tried] == [640, 512, 384, 256]
    assert found.box.mean() == pytest.approx(320, abs=2)


def test_a_close_up_is_found_with_a_border(analysis, monkeypatch):
    """The face fills the photo: coordinates come back in the photo's own pixels."""
    tried = sizes_tried(analysis, monkeypatch)
    photo = photo_with((0, 0, 640, 640))
    face = analysis.face(photo)
    assert tried[:4] == [(640, 640), (640, 512), (640, 384), (640, 256)]
    assert tried[-1] == (1280, 256)
    assert face.box.mean() == pytest.approx(320, abs=2)
    assert face.keypoints.mean(0) == pytest.approx([320, 332], abs=40)
    assert face.landmarks.mean(0) == pytest.approx([320, 320], abs=40)


def test_no_face_is_an_error_with_advice(analysis):
    photo = photo_with(size=(300, 200))
    assert analysis.detect(photo) == [] and analysis.faces(photo) == []
    with pytest.raises(NoFaceError, match=r"No face was found in Photo 2 \(300 x 200\): use a photo"):
        analysis.face(photo, name="Photo 2")
    assert analysis.detect(photo_with(size=(40, 16000))) == [], "scaled down such a strip has no width at all"


def test_several_faces_come_from_left_to_right(analysis):
    photo = photo_with((496, 112, 592, 208), (48, 432, 144, 528))
    left, right = analysis.faces(photo)
    assert left.box[0] < right.box[0]
    for which, expected in (("left", left), ("right", right), (0, left), (1, right)):
        np.testing.assert_array_equal(analysis.face(photo, which).box, expected.box)
    with pytest.raises(HyperLoRAError, match="Face 2 doesn't exist: Photo 1 shows 2 faces"):
        analysis.face(photo, 2, "Photo 1")


def test_only_the_chosen_face_is_described(analysis, monkeypatch):
    described = []
    monkeypatch.setattr(
        FaceAnalyzer, "_describe", lambda self, bgr, detections: described.extend(detections) or detections
    )
    analysis.face(photo_with((496, 112, 592, 208), (48, 432, 144, 528)), "right")
    assert len(described) == 1


def test_a_fixed_size_detector_is_used_at_its_size(face_pack, tmp_path, monkeypatch):
    folder = copy_pack(face_pack, tmp_path / "fixed", "scrfd_10g_bnkps.onnx")
    make_detector(folder / "det_fixed.onnx", (320, 320))
    fixed = FaceAnalyzer.load(folder, "cpu")
    tried = sizes_tried(fixed, monkeypatch)
    assert len(fixed.detect(photo_with((224, 224, 416, 416)))) == 1
    assert [size for _, size in tried] == [320]


# --- describing ------------------------------------------------------------------------------------------------------


def test_face_has_unit_length_and_the_right_types(analysis):
    face = analysis.face(photo_with((208, 144, 304, 240)))
    assert face.embedding.shape == (512,) and face.embedding.dtype == np.float32
    assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-5)
    assert face.landmarks.shape == (106, 2) and face.landmarks.dtype == np.float32
    # the spiral's middle is the face's
    assert face.landmarks[0] == pytest.approx((256, 192), abs=12)


@pytest.mark.parametrize("several", [True, False])
def test_several_faces_are_recognised_in_one_pass(face_pack, tmp_path, monkeypatch, several):
    """Where the network says that it takes several; else one after the other, with the same result."""
    folder = copy_pack(face_pack, tmp_path / "pack", "glintr100.onnx")
    make_recognition(folder / "glintr100.onnx", several=several)
    loaded, passes = FaceAnalyzer.load(folder, "cpu"), []
    recognition = loaded.app.models["recognition"]
    once = recognition.get_feat
    monkeypatch.setattr(recognition, "get_feat", lambda faces: passes.append(len(faces)) or once(faces))
    photo = photo_with((496, 112, 592, 208), (48, 432, 144, 528), (48, 112, 144, 208))
    photo[130:150, 500:560], photo[460:480, 60:90] = (90, 200, 10), (10, 255, 90)
    found = loaded.faces(photo)
    assert passes == ([3] if several else [1, 1, 1])
    for number, face in enumerate(found):
        alone = loaded.face(photo, number)
        theirs = recognition.get(np.ascontiguousarray(photo[..., ::-1]), SimpleNamespace(kps=face.keypoints))
        assert face.embedding @ alone.embedding == pytest.approx(1, abs=1e-5)
        assert face.embedding @ theirs / np.linalg.norm(theirs) == pytest.approx(1, abs=1e-5), (
            "insightface's own answer"
        )
    assert found[0].embedding @ found[2].embedding < 0.999


def test_red_and_blue_are_not_confused(analysis):
    """insightface wants BGR and gets it: the embedding differs from the one of the photo with red and blue swapped."""
    photo = photo_with((208, 144, 304, 240))
    photo[160:200, 220:290] = (255, 200, 0)
    detection = analysis.detect(photo)[0]
    swapped = np.ascontiguousarray(photo[..., ::-1])
    ours = analysis.describe(photo, detection).embedding
    assert analysis.describe(swapped, detection).embedding @ ours < 0.99


def test_photos_of_another_form_are_refused(analysis):
    for photo in (np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32), np.zeros((64, 64, 4), np.uint8)):
        with pytest.raises(HyperLoRAError, match=r"uint8 \[h, w, 3\]"):
            analysis.detect(photo)


def test_unusable_embeddings_are_refused(face_pack, tmp_path):
    for name, options, message in (
        ("short", {"width": 128}, "128 numbers per face instead of 512"),
        ("zero", {"scale": 0.0}, "no usable numbers"),
        ("nan", {"scale": np.nan}, "no usable numbers"),
    ):
        folder = copy_pack(face_pack, tmp_path / name, "glintr100.onnx")
        make_recognition(folder / "other.onnx", **options)
        loaded = FaceAnalyzer.load(folder, "cpu")
        assert loaded.recognition_name == "other"
        with pytest.raises(HyperLoRAError, match=message):
            loaded.face(photo_with((208, 144, 304, 240)))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_did_not_start_is_told(face_pack, monkeypatch):
    """onnxruntime drops a provider whose libraries are missing and goes on with the CPU."""
    monkeypatch.setattr(analyzer, "choose_providers", lambda _: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(HyperLoRAError, match="can't run on CUDAExecutionProvider, only on CPUExecutionProvider"):
        FaceAnalyzer.load(face_pack, "cuda")
    assert FaceAnalyzer.load(face_pack, "auto").app


def test_reading_a_signature_skips_the_weights(tmp_path, monkeypatch):
    """A file of 40 MB is told apart by its first and last bytes."""
    nodes = [onnx.helper.make_node("MatMul", ["image", "weight"], ["out"])]
    weights = {"weight": np.zeros((10_000, 1_000), np.float32)}
    save(tmp_path / "large.onnx", nodes, weights, {"image": [1, 10_000]}, {"out": [1, 1_000]})
    steps = []
    original = pack._varint
    monkeypatch.setattr(pack, "_varint", lambda data, at: steps.append(at) or original(data, at))
    assert read_signature(tmp_path / "large.onnx").outputs == [[1, 1000]]
    assert len(steps) < 200
