"""Baselines that choose or average real clouds, against loops.

The baselines random and herding are in test_evaluation.py.
"""

from fractions import Fraction

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdd_core.data.datasets import Solids
from pcdd_core.engine.lifts import centred_points
from pcdd_core.errors import InputError
from pcdd_core.geometry.clouds import PointClouds, clouds_from_list, from_occupancy
from pcdd_core.scoring import baselines
from pcdd_core.scoring.baselines import (
    Baseline,
    class_mean,
    craig,
    forgetting,
    forgetting_events,
    k_center,
    whole,
)
from pcdd_core.scoring.evaluate import project

FUNCTIONS = {name: choice.select for name, choice in Baseline.choices.items() if name != "released"}
CHOOSING = ["random", "herding", "k_center", "forgetting", "craig"]
REAL = pytest.mark.parametrize("real", [tiny.three_digits, tiny.three_solids])


def random_clouds(
    seed: int, clouds: int = 21, grid: tuple[int, int, int] = (1, 5, 4)
) -> PointClouds:
    """Return three classes of unequal size in shuffled order.

    Some clouds occur twice, and a cloud may contain a cell twice.
    """
    draws = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 0])[torch.randperm(clouds, generator=draws) % 7]
    points = [
        (
            torch.rand(int(torch.randint(1, 13, (), generator=draws)), 3, generator=draws)
            * torch.tensor(grid)
        ).floor()
        for _ in range(clouds)
    ]
    points[clouds // 2 :: 4] = [points[0]] * len(points[clouds // 2 :: 4])
    return clouds_from_list(points, labels, grid, ["a", "b", "c"])


def members(real: PointClouds, label: int) -> list[int]:
    return [n for n in range(len(real)) if int(real.labels[n]) == label]


def sources(real: PointClouds, chosen: PointClouds) -> list[list[int]]:
    """Return, for every chosen cloud, the real clouds of its class that equal it."""
    return [
        [n for n in members(real, int(chosen.labels[c])) if torch.equal(real[n], chosen[c])]
        for c in range(len(chosen))
    ]


def same(one: PointClouds, other: PointClouds) -> bool:
    fields = ("coordinates", "offsets", "labels")
    return all(torch.equal(getattr(one, field), getattr(other, field)) for field in fields)


def taught(monkeypatch, logits: torch.Tensor) -> None:
    """Replace the outputs of the trained classifier by `logits` (epochs, clouds, classes)."""
    monkeypatch.setattr(baselines, "_training_logits", lambda real, seed: logits)


# --- what all have in common ----------------------------------------------------------------------


@REAL
@pytest.mark.parametrize("name", CHOOSING)
def test_chosen_clouds_are_real_ones_of_their_class_and_none_is_chosen_twice(name, real):
    chosen = FUNCTIONS[name](real(), 3, 0)
    assert chosen.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (chosen.grid, chosen.class_names) == (real().grid, real().class_names)
    candidates = sources(real(), chosen)  # these clouds are pairwise different
    assert (
        all(len(could_be) == 1 for could_be in candidates) and len({n for (n,) in candidates}) == 9
    )


@pytest.mark.parametrize("name", CHOOSING)
def test_all_clouds_of_a_class_can_be_chosen_even_if_some_are_equal(name):
    clouds = [torch.tensor([[0.0, 1.0, column]]) for column in (0.0, 1.0, 1.0, 1.0, 3.0)]
    real = clouds_from_list([*clouds, *clouds], [0] * 5 + [1] * 5, (1, 5, 4), ["a", "b"])
    columns = FUNCTIONS[name](real, 5, 0).coordinates[:, 2].view(2, 5)
    assert columns.sort(1).values.tolist() == [[0, 1, 1, 1, 3]] * 2


@pytest.mark.parametrize("name", [*CHOOSING, "class_mean"])
def test_class_with_too_few_clouds_is_refused_before_anything_is_trained(name, monkeypatch):
    monkeypatch.setattr(baselines, "_training_logits", None)
    real = random_clouds(0)
    count = 1 if name == "class_mean" else 20
    real = real.select(torch.tensor([n for n in range(len(real)) if real.labels[n] != 1]))
    with pytest.raises(
        InputError,
        match=f"class '{'b' if count == 1 else 'a'}' has . clouds .* {count} were asked for",
    ):
        FUNCTIONS[name](real, count, 0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_seed_same_clouds_whatever_was_drawn_elsewhere(name):
    torch.manual_seed(1)
    once = FUNCTIONS[name](tiny.three_digits(), 1, 5)
    torch.manual_seed(2)
    assert same(once, FUNCTIONS[name](tiny.three_digits(), 1, 5))


@pytest.mark.parametrize("name", ["herding", "k_center", "class_mean", "whole"])
def test_seed_changes_nothing_where_nothing_is_random(name):
    assert same(
        FUNCTIONS[name](tiny.three_digits(), 1, 0), FUNCTIONS[name](tiny.three_digits(), 1, 1)
    )


def test_whole_is_all_real_clouds_however_many_are_asked_for():
    assert (
        whole(tiny.three_digits(), 1, 0) is tiny.three_digits() is whole(tiny.three_digits(), 99, 1)
    )


# --- k-centre -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_k_center_equals_a_naive_loop(seed):
    real, count = random_clouds(seed), 4
    images = [
        [int(value) for value in project(real.select(torch.tensor([n]))).flatten()]
        for n in range(len(real))
    ]

    def between(one, other):
        return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))

    picks = k_center(real, count, 0)
    for label in range(3):
        left, chosen = members(real, label), []
        mean = [
            Fraction(sum(column), len(left))
            for column in zip(*(images[n] for n in left), strict=True)
        ]
        for place in range(count):
            if place == 0:
                scores = {n: -between(images[n], mean) for n in left}
            else:
                scores = {n: min(between(images[n], images[m]) for m in chosen) for n in left}
            best = [n for n in left if scores[n] == max(scores.values())]
            taken = picks[label * count + place]
            same_image = [n for n in best if torch.equal(real[n], taken)]
            # the distances to the mean are rounded
            assert same_image and (place == 0 or torch.equal(taken, real[best[0]]))
            chosen.append(same_image[0])
            left.remove(same_image[0])


