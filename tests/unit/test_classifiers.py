"""Classifiers against literal layers, published sizes and loops; random numbers; ensembles."""

import subprocess
import sys

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from torch import nn

from pcdd_core.engine.lifts import centred_points, occupancy
from pcdd_core.errors import InputError
from pcdd_core.experiments.config import Config, Evaluation
from pcdd_core.geometry.clouds import clouds_from_list, padded_coordinates
from pcdd_core.geometry.moves import draw_moves
from pcdd_core.nn.classifiers import Classifier, ConvNetModule, Ensemble
from pcdd_core.nn.points import DGCNN, PointNet, PointNetPlusPlus, farthest_points, nearest
from pcdd_core.scoring import evaluate as evaluation
from pcdd_core.scoring.augment import augment_points
from pcdd_core.scoring.evaluate import STANDARD, Hard, project
from pcdd_core.seeds import generator

# test_published_pointnet.py tests the classifier with batch norm
CLASSIFIERS = {name: kind for name, kind in Classifier.choices.items() if not kind.own_state}
OF_POINTS = [name for name, choice in CLASSIFIERS.items() if choice.of_points]
ALL = pytest.mark.parametrize("name", CLASSIFIERS)
LARGE = {"resnet18", "pointnet++", "dgcnn"}  # training takes seconds
LARGE_SLOW = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in CLASSIFIERS],
)
FLAT, SOLID = (1, 28, 20), (8, 12, 10)


def classifier(name, width=4):
    """Return the classifier; `width` counts where it has this setting."""
    choice = CLASSIFIERS[name]
    return choice(width=width) if "width" in choice.settings() else choice()


def built(name, height=28, width=28, classes=10, seed=0, depth=1):
    return classifier(name).new((depth, height, width), classes, generator(seed, "classifier", 0))


def input_of(name, clouds):
    if CLASSIFIERS[name].of_grids:
        return occupancy(clouds)
    return centred_points(clouds) if name in OF_POINTS else project(clouds)


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


# --- every architecture ---------------------------------------------------------------------------


@ALL
def test_classifier_maps_its_inputs_to_logits(name):
    assert built(name)(input_of(name, tiny.three_digits())).shape == (24, 10)


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name != "resnet18"])
@pytest.mark.parametrize("grid", [(1, 14, 30), (12, 12, 13)])
def test_a_classifier_takes_other_grids(random_clouds, name, grid):
    clouds = random_clouds([9, 5, 30], grid)
    logits = built(name, *grid[1:], classes=3, depth=grid[0])(
        input_of(name, clouds.with_coordinates(clouds.coordinates.float()))
    )
    assert logits.shape == (3, 3) and logits.isfinite().all()


@pytest.mark.parametrize(
    "name", [name for name, choice in CLASSIFIERS.items() if choice.smallest > 1]
)
def test_smallest_images_are_accepted_and_smaller_ones_refused(name):
    side = CLASSIFIERS[name].smallest
    # a pattern with zeros: the input of the sparse network are the pixels that are not 0
    images = torch.rand(2, 1, side, side, generator=generator(0)) * (torch.arange(side) % 2)
    inputs = images[:, :, None] if CLASSIFIERS[name].of_grids else images
    logits = built(name, side, side)(inputs)
    assert logits.isfinite().all() and not torch.allclose(logits[0], logits[1])
    with pytest.raises(
        InputError,
        match=f"evaluation.classifier.name = '{name}'.* {side} pixels.* {side} x {side - 1}",
    ):
        built(name, side, side - 1)


@ALL
def test_weights_come_from_the_given_generator_alone_and_torch_s_own_stays_as_it_was(name):
    weights = []
    for torch_seed in (1, 2):
        torch.manual_seed(torch_seed)
        before = torch.get_rng_state()
        weights.append(nn.utils.parameters_to_vector(built(name).parameters()))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*weights)
    assert not torch.equal(
        weights[0], nn.utils.parameters_to_vector(built(name, seed=1).parameters())
    )


