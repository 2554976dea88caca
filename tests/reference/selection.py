"""Slow truths: which weights each scope chooses, by sorting Python lists; bits packed one by one."""


def pack(bits):
    """Eight bits a byte, lowest first."""
    return [sum(1 << i for i, bit in enumerate(bits[at : at + 8]) if bit) for at in range(0, len(bits), 8)]


def rows(tensors, transposed):
    """Every row as a list of (name, flat position): an output of a linear map; a vector is one row."""
    out = []
    for name, t in tensors.items():
        if not t.numel():
            continue
        if t.ndim < 2:
            out.append([(name, i) for i in range(t.numel())])
        elif name in transposed:
            n_in, n_out = t.shape
            out += [[(name, i * n_out + j) for i in range(n_in)] for j in range(n_out)]
        else:
            length = t.shape[-1]
            out += [[(name, r * length + i) for i in range(length)] for r in range(t.numel() // length)]
    return out


def best(tensors, members, k):
    """The k members with the highest score; ties to the one that stands earlier."""
    values = {name: t.flatten().tolist() for name, t in tensors.items()}
    ranked = sorted(range(len(members)), key=lambda i: (-values[members[i][0]][members[i][1]], i))
    return {members[i] for i in ranked[:k]}


def by_group(tensors, groups, wanted):
    """Each group's share of `wanted`, rounded down, and one more for the first groups until all are given."""
    total = sum(len(group) for group in groups)
    shares = [len(group) * wanted // total for group in groups]
    at = 0
    while sum(shares) < wanted:
        if shares[at] < len(groups[at]):
            shares[at] += 1
        at += 1
    return set().union(*(best(tensors, group, k) for group, k in zip(groups, shares, strict=True)))


def by_row(tensors, groups, wanted):
    """Each row's share of `wanted`, rounded down; the remainder spread evenly over the rows that have room."""
    total = sum(len(group) for group in groups)
    shares = [len(group) * wanted // total for group in groups]
    left = wanted - sum(shares)
    able = [i for i, group in enumerate(groups) if shares[i] < len(group)]
    given = 0
    for seen, i in enumerate(able, 1):
        if seen * left // len(able) > given:  # so many should have gone out after `seen` rows
            shares[i] += 1
            given += 1
    return set().union(*(best(tensors, group, k) for group, k in zip(groups, shares, strict=True)))


def n_of_m(tensors, n, m, transposed):
    """The n highest of every m consecutive ones along each row; n * r // m of a last group of r."""
    chosen = set()
    for row in rows(tensors, transposed):
        for at in range(0, len(row), m):
            group = row[at : at + m]
            chosen |= best(tensors, group, n if len(group) == m else n * len(group) // m)
    return chosen