# --- what herding and k-centre compare ------------------------------------------------------------


def told_apart(real: PointClouds, seed: int = 0) -> float:
    """Return the share of clouds whose description is nearest to the mean of their own class."""
    parts = list(baselines._selection_features(real, 1, seed))
    means = torch.stack([described.mean(0) for _, described in parts])
    right = [
        torch.cdist(described, means).argmin(1) == label
        for label, (_, described) in enumerate(parts)
    ]
    return torch.cat(right).double().mean().item()


@pytest.mark.slow
def test_shapes_are_described_by_a_network_that_has_learnt_them(monkeypatch):
    monkeypatch.setattr(baselines, "BATCH_OF_SHAPES", 8)
    solids = Solids(points=48).load().train
    solids = solids.select(
        torch.cat([(solids.labels == label).nonzero().flatten()[:30] for label in range(8)])
    )
    assert told_apart(solids) > 0.85
    first = next(iter(baselines._selection_features(solids, 1, 0)))
    assert torch.equal(first[0], (solids.labels == 0).nonzero().flatten()) and first[1].shape == (
        30,
        1024,
    )


@pytest.mark.parametrize("choose", [baselines.herding, k_center])
def test_first_shape_chosen_is_the_nearest_to_its_class_s_mean(choose, monkeypatch):
    real = tiny.three_solids()
    parts = list(baselines._selection_features(real, 2, 3))
    chosen = choose(real, 2, 3)
    for label, (indices, described) in enumerate(parts):
        nearest = (described - described.mean(0)).square().sum(1).argmin()
        assert torch.equal(chosen[2 * label], real[int(indices[nearest])])
        assert not torch.equal(chosen[2 * label], chosen[2 * label + 1])


