import torch

from asymflow.models.jit_positions import positions, rotate, rotations


def test_turned_products_depend_on_the_distance_alone():
    turn = rotations(16, (5, 7), torch.device("cpu"))
    q, k = torch.randn(2, 16, dtype=torch.float64)
    places = [(r, c) for r in range(5) for c in range(7)]
    turned_q, turned_k = (rotate(v.expand(1, 1, 35, 16), turn)[0, 0] for v in (q, k))
    products = turned_q @ turned_k.T
    by_distance = {}
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            by_distance.setdefault((a[0] - b[0], a[1] - b[1]), []).append(float(products[i, j]))
    assert all(max(v) - min(v) < 1e-12 for v in by_distance.values())
    assert len({round(v[0], 9) for v in by_distance.values()}) == len(by_distance)
    torch.testing.assert_close(turned_q.norm(dim=1), q.norm().expand(35))


def test_fixed_positions_are_those_of_the_row_and_the_column():
    found = positions(8, (3, 4), torch.device("cpu")).view(3, 4, 8)
    for row in range(3):
        for column in range(4):
            angles = [[torch.tensor(place / 100**i) for i in (0, 1)] for place in (column, row)]
            expected = [f(a) for pair in angles for f in (torch.sin, torch.cos) for a in pair]
            torch.testing.assert_close(found[row, column], torch.stack(expected).double(), atol=1e-6, rtol=0)