@ALL
def test_weights_start_uniform_within_one_over_root_fan_in_and_norms_as_the_identity(name):
    for layer in built(name).modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            bound = layer.weight[0].numel() ** -0.5
            assert (
                0.9 * bound < layer.weight.abs().max() <= bound * (1 + 1e-6)
                and layer.weight.min() < -0.9 * bound
            )
            assert layer.bias is None or layer.bias.abs().max() <= bound
        elif isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
            assert (layer.weight == 1).all() and (layer.bias == 0).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", 784 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10),
        ("lenet", 61_706),  # LeNet-5's, with 16 full maps (Zhao et al. 2021)
        # the usual network for 32 x 32 pixels, with 1 channel instead of 3
        ("resnet18", 11_173_962 - 2 * 64 * 9),
    ],
)
def test_a_classifier_is_as_large_as_the_literature_s(name, expected):
    assert parameters(built(name)) == expected


def test_pointnet_is_as_large_as_its_paper_s_without_transformation_networks():
    millions = parameters(built("pointnet", classes=40)) / 1e6
    assert round(millions, 1) == 0.8  # Qi et al. 2017, table 6


def test_resnet_keeps_the_image_s_size_in_its_first_layers_and_ends_with_4_x_4():
    sizes, network = {}, built("resnet18")
    for name in ("layer1", "layer4"):
        network.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: sizes.update({name: out.shape[1:]})
        )
    network(torch.rand(2, 1, 28, 28))
    assert sizes == {"layer1": (64, 28, 28), "layer4": (512, 4, 4)}


@pytest.mark.slow
def test_logits_of_an_input_do_not_depend_on_the_rest_of_the_batch():
    clouds = tiny.three_digits()
    for name in CLASSIFIERS:
        network, inputs = built(name).double(), input_of(name, clouds)[::6].double()
        assert_close(network(inputs[:2]), network(inputs)[:2])


def test_sparse_is_the_distillation_s_network_on_a_grid_of_depth_1():
    network, images = built("sparse"), project(tiny.three_digits())
    again = network.network.description.new(1, (1, 28, 28), 10, generator(0, "classifier", 0))
    assert torch.equal(network(images), again(images[:, :, None]))


@pytest.mark.parametrize("grid", [(9, 12, 10), (28, 28, 28)])
def test_convnet3d_equals_literal_layers(grid):
    depth, *sides = grid
    network = built("convnet3d", *sides, classes=3, depth=depth).double()
    weights = zip(
        network.convolution_weights,
        network.convolution_biases,
        network.norm_weights,
        network.norm_biases,
        strict=True,
    )
    stack = []
    for layer, own in enumerate(weights):
        convolution = nn.Conv3d(4 if layer else 1, 4, 3, padding=1 if layer else 3)
        norm = nn.InstanceNorm3d(4, affine=True)
        parameters = [*convolution.parameters(), *norm.parameters()]
        for parameter, value in zip(parameters, own, strict=True):
            parameter.data = value + torch.rand(value.shape, generator=generator(layer))
            value.data = parameter.data
        stack += [convolution, norm, nn.ReLU(), nn.AvgPool3d(2)]
    assert len(stack) == 12
    inputs = (torch.rand(2, 1, *grid, generator=generator(0)) < 0.3).double()
    literal = nn.Sequential(*stack, nn.Flatten(), network.head)
    assert_close(network(inputs), literal(inputs))


def test_convnet3d_is_convnet_on_a_flat_grid():
    network, flat = built("convnet3d").double(), built("convnet").double()
    for layer, (convolution, norm) in enumerate(zip(flat.convolutions, flat.norms, strict=True)):
        convolution.weight.data = network.convolution_weights[layer].data[:, :, 0]
        convolution.bias = network.convolution_biases[layer]
        norm.weight, norm.bias = network.norm_weights[layer], network.norm_biases[layer]
    flat.head = network.head
    images = project(tiny.three_digits()).double()
    assert_close(network(images[:, :, None]), flat(images))