# --- class mean -----------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 5, 4), (2, 3, 3)])
@pytest.mark.parametrize("seed", range(5))
def test_class_mean_equals_a_loop_over_points(seed, grid):
    real = random_clouds(seed, grid=grid)
    moved = real.with_coordinates(real.coordinates + 0.5)  # within their cells: changes nothing
    means = class_mean(moved, 1, 0)
    assert means.labels.tolist() == [0, 1, 2] and (means.grid, means.class_names) == (
        grid,
        ("a", "b", "c"),
    )
    for label in range(3):
        cells = [{tuple(point) for point in real[n].tolist()} for n in members(real, label)]
        often = {cell: sum(cell in cloud for cloud in cells) for cell in set().union(*cells)}
        count = round(Fraction(sum(map(len, cells)), len(cells)))
        first = sorted(often, key=lambda cell: (-often[cell], cell))[:count]
        assert (means[label] - 0.5).tolist() == [list(cell) for cell in sorted(first)]


def test_class_mean_of_equal_clouds_is_that_cloud():
    cloud = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 2.0, 2.0]]) + 0.5
    assert torch.equal(
        class_mean(clouds_from_list([cloud, cloud], [0, 0], (3, 4, 4), ["only"]), 1, 0)[0], cloud
    )


def test_class_mean_takes_the_first_of_cells_that_are_occupied_equally_often():
    # so many cells that an unstable sort would mix them
    even = torch.arange(1600).view(1, 40, 40) % 2 == 0
    mean = class_mean(from_occupancy(torch.stack([even, ~even]), torch.zeros(2), ["only"]), 1, 0)
    assert mean.coordinates.tolist() == [
        [0.5, row + 0.5, column + 0.5] for row in range(20) for column in range(40)
    ]


def test_class_mean_refuses_more_than_one_per_class():
    with pytest.raises(InputError, match="one mean per class, 2 clouds per class were asked for"):
        class_mean(tiny.three_digits(), 2, 0)


# --- forgetting -----------------------------------------------------------------------------------


def test_forgetting_events_of_a_history_written_by_hand():
    histories = {
        "11111": 0,
        "00001": 0,
        "01111": 0,
        "10000": 1,
        "01100": 1,
        "10110": 2,
        "01010": 2,
        "00000": 5,
    }
    correct = torch.tensor([[step == "1" for step in history] for history in histories]).T
    assert forgetting_events(correct).tolist() == list(histories.values())


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 9), st.data())
def test_forgetting_events_equal_a_loop_and_are_most_where_nothing_was_learnt(epochs, clouds, data):
    histories = [
        data.draw(st.lists(st.booleans(), min_size=epochs, max_size=epochs)) for _ in range(clouds)
    ]
    expected = [
        sum(a and not b for a, b in zip(history, history[1:], strict=False))
        for history in histories
    ]
    events = forgetting_events(torch.tensor(histories).T).tolist()
    for history, event, count in zip(histories, events, expected, strict=True):
        assert event == count if any(history) else event > len(history) // 2 >= max(expected)


def test_forgetting_chooses_the_most_forgotten_of_each_class(monkeypatch):
    draws = torch.Generator().manual_seed(0)
    real, logits = random_clouds(0, 60), torch.randn(5, 60, 3, generator=draws)
    # makes all clouds different
    real = real.with_coordinates(torch.rand(real.coordinates.shape, generator=draws) * 0.9)
    taught(monkeypatch, logits)
    candidates = sources(real, forgetting(real, 4, 0))
    for label in range(3):
        events = {}
        for n in members(real, label):
            right = [int(logits[epoch, n].argmax()) == label for epoch in range(5)]
            events[n] = sum(right[e] and not right[e + 1] for e in range(4)) if any(right) else 99
        chosen = [n for (n,) in candidates[label * 4 : label * 4 + 4]]
        assert [events[n] for n in chosen] == sorted(events.values(), reverse=True)[:4]


