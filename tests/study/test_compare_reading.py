"""A comparison in sentences: masks that made a difference by name, those that made none in one sentence, and nobody left out."""

from workbench.study.compare_reading import _far, _masks
from workbench.study.compare_tests import Compared, Paired, Versus
from workbench.study.verdict import Interval


def versus(method, mask, *, random, more, p):
    found = Paired(Interval(more, more - 0.1, more + 0.1, 3), p)
    return Versus(method, mask, "x", random, found, found, p, p)


def test_masks_that_matter_are_named_and_the_others_share_a_sentence():
    tests = (
        versus("npo", "fisher", random=True, more=1.0, p=0.01),
        versus("rmu", "fisher", random=True, more=-1.0, p=0.04),
        versus("idk", "fisher", random=True, more=1.0, p=0.06),
        versus("npo", "fisher", random=False, more=1.0, p=0.2),
        versus("npo", "own", random=True, more=-1.0, p=0.01),
        versus("npo", "wagle", random=True, more=1.0, p=0.3),
        versus("rmu", "wagle", random=True, more=1.0, p=float("nan")),
    )
    said = _masks(Compared(tests, ()))
    assert said == [
        "Inside the mask 'fisher' 1 of 3 methods forgot clearly more than with a random one with as many weights in every tensor "
        "(npo), 1 clearly less (rmu).",
        "Inside the mask 'own' 0 of 1 methods forgot clearly more than with a random one with as many weights in every tensor, "
        "1 clearly less (npo).",
        "No method forgot clearly more in one than in the other, of masks (and how many methods): 'fisher' and no mask (1) and "
        "'wagle' and a random one (2).",
    ]
    assert len(_masks(Compared(tests[:3], ()))) == 1
    assert _masks(Compared((), ())) == []


def test_the_farthest_are_named_beside_the_retrained_model():
    assert _far({"a": 0.1, "b": 2.0, "c": 0.5, "d": 1.0}, 9.0) == (
        "The forget answers were driven farthest by b (2.00), d (1.00), and c (0.50), in nats per token; in the retrained model "
        "they are at 9.00."
    )
