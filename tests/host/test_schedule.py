"""A person for a part of sampling: the same in both modes, and gone without a trace."""

import numpy as np
import pytest
from graphs import demo

MODES = ["merge", "bypass"]


@pytest.fixture(scope="session")
def paint(server, anna):
    def paint(**apply) -> np.ndarray:
        return server.run(demo(anna, HyperLoRAApply=apply)).picture().astype(int)

    return paint


@pytest.fixture(scope="session")
def plain(paint):
    return paint(weight=0, base_weight=0)


@pytest.mark.parametrize("mode", [*MODES, "guide"])
def test_from_0_to_1_is_what_it_was(paint, mode):
    before = paint(mode=mode)
    assert np.array_equal(paint(mode=mode, start=0.0, end=1.0, blocks="all alike", block_weights=""), before)


@pytest.mark.parametrize(("start", "end"), [(0.3, 1.0), (0.0, 0.6), (0.3, 0.7)])
def test_both_modes_paint_the_same(paint, plain, start, end):
    merged, beside = (paint(mode=mode, start=start, end=end) for mode in MODES)
    assert np.abs(merged - beside).mean() < 0.5
    assert np.abs(merged - plain).mean() > 1
    assert np.abs(merged - paint(mode="merge")).mean() > 1


@pytest.mark.parametrize("mode", MODES)
def test_the_later_the_closer_to_the_picture_without(paint, plain, mode):
    far = [np.abs(paint(mode=mode, start=start) - plain).mean() for start in (0.0, 0.3, 0.6, 0.9)]
    assert far == sorted(far, reverse=True) and far[-1] < 0.6 * far[0]


@pytest.mark.parametrize("mode", MODES)
def test_nothing_stays(server, anna, paint, plain, mode):
    first = paint(mode=mode, start=0.2, end=0.5, weight=0.7)
    # sampled again, and the model without anybody after it, both not out of the host's cache
    chain = demo(anna, HyperLoRAApply={"mode": mode, "start": 0.2, "end": 0.5, "weight": 0.7})
    chain["12"]["inputs"]["denoise"] = 1.0 - 1e-9
    assert np.array_equal(server.run(chain).picture(), first)
    chain["12"]["inputs"]["model"] = ["1", 0]
    assert np.array_equal(server.run(chain).picture(), plain)


@pytest.mark.parametrize("blocks", ["face only", "soft", "anti-artefact"])
def test_block_weights_do_something_in_both_modes(paint, blocks):
    merged, beside = (paint(mode=mode, blocks=blocks) for mode in MODES)
    assert np.abs(merged - beside).mean() < 0.5
    assert np.abs(merged - paint(mode="merge")).mean() > 0.2


def test_own_block_weights(paint, plain):
    assert np.array_equal(paint(block_weights="down 1, middle 1, up 1"), paint())
    assert np.abs(paint(block_weights="down 0, middle 0, up 0") - plain).mean() < 0.5