def test_convnet3d_refuses_a_grid_that_is_too_shallow():
    with pytest.raises(InputError, match="grids of 4 cells or more along each side, not 3 x 8 x 9"):
        built("convnet3d", 8, 9, depth=3)


@pytest.mark.slow
def test_the_classifiers_are_there_without_torchvision():
    code = "import sys, pcdd_core.scoring.evaluate; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- points ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_POINTS)
@settings_of_hypothesis(max_examples=10)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    grid=st.sampled_from([FLAT, SOLID]),
    seed=st.integers(0, 99),
)
def test_neither_the_order_of_points_nor_the_padding_matters(
    random_clouds, name, sizes, grid, seed
):
    clouds, draws = random_clouds(sizes, grid, seed), generator(seed)
    network = built(name, classes=3).double()
    points = centred_points(clouds)
    points = (
        torch.cat([points, torch.ones_like(points[..., :1])], dim=2)
        if points.shape[2] == 3
        else points
    )
    expected = network(points)
    order = torch.rand(points.shape[:2], generator=draws).argsort(1)
    # the shuffled order has padding between the points, too
    assert_close(network(points.gather(1, order[..., None].expand(points.shape))), expected)
    if name != "pointnet++":  # its number of centres is a share of all places, padding included
        assert_close(
            network(torch.cat([points, torch.zeros(len(sizes), 1 + seed % 3, 4)], dim=1)), expected
        )


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from([FLAT, SOLID]),
    st.integers(0, 99),
)
def test_pointnet_equals_a_loop_over_clouds_and_points(random_clouds, sizes, grid, seed):
    clouds = random_clouds(sizes, grid, seed)
    network: PointNet = built("pointnet", classes=3, seed=seed).double()
    middle = torch.tensor([cells / 2 if cells > 1 else 0.0 for cells in grid])
    for cloud, logits in enumerate(network(centred_points(clouds))):
        features = [(point - middle) / (max(grid) / 2) for point in clouds[cloud]]
        for layer, norm in zip(network.layers, network.norms, strict=True):
            rows = torch.stack([layer(point) for point in features])
            rows = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
            features = [torch.clamp(row * norm.weight + norm.bias, min=0) for row in rows]
        largest = torch.stack([network.last(point) for point in features]).max(0).values
        assert_close(logits, network.head(largest[None])[0])


def test_farthest_points_equal_a_loop(random_clouds):
    sizes = [12, 7, 3]
    places, present = padded_coordinates(random_clouds(sizes, SOLID, seed=7))
    chosen, left = farthest_points(places, present > 0, 5)
    assert left.tolist() == [[True] * 5, [True] * 5, [True] * 3 + [False] * 2]
    for points, count, indices in zip(places, sizes, chosen.tolist(), strict=True):
        taken = [max(range(count), key=lambda n: float(points[n].norm()))]
        while len(taken) < min(5, count):
            apart = {
                n: min(float((points[n] - points[m]).norm()) for m in taken)
                for n in range(count)
                if n not in taken
            }
            taken.append(max(apart, key=apart.get))
        assert indices[: len(taken)] == taken


@pytest.mark.parametrize("count", [1, 4, 20])
def test_nearest_points_equal_a_sort_of_all_distances(random_clouds, count):
    sizes = [12, 7, 3]
    places, present = padded_coordinates(random_clouds(sizes, SOLID, seed=7))
    centres = places[:, :2] + 0.25
    indices, distances = nearest(centres, places, present > 0, count)
    assert indices.shape == (3, 2, min(count, 12))
    for cloud, size in enumerate(sizes):
        expected = torch.cdist(centres[cloud], places[cloud, :size]).square().sort(1)
        there = min(count, size)
        assert_close(distances[cloud, :, :there], expected.values[:, :there])
        assert torch.equal(indices[cloud, :, :there], expected.indices[:, :there])
        assert distances[cloud, :, there:].isinf().all()


