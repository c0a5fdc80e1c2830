"""What the authors report (HyperLoRA, arXiv 2503.16944): theirs, to be printed beside what is measured here."""

ABOUT = (
    "The paper's own figures, measured by its authors, not by us: Unsplash-50, LEOSAM HelloWorld XL, their prompts, ID Sim by "
    "CurricularFace"
)
ABOUT_SPEEDS = "The paper's own times, in ms on a V100, measured by its authors, not by us"

# method -> measure -> figure
FIGURES = {
    "IP-Adapter-FaceID-Portrait": {"fidelity": 0.764, "ID Sim": 0.566, "CLIP-I": 0.725, "CLIP-T": 0.244},
    "InstantID": {"fidelity": 0.734, "ID Sim": 0.681, "CLIP-I": 0.688, "CLIP-T": 0.237},
    "PuLID": {"fidelity": 0.771, "ID Sim": 0.613, "CLIP-I": 0.805, "CLIP-T": 0.259},
    "Arc2Face": {"fidelity": 0.786, "ID Sim": 0.643},
    "HyperLoRA full": {"fidelity": 0.853, "ID Sim": 0.678, "CLIP-I": 0.710, "CLIP-T": 0.243},
    "HyperLoRA ID": {"fidelity": 0.831, "ID Sim": 0.625, "CLIP-I": 0.748, "CLIP-T": 0.252},
}
MEASURES = ("fidelity", "ID Sim", "CLIP-I", "CLIP-T")

# method -> ms for preprocessing and inference
SPEEDS = {"IP-Adapter": (2996, 6148), "InstantID": (758, 8037), "PuLID": (236, 6616), "HyperLoRA": (1143, 4327)}
