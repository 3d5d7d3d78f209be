"""The PointNet and the protocol of SADM's evaluation, against layers of torch written out."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from pcdd_core.errors import InputError
from pcdd_core.experiments.config import Evaluation
from pcdd_core.geometry.clouds import clouds_from_list
from pcdd_core.nn.classifiers import Classifier, Separate
from pcdd_core.nn.published_pointnet import PublishedPointNet
from pcdd_core.scoring import evaluate as evaluation
from pcdd_core.scoring.baselines import Random
from pcdd_core.scoring.evaluate import PROTOCOLS, SADM, Soft, evaluate, in_unit_sphere
from pcdd_core.seeds import generator

CUBE = (24, 24, 24)


@pytest.fixture
def both(monkeypatch):
    """Return the network and its plain form, in float64, with scales of both signs."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from evaluation_pointnet import plain

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        fast = PublishedPointNet(3, generator(1)).double()
        for part in (fast.transform, fast.shared):
            nn.init.normal_(part.norm.weight)
    return fast, plain(fast)


def clouds_of(count: int, points: int = 20, seed: int = 0):
    """Return random clouds in boxes; those of class i are long along axis i."""
    draws = generator(seed, "shapes")
    sides = 8 + 4 * torch.eye(3)
    parts = [torch.rand(points, 3, generator=draws) * sides[i % 3] for i in range(count)]
    return clouds_from_list(parts, [i % 3 for i in range(count)], CUBE, ("a", "b", "c"))


@pytest.mark.usefixtures("global_stream")
def test_training_equals_that_of_the_plain_layers(both):
    fast, plain = both
    optimisers = [
        torch.optim.SGD(each.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        for each in (fast, plain)
    ]
    labels = torch.tensor([0, 1, 2, 1])
    for step in range(5):
        points = torch.randn(4, 30, 3, dtype=torch.float64, generator=generator(step))
        losses = []
        for network, optimiser in zip((fast, plain), optimisers):
            optimiser.zero_grad()
            losses.append(F.cross_entropy(network(points), labels))
            losses[-1].backward()
            optimiser.step()
        assert_close(*losses, rtol=1e-10, atol=1e-10)
    assert_close(fast.shared.wide.weight, plain.shared.layers[2].weight[..., 0])
    assert_close(fast.shared.norm.running_mean, plain.shared.norms[2].running_mean)
    assert_close(fast.shared.norm.running_var, plain.shared.norms[2].running_var)
    points = torch.randn(7, 30, 3, dtype=torch.float64)
    for network in (fast, plain):
        network.eval()
    assert_close(fast(points), plain(points), rtol=1e-9, atol=1e-9)
    assert_close(fast(points)[2:3], fast(points[2:3]))  # testing does not mix clouds


@pytest.mark.usefixtures("global_stream")
def test_order_of_points_has_no_effect_and_dropout_has(both):
    fast, _ = both
    points = torch.randn(4, 30, 3, dtype=torch.float64)
    again = copy.deepcopy(fast)
    assert_close(fast(points), again(points[:, torch.randperm(30)]))
    assert not torch.allclose(fast(points), again.eval()(points))
    assert not torch.equal(fast(points), fast(points))  # the draws go on


@pytest.fixture
def global_stream():
    """Restore torch's global random numbers."""
    with torch.random.fork_rng(devices=[]):
        yield


def test_published_numbers():
    assert (SADM.networks, SADM.epochs, SADM.batch, SADM.augmentation) == (10, 501, 8, "none")
    assert Evaluation(protocols=("sadm",)).chosen_protocols() == [SADM]
    both_protocols = Evaluation(protocols=("standard", "sadm"), epochs=3).chosen_protocols()
    assert [(each.label, each.epochs, each.batch) for each in both_protocols] == [
        ("standard", 3, 256),
        ("sadm", 3, 8),
    ]


def test_unit_sphere():
    points = in_unit_sphere(clouds_of(3))
    assert_close(points.mean(1), torch.zeros(3, 3), atol=1e-6, rtol=0)
    assert_close(points.norm(dim=2).amax(1), torch.ones(3))


def few(**changes):
    return replace(SADM, **{"networks": 2, "epochs": 3, **changes})


@pytest.mark.slow
def test_training_depends_on_the_seed_only_and_not_on_place_or_scale(logits):
    train, test = clouds_of(9), clouds_of(12, seed=1)
    expected = logits(train, test)
    moved = train.with_coordinates(train.coordinates * 0.5 + 4)
    assert_close(logits(moved, test), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits(train, test, seed=1), expected, atol=0.1)
    assert torch.equal(logits(train, test), expected)


@pytest.mark.slow
def test_threads_do_not_change_training(logits):
    train, test, threads = clouds_of(6), clouds_of(12, seed=1), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(logits(train, test))
    finally:
        torch.set_num_threads(threads)
    assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.fixture
def logits(monkeypatch):
    """Return a function that evaluates a set and returns the logits on the test clouds."""
    outputs, forward = [], Separate.forward
    monkeypatch.setattr(
        Separate,
        "forward",
        lambda self, inputs: outputs.append(forward(self, inputs)) or outputs[-1],
    )

    def run(train, test, seed=0):
        evaluate(train, test, protocol=few(), projection=Soft(), seed=seed)
        return outputs[-1]

    return run


def test_a_score_is_the_same_beside_another_protocol():
    train, test = clouds_of(6), clouds_of(12, seed=1)
    other = replace(PROTOCOLS["standard"], networks=1, epochs=1)
    chosen = Classifier.of("pointnet")
    alone = evaluate(train, test, chosen, few())
    together = evaluate(train, test, chosen, [other, few()])
    assert list(together) == ["standard", "sadm"] and together["sadm"] == alone["sadm"]


def test_a_last_batch_of_one_cloud_joins_the_batch_before(monkeypatch):
    sizes, forward = [], Separate.forward
    monkeypatch.setattr(
        Separate,
        "forward",
        lambda self, inputs: sizes.append(inputs.shape[1]) or forward(self, inputs),
    )
    evaluate(clouds_of(17), clouds_of(3), protocol=few(epochs=1, networks=1))
    assert sizes == [8, 9, 3]


def test_sets_that_batch_norm_cannot_train_on_are_refused():
    with pytest.raises(InputError, match="two clouds or more"):
        evaluate(clouds_of(1), clouds_of(3), protocol=few())
    uneven = tiny.three_solids()
    uneven = clouds_from_list(
        [uneven.coordinates[:5], uneven.coordinates[5:12]], [0, 1], uneven.grid, uneven.class_names
    )
    with pytest.raises(InputError, match="the set have 5 to 7 points"):
        evaluate(uneven, clouds_of(3), protocol=few())


def test_networks_and_their_dropout_are_drawn_by_their_generator():
    networks = [Classifier.of("pointnet-sadm").new((1, 1, 1), 3, generator(5)) for _ in range(2)]
    assert_close(list(networks[0].parameters()), list(networks[1].parameters()), rtol=0, atol=0)
    points = torch.randn(4, 10, 3)
    assert torch.equal(*(network(points) for network in networks))
    assert evaluation._new_networks(3, clouds_of(3), Classifier.of("pointnet-sadm"), 0)


def test_a_set_of_fewer_points_than_the_test_clouds_is_scored():
    """As random clouds of 128 points are, beside a set in as many clouds."""
    few_points = Random(2, points=8).choose(clouds_of(9), seed=0)
    assert few_points.sizes.tolist() == [8] * 6
    (score,) = evaluate(few_points, clouds_of(12, seed=1), protocol=few()).values()
    assert len(score.accuracies) == 2