@pytest.mark.parametrize("sizes", [[9, 9], [9, 2, 6]])
def test_dgcnn_equals_a_loop_over_the_edges_of_its_graphs(random_clouds, sizes):
    network = DGCNN(classes=3, neighbours=4).double()
    clouds = random_clouds(sizes, SOLID, seed=3)
    middle = torch.tensor([cells / 2 for cells in SOLID])
    for cloud, logits in enumerate(network(centred_points(clouds))):
        features, layers = (clouds[cloud] - middle) / (max(SOLID) / 2), []
        for of_neighbours, of_points, norm in zip(
            network.of_neighbours, network.of_points, network.norms, strict=True
        ):
            edges = []
            for point in features:
                near = (features - point).norm(dim=1).argsort()[:4]
                edges.append(
                    torch.stack(
                        [of_neighbours(features[n] - point) + of_points(point) for n in near]
                    ).amax(0)
                )
            rows = nn.functional.instance_norm(torch.stack(edges).T[None])[0].T
            features = nn.functional.leaky_relu(rows * norm.weight + norm.bias, 0.2)
            layers.append(features)
        rows = network.together(torch.cat(layers, 1))
        torch.testing.assert_close(
            logits,
            network.head(torch.cat([rows.amax(0), rows.mean(0)])[None])[0],
            rtol=1e-7,
            atol=1e-9,
        )


