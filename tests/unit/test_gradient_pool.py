"""`objective.real_gradients`: kept gradients equal fresh ones and are computed once."""

import pytest
import tiny
import torch
from tiny import distill

from pcdd_core.engine import objectives
from pcdd_core.engine.distill import GradientPool
from pcdd_core.engine.method import Method
from pcdd_core.errors import InputError
from pcdd_core.geometry.clouds import members_per_class


def pooled(**changes):
    lift = {"lift__name": "coordinates", "schedule__iterations_per_network": 0}
    return tiny.config(
        **{**lift, "objective__real_gradients": 2, "objective__augmentation": False, **changes}
    )


def test_a_pool_holds_the_gradients_of_the_first_fresh_batches():
    config, real = pooled(), tiny.three_digits()
    members, network = members_per_class(real), config.method.draw_network(real, 0)
    pool = GradientPool(config.method, network, 0, real, members)
    expected = {}
    for number in range(2):
        for label, batch in enumerate(config.method.batch_at(real, members, number).split(4)):
            chosen = real.select(batch)
            lifted = config.method.lift_at(0, real=True)(chosen)
            expected[label, number] = objectives.real_gradients(network, lifted, chosen.labels)
    drawn = {label: set() for label in range(3)}
    for iteration in range(12):
        for label in range(3):
            gradients = pool.draw(label, iteration)
            (number,) = [
                number
                for number in range(2)
                if all(map(torch.equal, gradients, expected[label, number]))
            ]
            drawn[label].add(number)
    assert all(numbers == {0, 1} for numbers in drawn.values())


def test_gradients_are_computed_once_and_classes_draw_apart(monkeypatch):
    config, real = pooled(schedule__iterations=12), tiny.three_digits()
    computed = []
    gradients = objectives.real_gradients
    monkeypatch.setattr(
        objectives, "real_gradients", lambda *call: computed.append(call) or gradients(*call)
    )
    steps = list(config.distill(real))
    assert len(steps) == 12 and len(computed) == 3 * 2
    pool = GradientPool(
        config.method, config.method.draw_network(real, 0), 0, real, members_per_class(real)
    )
    numbers = [
        tuple(pool.draw(label, iteration)[0].sum().item() for label in range(3))
        for iteration in range(12)
    ]
    assert len(set(numbers)) > 2  # one draw for all classes would give two numbers


def test_a_drawn_gradient_stays_as_it_is_while_the_pool_fills():
    """Another thread may fill the pool between a class's forward and backward pass."""
    config, real = pooled(objective__distance="layerwise_cosine"), tiny.three_digits()
    network = config.method.draw_network(real, 0)
    pool = GradientPool(config.method, network, 0, real, members_per_class(real))
    target = pool.draw(0, 0)
    synthetic = [(2 - part).requires_grad_() for part in target]
    loss = config.objective.distance(target, synthetic)
    pool.draw(1, 0)
    loss.backward()
    assert all(part.grad.isfinite().all() and part.grad.any() for part in synthetic)


def test_a_pool_of_one_batch_equals_fresh_gradients_of_that_batch(
    monkeypatch,
):
    real = tiny.three_digits()
    # all 8 clouds of a class: always the same batch
    whole = {"objective__real_batch": 8, "schedule__iterations": 4}
    runs = [
        list(distill(pooled(objective__real_gradients=kind, **whole), real))
        for kind in (1, "fresh")
    ]
    for kept, fresh in zip(*runs, strict=True):
        torch.testing.assert_close(
            kept.clouds.coordinates, fresh.clouds.coordinates, rtol=1e-4, atol=1e-4
        )
        assert kept.matching_loss == pytest.approx(fresh.matching_loss, rel=1e-3)
    assert (runs[0][-1].clouds.coordinates - runs[0][0].clouds.coordinates).abs().max() > 0


def test_resume_recomputes_the_same_gradients():
    config, real = pooled(schedule__iterations=8), tiny.three_digits()
    steps = list(config.distill(real))
    for iteration, step in enumerate(config.distill(real)):
        if iteration == 3:
            state = step.state()
            break
    resumed = list(config.distill(real, state=state))
    assert torch.equal(resumed[-1].clouds.coordinates, steps[-1].clouds.coordinates)


def test_each_network_has_batches_of_its_own(monkeypatch):
    config, real = (
        pooled(schedule__iterations=6, schedule__iterations_per_network=3),
        tiny.three_digits(),
    )
    asked = []
    draw = Method.batch_at

    def spy(method, real, members, iteration):
        asked.append(iteration)
        return draw(method, real, members, iteration)

    monkeypatch.setattr(Method, "batch_at", spy)
    list(config.distill(real))
    # the first call checks the settings; every network has two batches
    assert set(asked[1:]) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        (
            {"objective__augmentation": True, "lift__name": "gaussian"},
            "objective.augmentation=false",
        ),
        ({"lift__name": "gaussian"}, "lift.name=coordinates or points"),
        ({"schedule__training_steps": 1}, "schedule.training_steps=0"),
    ],
)
def test_where_the_real_gradient_changes_kept_ones_are_refused(changes, needed):
    with pytest.raises(InputError, match=f"objective.real_gradients = 2.*{needed}"):
        distill(pooled(**changes), tiny.three_digits())
