"""Two people in a picture, whose faces become two other people's: the template 08 on the demo models in a real ComfyUI.

    python -m benchmarks.face_again --pairs 8

Prints a table and writes it and the pictures to --out: the picture, the photos of the new people, the picture with their
faces. Ends with 1 unless most of the new faces are more like their own person than like the other one.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from hyperlora_core.evaluate.instruments import FACE_MEASURE, MeasuringNetwork
from hyperlora_core.locate import DEMO, demo_folder, open_encoder

from .server import SIDE, nodes_of, one_after_another, own_server, photo_of, side_by_side, with_face_of

CHANCE = 0.5  # of two people the face is more like its own
SIDES = ("left", "right")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, help="ComfyUI's folder (default: the first that the tests find)")
    parser.add_argument("--pairs", type=int, default=8, help="pictures, of two faces each (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/face_again"), help="default: %(default)s")
    options = parser.parse_args()
    network = MeasuringNetwork(demo_folder() / FACE_MEASURE, open_encoder(DEMO).faces)

    def likeness(picture: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """[2, 2]: the left and the right face, to each of both people; 0 where no face is found."""
        return network.embed_all(np.split(picture, 2, axis=1)) @ wanted.T

    before, now, sheet = [], [], []
    with own_server(options.host) as server:
        for pair in tqdm(range(options.pairs), desc="pairs"):
            here, new = (4 * pair, 4 * pair + 1), (4 * pair + 2, 4 * pair + 3)  # held-out people
            picture = side_by_side(*(photo_of(person, size=SIDE) for person in here))
            photos = [photo_of(person) for person in new]
            wanted = network.embed_all([np.asarray(photo) for photo in photos])
            graph = one_after_another(
                *(with_face_of(server, photo, picture, side) for photo, side in zip(photos, SIDES, strict=True))
            )
            result = server.run(graph)
            if result.error:
                raise SystemExit(result.error)
            painted = result.picture(*nodes_of(graph, "SaveImage"))
            before.append(likeness(np.asarray(picture), wanted))
            now.append(likeness(painted, wanted))
            small = side_by_side(*(photo.resize((SIDE, SIDE)) for photo in photos))
            sheet.append(np.concatenate([np.asarray(picture), np.asarray(small), painted], 1))

    figures = {}
    for name, alike in (("before", np.stack(before)), ("after", np.stack(now))):  # (pairs, face, person)
        own, other = alike[:, [0, 1], [0, 1]], alike[:, [0, 1], [1, 0]]
        figures[name] = {
            "cosine to the new person": float(own.mean()),
            "more like it than like the other": float((own > other).mean()),
        }
    options.out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(sheet)).save(options.out / "face_again.png")
    (options.out / "face_again.json").write_text(json.dumps(figures, indent=2))
    columns = list(figures["after"])
    print(f"| {2 * options.pairs} faces | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", sep="\n")
    for name, row in figures.items():
        print(f"| {name} | {' | '.join(f'{row[column]:.3g}' for column in columns)} |")
    return 0 if figures["after"][columns[1]] > CHANCE else 1


if __name__ == "__main__":
    sys.exit(main())