@pytest.mark.parametrize("sizes", [[64, 64], [64, 33, 20], [300, 90]])
def test_pointnet_plus_plus_equals_a_loop_over_its_groups(random_clouds, sizes):
    network = PointNetPlusPlus(classes=3).double()
    clouds, alone = random_clouds(sizes, SOLID, seed=3), []
    middle = torch.tensor([cells / 2 for cells in SOLID])
    for cloud, logits in enumerate(network(centred_points(clouds))):
        where, features, room = (clouds[cloud] - middle) / (max(SOLID) / 2), None, max(sizes)
        for (share, radius, most), stage in zip(network.groupings, network.stages, strict=False):
            reach, centre_room = radius * (1024 / sizes[cloud]) ** 0.5, -(-room // share)
            everywhere = torch.ones(1, len(where), dtype=torch.bool)
            centres, groups = (
                farthest_points(where[None], everywhere, min(len(where), centre_room))[0][0],
                [],
            )
            for centre in where[centres]:
                near = [
                    n
                    for n in (where - centre).norm(dim=1).argsort().tolist()[:most]
                    if (where[n] - centre).norm() <= reach
                ]
                rows = [
                    torch.cat(
                        [(where[n] - centre) / reach, *([] if features is None else [features[n]])]
                    )
                    for n in near
                ]
                alone.append(len(rows) < min(most, len(where)))
                # the centre is its own nearest neighbour
                groups.append(torch.stack(rows + [rows[0]] * (min(most, room) - len(rows))))
            room = centre_room
            hidden = torch.stack(groups)
            for layer, norm in zip(stage.layers, stage.norms, strict=True):
                rows = layer(hidden)
                rows = (rows - rows.mean((0, 1))) / (rows.var((0, 1), correction=0) + 1e-5).sqrt()
                hidden = (rows * norm.weight + norm.bias).relu()
            features, where = hidden.amax(1), where[centres]
        hidden = torch.cat([where, features], 1)
        for layer, norm in zip(network.stages[-1].layers, network.stages[-1].norms, strict=True):
            hidden = nn.functional.instance_norm(
                layer(hidden).T[None], weight=norm.weight, bias=norm.bias
            )[0].T.relu()
        # the norms amplify rounding
        torch.testing.assert_close(
            logits, network.head(network.last(hidden).amax(0)[None])[0], rtol=1e-5, atol=1e-7
        )
    assert any(alone)  # some groups are smaller than their limit


def test_centred_points_are_1_at_the_far_side_of_the_longest_axis():
    points = [[[0.5, 0.0, 10.0], [0.5, 28.0, 20.0]], [[0.5, 14.0, 10.0]]]
    clouds = clouds_from_list(list(map(torch.tensor, points)), [0, 0], FLAT, ["only"])
    expected = [[[0, -1, 0, 1], [0, 1, 10 / 14, 1]], [[0, 0, 0, 1], [0, 0, 0, 0]]]
    torch.testing.assert_close(centred_points(clouds), torch.tensor(expected))


@pytest.mark.parametrize("grid", [FLAT, SOLID])
def test_augmented_points_are_those_of_the_moved_clouds_with_a_move_for_each(random_clouds, grid):
    clouds = random_clouds([4, 1, 6], grid)
    augmented = augment_points(centred_points(clouds).expand(5, -1, -1, -1), grid, generator(0))
    repeated = clouds.select(torch.arange(3).repeat(5))
    expected = centred_points(draw_moves(15, grid, generator(0))(repeated)).unflatten(0, (5, 3))
    assert_close(augmented, expected)
    assert len(augmented[:, 2].flatten(1).unique(dim=0)) == 5


def test_pointnet_meets_real_and_synthetic_points_at_the_same_place_of_a_cell(monkeypatch):
    given, trained_on = (
        clouds_from_list([torch.tensor([[0.5, 3.1, 4.9], [0.5, 5.7, 0.2]])], [0], FLAT, ["only"]),
        [],
    )
    real = clouds_from_list([torch.tensor([[0.5, 3.5, 4.5], [0.5, 5.5, 0.5]])], [0], FLAT, ["only"])
    monkeypatch.setattr(
        evaluation, "_train", lambda ensemble, points, *rest: trained_on.append(points)
    )
    for projection in ("hard", "soft"):
        scored(given, real, settings("pointnet", projection=projection))
    conversion = evaluation._conversion(classifier("pointnet"), Hard(), STANDARD, FLAT)
    assert torch.equal(trained_on[0], conversion.test(real)) and torch.equal(
        trained_on[1], centred_points(given)
    )


# --- as scorers -----------------------------------------------------------------------------------


def settings(name, width=4, **changes):
    return Evaluation(
        **{"classifier": classifier(name, width), "networks": 2, "epochs": 2, **changes}
    )


def scored(clouds, test, scoring):
    return Config(evaluation=scoring).evaluate(clouds, test)


@LARGE_SLOW
def test_every_classifier_is_trained_and_scored(name):
    clouds = tiny.three_digits().select(torch.arange(0, 24, 8))
    scores = [scored(clouds, clouds, settings(name, epochs=1)) for _ in range(2)]
    assert scores[0] == scores[1] and list(scores[0]) == ["standard", "paper"]
    assert all(
        0 <= accuracy <= 100 for score in scores[0].values() for accuracy in score.accuracies
    )


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("mlp", 60),
        ("convnet3d", 60),
        pytest.param("lenet", 120, marks=pytest.mark.slow),
        pytest.param("sparse", 60, marks=pytest.mark.slow),
        pytest.param("pointnet", 120, marks=pytest.mark.slow),
        pytest.param("pointnet++", 40, marks=pytest.mark.slow),
        pytest.param("dgcnn", 20, marks=pytest.mark.slow),
    ],
)
def test_classifier_learns_its_training_set(name, epochs):
    real = tiny.three_digits()
    clouds = clouds_from_list(
        [cloud[::5] for cloud in real] if name in OF_POINTS else list(real),
        real.labels,
        real.grid,
        "012",
    )
    long = settings(name, epochs=epochs, width=8, protocols=("standard",))
    assert scored(clouds, clouds, long)["standard"].mean > 50  # chance is a third


