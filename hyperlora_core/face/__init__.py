"""Faces: found, described, chosen, and cut out for HyperLoRA's encoders."""

from .analyzer import Detection, Face, FaceAnalyzer
from .choice import CHOICES, choose_face
from .prepare import base_picture, face_box, identity_picture, recognition_picture

__all__ = [
    "CHOICES",
    "Detection",
    "Face",
    "FaceAnalyzer",
    "base_picture",
    "choose_face",
    "face_box",
    "identity_picture",
    "recognition_picture",
]
