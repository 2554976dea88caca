"""Which slices a deletion leaves, from the definition: those with no deleted row in them or in any slice trained before."""


def left(slices, order, gone):
    """Positions in the chain that may stay, as a list of slice numbers."""
    kept = []
    for place, slice_number in enumerate(order):
        learned_from = [row for earlier in order[: place + 1] for row in slices[earlier]]
        if not set(learned_from) & set(gone):
            kept.append(slice_number)
    return kept


def best(slices, chains, gone):
    """The chain whose slices that may stay have the most rows, the first of equals; and those slices."""
    options = [left(slices, order, gone) for order in chains]
    sizes = [sum(len(slices[one]) for one in kept) for kept in options]
    chosen = sizes.index(max(sizes))
    return chosen, options[chosen]