@pytest.mark.parametrize("name", ["convnet", "pointnet"])
def test_pointnet_takes_points_others_take_projections_each_with_its_augmentation(
    name, monkeypatch
):
    clouds, shapes = tiny.three_digits(), {"augment": [], "augment_points": []}
    for kind, calls in shapes.items():
        real = getattr(evaluation, kind)
        monkeypatch.setattr(
            evaluation,
            kind,
            lambda *all, real=real, calls=calls: calls.append(all[0].shape) or real(*all),
        )
    scored(clouds, clouds.select(torch.arange(5)), settings(name, epochs=1))
    sizes = (int(clouds.sizes.max()), int(clouds.sizes[:5].max()))
    # in training, then in the test of protocol paper
    points = [(2, 24, sizes[0], 4), (2, 5, sizes[1], 4)]
    images = [(2, 24, 1, 28, 28), (2, 5, 1, 28, 28)]
    assert shapes == {
        "augment": images if name == "convnet" else [],
        "augment_points": points if name == "pointnet" else [],
    }


@pytest.mark.parametrize(("name", "count"), [("pointnet", 60), ("pointnet++", 20), ("dgcnn", 20)])
def test_neighbourhood_classifiers_test_on_clouds_as_dense_as_in_training(name, count, monkeypatch):
    real = clouds_from_list(
        [torch.rand(size, 3) * 7 for size in (60, 50, 12)], [0, 1, 2], (8, 8, 8), "abc"
    )
    given = clouds_from_list(
        [torch.rand(size, 3) * 7 for size in (20, 15, 20)], [0, 1, 2], (8, 8, 8), "abc"
    )
    converted, convert = [], evaluation.lifts.centred_points
    monkeypatch.setattr(
        evaluation.lifts,
        "centred_points",
        lambda clouds: converted.append(clouds) or convert(clouds),
    )
    scored(given, real, settings(name, projection="soft", networks=1, epochs=1))
    assert converted[0].sizes.tolist() == [20, 15, 20] and converted[1].sizes.tolist() == [
        count,
        min(50, count),
        12,
    ]
    for thinned, cloud in zip(converted[1], real, strict=True):
        assert {tuple(point) for point in thinned.tolist()} <= {
            tuple(point) for point in cloud.tolist()
        }


@LARGE_SLOW
def test_two_classifiers_trained_together_are_the_two_trained_apart(name):
    first_input, labels = (
        input_of(name, tiny.three_digits().select(torch.tensor([0, 8, 16]))),
        torch.arange(3),
    )
    alone = [built(name, classes=3, seed=seed).double() for seed in range(2)]
    ensemble = Ensemble(alone)
    inputs = torch.stack([first_input, first_input.flip(0)]).double()

    def train(network, inputs, labels):
        optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
        for _ in range(2):
            loss = (
                nn.functional.cross_entropy(network(inputs).flatten(0, -2), labels, reduction="sum")
                / 3
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return network(inputs)

    together = train(ensemble, inputs, labels.repeat(2))
    apart = torch.stack(
        [train(network, own, labels) for network, own in zip(alone, inputs, strict=True)]
    )
    torch.testing.assert_close(together, apart, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "name", [name for name in CLASSIFIERS if name not in ("sparse", "pointnet++", "dgcnn")]
)
def test_an_ensemble_of_any_dense_kind_can_run_as_one(name, monkeypatch):
    """Use `torch.vmap` over the networks, as on a GPU."""
    monkeypatch.setattr(ConvNetModule, "by_tiles", False)
    networks, inputs = (
        [built(name, seed=seed).double() for seed in range(2)],
        input_of(name, tiny.three_digits())[::8].double(),
    )
    stacked, _ = torch.func.stack_module_state(networks)
    together = torch.vmap(lambda p, x: torch.func.functional_call(networks[0], p, (x,)), (0, None))(
        stacked, inputs
    )
    assert_close(together, torch.stack([network(inputs) for network in networks]))


# --- ConvNet and the ensemble ---------------------------------------------------------------------


def classifiers(count):
    networks = [ConvNetModule(8, 12, 5, channels=3).double() for _ in range(count)]
    for seed, network in enumerate(networks):
        network.initialise(generator(seed))
    return networks


def images(*shape, seed=0):
    return torch.rand(*shape, 1, 8, 12, dtype=torch.float64, generator=generator(seed))


def test_convnet_equals_literal_layers():
    (network,) = classifiers(1)
    stack = []
    for convolution, norm in zip(network.convolutions, network.norms):
        stack += [convolution, norm, nn.ReLU(), nn.AvgPool2d(2)]
        assert convolution.kernel_size == (3, 3) and norm.num_groups == norm.num_channels == 3
    assert [convolution.padding for convolution in network.convolutions] == [(3, 3), (1, 1), (1, 1)]
    assert_close(network(images(4)), nn.Sequential(*stack, nn.Flatten(), network.head)(images(4)))


@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (9, 14)])
def test_convnet_takes_images_of_any_size(shape):
    assert ConvNetModule(*shape, 5, channels=2)(torch.rand(3, 1, *shape)).shape == (3, 5)