def test_forgetting_breaks_ties_at_random_by_seed_alone(monkeypatch):
    real = tiny.three_digits()
    taught(monkeypatch, torch.ones(5, len(real), 3))
    picks = [
        [n for (n,) in sources(real, forgetting(real, 2, seed))]
        for seed in (*range(20), *range(20))
    ]
    assert picks[:20] == picks[20:]
    assert {n for pick in picks for n in pick} == set(range(len(real)))


# --- CRAIG ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_craig_equals_naive_facility_location(seed, monkeypatch):
    real, count = random_clouds(seed), 4
    real = real.with_coordinates(
        torch.rand(real.coordinates.shape, generator=torch.Generator().manual_seed(seed)) * 0.9
    )
    logits = torch.randn(2, len(real), 3, generator=torch.Generator().manual_seed(100 + seed))
    taught(monkeypatch, logits)
    gradients = logits[-1].double().softmax(1) - torch.eye(3, dtype=torch.float64)[real.labels]
    picks = [n for (n,) in sources(real, craig(real, count, 0))]
    for label in range(3):
        everyone, chosen = members(real, label), []
        distance = {
            (a, b): float((gradients[a] - gradients[b]).norm()) for a in everyone for b in everyone
        }
        # similarity is `most` minus distance, so it is 0 between the farthest clouds
        most = max(distance.values())
        for taken in picks[label * count : label * count + count]:
            value = {
                n: sum(max(most - distance[i, j] for j in [*chosen, n]) for i in everyone)
                for n in everyone
                if n not in chosen
            }
            # two clouds that are nearest to each other have the same value, but for rounding
            assert value[taken] == pytest.approx(max(value.values()), rel=1e-6)
            chosen.append(taken)


def test_craig_tells_well_learnt_clouds_apart(monkeypatch):
    """Choose one cloud of each of two groups that a float32 matrix product cannot separate."""
    logits = torch.tensor([[12.0, 0.0]] * 30 + [[15.0, 0.0]] * 30)
    real = clouds_from_list(
        [torch.full((1, 3), n / 100) for n in range(60)], [0] * 60, (1, 4, 4), ["only"]
    )
    taught(monkeypatch, logits[None])
    one, other = (int(100 * cloud.max() + 0.5) for cloud in craig(real, 2, 0).coordinates)
    assert (one < 30) != (other < 30)


# --- the classifier that both look at -------------------------------------------------------------


def test_classifier_learns_and_is_asked_after_every_epoch(monkeypatch):
    monkeypatch.setattr(baselines, "BATCH", 16)
    digits = tiny.digits().train
    digits = digits.select(
        torch.cat([(digits.labels == label).nonzero().flatten()[:40] for label in range(3)])
    )
    logits = baselines._training_logits(digits, 0)
    assert logits.shape == (baselines.EPOCHS, 120, 10) and not logits.requires_grad
    right = (logits.argmax(2) == digits.labels).double().mean(1)
    assert right[-1] > 0.9 and right[-1] > right[0] + 0.2


def test_classifier_depends_on_the_seed():
    first, other = (baselines._training_logits(tiny.three_digits(), seed) for seed in (0, 1))
    assert not torch.allclose(first, other)


def test_batches_of_points_lose_padding_only():
    clouds = clouds_from_list(
        [torch.rand(n, 3) * 6 for n in (3, 9, 5)], [0, 1, 2], (6, 6, 6), "abc"
    )
    points = centred_points(clouds)
    assert torch.equal(baselines._trimmed(points), points)
    assert torch.equal(baselines._trimmed(points[[0, 2]]), points[[0, 2], :5])
    same = points[..., :3]  # clouds of equal sizes have no fourth column
    assert baselines._trimmed(same) is same
