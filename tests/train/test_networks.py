"""Networks by name, made fit for small images; how large they are; batches too small for batch normalisation."""

import pytest
import torch

from hpcdist.config.training import Training
from hpcdist.errors import UsageError
from hpcdist.train.data.batches import Batch
from hpcdist.train.module import Classifier
from hpcdist.train.networks import SmallCnn, build_network, measure_size

CPU = torch.device("cpu")
GREY, COLOUR = (1, 28, 28), (3, 32, 32)
NAMES = ("cnn", "vgg", "resnet18", "mobilenet", "shufflenet", "densenet")


@pytest.mark.parametrize(
    ("name", "shape"), [*((name, GREY) for name in NAMES), ("vgg", COLOUR), ("mobilenet", COLOUR), ("cnn", COLOUR)]
)
def test_it_scores_the_classes_of_small_images_and_takes_an_empty_batch(name, shape):
    network = build_network(name, shape, 7).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, *shape)).shape == (2, 7)
    scores = network(torch.zeros(0, *shape))
    assert scores.shape == (0, 7)
    scores.sum().backward()
    assert all(torch.isfinite(parameter).all() and parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet", "shufflenet", "densenet"])
def test_small_images_are_not_one_pixel_before_the_end(name):
    seen = []
    network = build_network(name, COLOUR, 10).eval()
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    layers[-1].register_forward_hook(lambda layer, inputs, output: seen.append(output.shape[-2:]))
    with torch.no_grad():
        network(torch.zeros(1, *COLOUR))
    assert seen == [(4, 4)]


def test_resnet18_for_cifar_is_as_large_as_others_have_it():
    # 11,173,962 parameters and 0.56 GFLOP of multiply-adds: what kuangliu/pytorch-cifar's ResNet18 has for CIFAR-10.
    size = measure_size(build_network("resnet18", (3, 32, 32), 10), (3, 32, 32), CPU)
    assert size.parameters == 11_173_962
    assert size.flops == pytest.approx(2 * 0.56e9, rel=0.01)


def test_resnet18_for_large_images_is_torchvisions():
    # torchvision's table of weights: 11,689,512 parameters, 1.814 GFLOP of multiply-adds.
    size = measure_size(build_network("resnet18", (3, 224, 224), 1000), (3, 224, 224), CPU)
    assert size.parameters == 11_689_512
    assert size.flops == pytest.approx(2 * 1.814e9, rel=0.01)


def test_the_built_in_network_is_counted_by_hand():
    # conv1 24*24/4=144 outputs: 12*12*16*25; conv2 10*10*32*16*9; dense 800*64 and 64*10; two operations each.
    size = measure_size(build_network(None, (1, 28, 28), 10), (1, 28, 28), CPU)
    assert size.parameters == 56_970
    assert size.flops == 2 * (12 * 12 * 16 * 25 + 10 * 10 * 32 * 16 * 9 + 800 * 64 + 64 * 10)


def test_measuring_changes_neither_means_nor_random_numbers():
    network = build_network("mobilenet", (3, 32, 32), 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    measure_size(network, (3, 32, 32), CPU)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert network.training


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("resnet81", (3, 32, 32), "no network is called 'resnet81'"),
        ("fcn_resnet50", (3, 32, 32), "no network is called"),  # of torchvision, and no classifier
        ("alexnet", (3, 32, 32), "can't take images of 3 x 32 x 32"),
        ("vit_b_16", (1, 28, 28), "can't take images of 1 x 28 x 28"),
        ("cnn", (1, 8, 8), "9 x 9 or more"),
    ],
)
def test_what_cannot_be_built_is_refused(name, shape, expected):
    with pytest.raises(UsageError, match=expected):
        build_network(name, shape, 10)


def test_any_other_classifier_of_torchvision_is_made_fit_for_channels_and_classes():
    network = build_network("squeezenet1_1", (1, 32, 32), 5).eval()
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_too_small_for_a_mean_leaves_the_means_alone(count):
    classifier = Classifier(build_network("resnet18", (3, 32, 32), 10), Training(), steps=1, world_size=1)
    before = {name: value.clone() for name, value in classifier.named_buffers()}
    loss = classifier.training_step(Batch(torch.zeros(count, 3, 32, 32), torch.zeros(count, dtype=torch.int64), 4), 0)
    loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in classifier.named_buffers())
    assert all(layer.training for layer in classifier.network.modules())
    assert torch.isfinite(loss)


def test_a_batch_that_is_large_enough_moves_them():
    classifier = Classifier(build_network("shufflenet", (3, 32, 32), 10), Training(), steps=1, world_size=1)
    classifier.training_step(Batch(torch.ones(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64), 2), 0)
    assert all(int(value) == 1 for name, value in classifier.named_buffers() if name.endswith("num_batches_tracked"))


def test_the_cnn_is_the_one_that_it_was():
    torch.manual_seed(1)
    expected = SmallCnn().state_dict()
    torch.manual_seed(1)
    found = build_network("cnn", (1, 28, 28), 10).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