def test_an_ensemble_equals_its_networks_one_by_one():
    networks, inputs = classifiers(3), images(3, 4)
    assert_close(
        Ensemble(networks)(inputs),
        torch.stack([network(own) for network, own in zip(networks, inputs)]),
    )


def test_an_ensemble_equals_vmap_over_its_networks():
    networks, inputs = classifiers(3), images(3, 4)
    parameters, _ = torch.func.stack_module_state(networks)
    expected = torch.vmap(lambda p, x: torch.func.functional_call(networks[0], p, (x,)))(
        parameters, inputs
    )
    assert_close(Ensemble(networks)(inputs), expected)


def test_with_fewer_inputs_the_first_networks_of_an_ensemble_answer():
    ensemble, inputs = Ensemble(classifiers(3)), images(3, 4)
    assert torch.equal(ensemble(inputs[:2]), ensemble(inputs)[:2])


def test_the_gradient_of_one_member_leaves_the_others_alone():
    networks, inputs = classifiers(3), images(3, 4)
    ensemble = Ensemble(networks)
    ensemble(inputs)[1].square().sum().backward()
    networks[1](inputs[1]).square().sum().backward()
    for stacked, alone in zip(ensemble.stacked, networks[1].parameters(), strict=True):
        assert_close(stacked.grad[1], alone.grad)
        assert stacked.grad[[0, 2]].abs().sum() == 0


def test_training_an_ensemble_does_not_change_the_networks_it_was_made_of():
    networks = classifiers(2)
    before = [parameter.clone() for parameter in networks[0].parameters()]
    ensemble = Ensemble(networks)
    # the parameters of the template are not parameters of the ensemble
    assert len(list(ensemble.parameters())) == len(before)
    ensemble(images(2, 4)).square().sum().backward()
    torch.optim.SGD(ensemble.parameters(), lr=0.1).step()
    assert all(
        torch.equal(old, new) for old, new in zip(before, networks[0].parameters(), strict=True)
    )
    assert not torch.equal(ensemble.stacked[0][0], before[0])


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (4, [2, 2, 1]), (9, [1] * 5)]
)
def test_shares_of_an_ensemble_are_its_networks_in_order(most, sizes):
    ensemble, inputs = Ensemble(classifiers(5)), images(5, 2)
    shares = ensemble.split(most)
    assert [len(share.stacked[0]) for share in shares] == sizes
    assert_close(
        torch.cat([share(part) for share, part in zip(shares, inputs.split(sizes), strict=True)]),
        ensemble(inputs),
    )


def test_training_a_share_trains_these_networks_and_no_others():
    ensemble, inputs = Ensemble(classifiers(3)), images(3, 2)
    before = [parameter.detach().clone() for parameter in ensemble.stacked]
    first, second = ensemble.split(2)
    # a step of one share must not change a backward pass of another share
    waiting = first(inputs[:2]).square().sum()
    second(inputs[2:]).square().sum().backward()
    # the decay moves parameters without a gradient too, such as biases before a norm
    torch.optim.SGD(second.parameters(), lr=0.1, weight_decay=0.1).step()
    waiting.backward()
    for old, new in zip(before, ensemble.stacked, strict=True):
        assert torch.equal(old[:2], new[:2]) and not torch.equal(old[2], new[2])
