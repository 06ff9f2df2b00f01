"""Pretraining of perception: its losses, warps, accuracy and batches."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from agents.supervised import pretraining
from hsal_env import functional as F
from hsal_env.config import EnvConfig
from hsal_env.perception.activation import CompactResNet


def cells(*of: tuple[float, int | None], classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """One image in a row of cells: each has a saliency and a class, certain, or None: all classes alike."""
    probabilities = [[1 / classes] * classes if c is None else [float(i == c) for i in range(classes)] for _, c in of]
    return torch.tensor([[[height for height, _ in of]]]), torch.tensor([[probabilities]]).log()


def counted(image: tuple[torch.Tensor, torch.Tensor], counts: list[int], sharp_coef: float = 0.0) -> float:
    return pretraining.counting_loss(*image, torch.tensor([counts]).float(), sharp_coef).item()


def test_expected_counts_by_hand():
    probabilities = torch.tensor([[[[0.75, 0.25], [0.0, 1.0]]], [[[0.5, 0.5], [1.0, 0.0]]]])
    saliency = torch.tensor([[[1.0, 0.5]], [[2.0, 0.0]]])
    expected = torch.tensor([[0.75, 0.75], [1.0, 1.0]])
    torch.testing.assert_close(pretraining.expected_counts(saliency, probabilities.log()), expected)


@pytest.mark.parametrize(
    ("image", "counts", "loss"),
    [
        (cells((1.0, 0)), [1, 0], 1 - math.log(1.001)),
        (cells((1.0, 0), (0.0, 1)), [1, 0], 1 - math.log(1.001)),
        (cells((1.0, 1)), [1, 0], 1 - math.log(0.001)),  # another class
        (cells((1.0, None)), [1, 0], 0.5 - math.log(0.501) + 0.5),  # an undecided one
        (cells((1.0, 0), (1.0, 1), (1.0, 0)), [2, 1], (3 - 2 * math.log(2.001) - math.log(1.001)) / math.sqrt(3)),
        (cells((0.0, 0)), [2, 2], -4 * math.log(0.001) / 2),  # nothing seen
    ],
)
def test_the_counting_loss_by_hand(image, counts, loss):
    assert counted(image, counts) == pytest.approx(loss, rel=1e-4)


def test_the_counting_loss_is_a_mean_over_images():
    (s, p), (t, q) = cells((1.0, 0), (0.25, 1)), cells((0.5, 0), (2.0, None))
    together = pretraining.counting_loss(
        torch.cat([s, t]), torch.cat([p, q]), torch.tensor([[1.0, 0.0], [2.0, 1.0]]), 0.3
    )
    assert together.item() == pytest.approx((counted((s, p), [1, 0], 0.3) + counted((t, q), [2, 1], 0.3)) / 2)


@pytest.mark.parametrize(("height", "count"), [(0.5, 1), (1.0, 1), (2.0, 1), (0.5, 4), (4.0, 4), (6.0, 4)])
def test_the_counting_loss_pulls_a_cell_towards_its_count(height, count):
    saliency, log_probs = cells((height, 0))
    saliency.requires_grad_()
    pretraining.counting_loss(saliency, log_probs, torch.tensor([[count, 0.0]]), 0.0).backward()
    slope = (1 - count / (height + 1e-3)) / math.sqrt(count)  # of (s - n log(s + 1e-3)) / sqrt(n)
    assert saliency.grad.item() == pytest.approx(slope, abs=1e-6)
    assert (slope < -0.1, abs(slope) < 2e-3, slope > 0.1) == (height < count, height == count, height > count)


def test_an_object_is_one_cell_of_height_one_and_not_two_of_a_half():
    one, two = cells((1.0, 0), (0.0, 0)), cells((0.5, 0), (0.5, 0))
    assert counted(one, [1, 0]) == counted(two, [1, 0])
    assert counted(two, [1, 0], 0.2) - counted(one, [1, 0], 0.2) == pytest.approx(0.2 * (0.25 + 0.25))


@pytest.mark.parametrize(("height", "penalty"), [(0.0, 0.0), (0.25, 0.1875), (1.0, 0.0), (1.5, 0.75), (2.0, 2.0)])
def test_the_sharp_penalty_by_hand(height, penalty):
    image = cells((height, 1))
    assert counted(image, [0, 1], 0.5) - counted(image, [0, 1]) == pytest.approx(penalty / 2, abs=1e-6)


def test_the_objective_finds_an_object():
    """From a flat map and no idea of the class, by gradient descent."""
    saliency, scores = torch.tensor([[[0.3, 0.4, 0.3]]]), torch.zeros(1, 1, 3, 2)
    for part in (saliency, scores):
        part.requires_grad_()
    optimiser = torch.optim.Adam([saliency, scores], lr=0.05)
    for _ in range(250):
        loss = pretraining.counting_loss(saliency.clamp(min=0), scores.log_softmax(-1), torch.tensor([[0.0, 1.0]]), 0.5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(saliency.detach().clamp(min=0), torch.tensor([[[0.0, 1.0, 0.0]]]), rtol=0, atol=0.05)
    assert scores[0, 0, 1].softmax(-1)[1] > 0.9


def test_a_warp_of_0_px_changes_nothing():
    images = torch.rand(3, 2, 100, 100)
    torch.testing.assert_close(pretraining.warped(images, 0.0), images, rtol=0, atol=1e-4)


def test_a_warp_displaces_by_a_normal_times_a_uniform_amplitude():
    """Of ramps, whose values say where a pixel came from: the middle one is a point of the 5x5 grid itself."""
    torch.manual_seed(0)
    lanes, warp_px = 4_000, 1.5
    ramp = torch.arange(21.0).expand(21, 21)
    images = torch.stack([ramp, ramp.T]).expand(lanes, -1, -1, -1)
    moved = pretraining.warped(images, warp_px)[:, :, 10, 10] - 10
    # E (N U)^2 = 1/3, E (N U)^4 = 3/5: five standard errors
    spread = math.sqrt((3 / 5 - 1 / 9) / lanes)
    assert (moved.square().mean(dim=0) / warp_px**2 - 1 / 3).abs().max() < 5 * spread
    assert moved.mean(dim=0).abs().max() < 5 * warp_px * math.sqrt(1 / 3 / lanes)
    assert (moved[:, 0] * moved[:, 1]).mean().abs() < 5 * warp_px**2 * math.sqrt(1 / 3 / lanes)  # x apart from y


def test_a_warp_is_smooth_and_of_each_image_its_own():
    torch.manual_seed(0)
    ramp = torch.arange(101.0).expand(2, 1, 101, 101)
    bent = pretraining.warped(ramp, 3.0)[:, 0, 30:71, 30:71] - ramp[:, 0, 30:71, 30:71]
    assert bent.abs().mean() > 0.2
    assert bent.diff(dim=1).square().mean() < bent.square().mean() / 20  # white noise: twice as much
    assert (bent[0] - bent[1]).abs().mean() > 0.2


def test_a_weight_rises_between_two_shares_of_the_training():
    found = [pretraining.risen(done, 0.2, 0.6) for done in (0.0, 0.2, 0.3, 0.4, 0.6, 1.0)]
    assert found == pytest.approx([0, 0, 0.25, 0.5, 1, 1])
    assert [pretraining.risen(done, 0.0, 0.0) for done in (0.0, 0.5)] == [1, 1]
    assert [pretraining.risen(done, 0.5, 0.5) for done in (0.49, 0.5)] == [0, 1]


def test_resized_images_by_hand():
    image = torch.tensor([[[[0.0, 4.0, 8.0, 8.0], [0.0, 4.0, 8.0, 8.0]]]])
    assert pretraining.resized(image, 1.0) is image
    halved = pretraining.resized(image, 0.5)[0, 0, 0]
    # triangles of 2 px to each side about the middle of two: weights 1, 3, 3, 1, cut off at the edge
    assert halved.tolist() == pytest.approx([(3 * 0 + 3 * 4 + 8) / 7, (4 + 3 * 8 + 3 * 8) / 7])


class Scripted(nn.Module):
    """A pretrainer that answers for an image what its first pixel, in 1/255, says."""

    model, classes = SimpleNamespace(in_channels=1), 10

    def __init__(self, answers) -> None:
        super().__init__()
        self.answers, self.classifier = answers, nn.Linear(1, 1)

    def forward(self, images):
        assert not self.training
        chosen = [self.answers[round(float(image[0, 0, 0]) * 255)] for image in images]
        return torch.cat([saliency for saliency, _ in chosen]), torch.cat([log_probs for _, log_probs in chosen])


def test_accuracy_by_hand():
    answers = [
        cells((1.0, 3), (0.0, 5), (0.1, 5), classes=10),  # counts and peaks are right
        cells((0.5, 3), (0.5, 3), (0.0, 5), classes=10),  # the sum is right, the peaks are two
        cells((0.4, 3), (0.1, 5), (0.0, 5), classes=10),  # the peak is right, the sum rounds to none
        cells((1.0, 3), (0.6, 5), (0.0, 5), classes=10),  # one too many
        cells((1.0, 5), (0.0, 3), (0.0, 3), classes=10),  # another class
    ]
    images = np.arange(5, dtype=np.uint8)[:, None, None].repeat(2, axis=1).repeat(2, axis=2)
    labels = np.full((5, 1), 3)
    canvases = SimpleNamespace(compose=lambda chosen: SimpleNamespace(images=images[chosen], labels=labels[chosen]))
    canvases = SimpleNamespace(canvases=canvases, size=5)
    net = Scripted(answers)
    errors = [0.1, 0.0, 0.6 + 0.1, 0.6, 2.0]  # of all classes, by image
    assert pretraining.accuracy(net, canvases) == {
        "counts": 0.4,
        "peaks": 0.4,
        "count_error": round(sum(errors) / 50, 4),
    }
    assert pretraining.accuracy(net, canvases, 2) == {"counts": 1.0, "peaks": 0.5, "count_error": 0.005}
    assert net.training


@pytest.mark.parametrize("lower_level", [False, True])
def test_the_pretrainer_reads_saliency_and_classes_off_the_volume(lower_level):
    torch.manual_seed(0)
    net = pretraining.Pretrainer(CompactResNet(lower_level=lower_level)).eval()
    images = torch.rand(2, 1, 100, 100)
    with torch.no_grad():
        saliency, log_probs = net(images)
        volume = net.model(images)[:, :128]
    torch.testing.assert_close(saliency, volume.square().mean(dim=1))
    scores = torch.einsum("bdij,cd->bijc", volume, net.classifier.weight) + net.classifier.bias
    torch.testing.assert_close(log_probs.exp(), scores.softmax(-1))
    torch.testing.assert_close(net.pooled(images), scores.mean(dim=(1, 2)))


def test_the_papers_objective_takes_one_of_the_labels_at_a_time():
    torch.manual_seed(0)
    scores, counts = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.0, 3.0]])
    losses = -scores.log_softmax(dim=1)[0]
    drawn = torch.stack([pretraining.classification_loss(scores, counts) for _ in range(400)])
    assert set(drawn.unique().tolist()) == {losses[0].item(), losses[2].item()}
    assert (drawn == losses[2]).float().mean() == pytest.approx(0.75, abs=0.08)  # 3 of 4 labels


def test_an_image_without_objects_has_no_label_to_learn():
    scores = torch.tensor([[2.0, 0.0], [1.0, 3.0]], requires_grad=True)
    loss = pretraining.classification_loss(scores, torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
    assert loss.item() == pytest.approx(-scores.log_softmax(dim=1)[1, 1].item() / 2)
    nothing = pretraining.classification_loss(scores, torch.zeros(2, 2))
    assert nothing.item() == 0
    nothing.backward()
    assert (scores.grad == 0).all()


def test_labels_are_counted_right_under_the_papers_objective():
    class Pooled(Scripted):
        def pooled(self, images):
            return torch.stack([self.answers[round(float(image[0, 0, 0]) * 255)] for image in images])

    images = np.arange(4, dtype=np.uint8)[:, None, None].repeat(2, axis=1).repeat(2, axis=2)
    labels = np.array([[1, 2], [3, -1], [0, 0], [9, 8]])
    canvases = SimpleNamespace(compose=lambda chosen: SimpleNamespace(images=images[chosen], labels=labels[chosen]))
    net = Pooled(list(torch.eye(10)[[2, 3, 1, 9]]))
    config = SimpleNamespace(canvases=canvases, size=9)
    assert pretraining.accuracy(net, config, 4, "classify") == {"label": 0.75}


def test_batches_are_fresh_mixed_and_the_same_for_a_seed():
    one, two = EnvConfig(source="digits", task="single"), EnvConfig(source="digits", min_objects=4)
    supplies = [pretraining.Supply(one, 0.25), pretraining.Supply(two, 0.75)]

    def drawn(seed):
        return list(pretraining.batches(supplies, 40, 6, seed))

    (first, again), other = (drawn(0), drawn(0)), drawn(1)
    assert len(first) == 6
    for (images, counts), (images_again, counts_again) in zip(first, again, strict=True):
        np.testing.assert_array_equal(images, images_again)
        np.testing.assert_array_equal(counts, counts_again)
        assert counts.shape == (40, 10)
    singles = [int((counts.sum(axis=1) == 1).sum()) for _, counts in first]
    assert singles != [int((counts.sum(axis=1) == 1).sum()) for _, counts in other]
    assert sum(singles) / 240 == pytest.approx(0.25, abs=0.1)
    everything = np.concatenate([images for images, _ in first])
    assert len(np.unique(everything.reshape(240, -1), axis=0)) == 240
    np.testing.assert_array_equal(first[0][0][: singles[0]], one.canvases.compose(range(singles[0])).images)


def test_processes_share_every_batch_and_every_look():
    looks = [{"max_objects": 1}, {"min_objects": 3}]
    supplies = [pretraining.Supply(EnvConfig(source="digits", seed=i, **look), 0.5) for i, look in enumerate(looks)]
    whole = list(pretraining.batches(supplies, 12, 4, 0))
    shares = [list(pretraining.batches(supplies, 12, 4, 0, share=(rank, 3))) for rank in range(3)]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert [len(images) for images, _ in parts] == [4, 4, 4]
        for place, (images, counts) in enumerate(parts):
            np.testing.assert_array_equal(images, batch[0][place::3])
            np.testing.assert_array_equal(counts, batch[1][place::3])


def test_a_source_that_ends_is_gone_through_in_a_new_order_each_time():
    images = np.arange(5, dtype=np.uint8)[:, None, None].repeat(8, axis=1).repeat(8, axis=2)
    config = EnvConfig(source="custom", split="all", images=images, labels=[[i] for i in range(5)])
    met = np.concatenate(
        [images[:, 0, 0] for images, _ in pretraining.batches([pretraining.Supply(config, 1.0)], 4, 5, 0)]
    )
    rounds = met.reshape(4, 5)
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in rounds.tolist())
    assert len({tuple(order) for order in rounds.tolist()}) > 1


def test_the_counting_loss_of_a_map_by_hand():
    saliency = torch.tensor([[[1.0, 0.5], [0.0, 2.0]]])
    log_probs = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75], [0.25, 0.75]]).log().reshape(1, 2, 2, 2)
    assert pretraining.expected_counts(saliency, log_probs).tolist() == [[1.5, 2.0]]
    counts = torch.tensor([[3.0, 1.0]])
    poisson = (1.5 - 3 * np.log(1.501) + 2 - np.log(2.001)) / 2
    between = 0.5 * 0.5 + 2 * 1
    assert pretraining.counting_loss(saliency, log_probs, counts, 0.0).item() == pytest.approx(poisson, rel=1e-5)
    assert pretraining.counting_loss(saliency, log_probs, counts, 0.2).item() == pytest.approx(poisson + 0.2 * between)


def test_warping_bends_an_image_a_little():
    images = F.normalise(torch.rand(4, 20, 20))[:, None]
    assert torch.allclose(pretraining.warped(images, 0.0), images, atol=1e-4)
    bent = pretraining.warped(images, 3.0)
    assert bent.shape == images.shape
    assert (bent - images).abs().amax(dim=(1, 2, 3)).min() > 0.01
