"""Membership the slow way: every pair, every threshold. Imports nothing from workbench."""


def auc(members: list[float], others: list[float]) -> float:
    """Share of pairs in which the other scores higher, ties half."""
    won = sum((o > m) + 0.5 * (o == m) for m in members for o in others)
    return won / (len(members) * len(others))


def found_below(members: list[float], others: list[float], allowed: float) -> float:
    """The largest share of members below any threshold that at most so many others lie below."""
    best = 0.0
    for limit in [*members, *others, max(members + others) + 1]:
        if sum(o < limit for o in others) <= allowed * len(others) + 1e-9:
            best = max(best, sum(m < limit for m in members) / len(members))
    return best


def privleak(auc_unlearned: float, auc_retrained: float) -> float:
    """MUSE's formula, of MUSE's AUC: 1 minus ours."""
    return ((1 - auc_unlearned) - (1 - auc_retrained)) / (1 - auc_retrained) * 100


def s_mia(auc_unlearned: float, auc_retrained: float) -> float:
    return max(0.0, min(1.0, 1 - abs(auc_unlearned - auc_retrained) / auc_retrained))
