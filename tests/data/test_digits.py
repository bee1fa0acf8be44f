import torch

from vimoe.data.digits import digits, shift_by_a_pixel
from vimoe.data.epoch_order import generator


def test_the_splits_are_disjoint_whole_and_stratified() -> None:
    splits = digits()
    sizes = [len(part) for part in (splits.train, splits.val, splits.test)]
    assert sizes == [1077, 360, 360]
    images = torch.cat([part.images.flatten(1) for part in (splits.train, splits.val, splits.test)])
    assert len(images.unique(dim=0)) == 1797
    for part in (splits.val, splits.test):
        counts = torch.bincount(part.targets, minlength=10)
        assert counts.min() >= 34
        assert counts.max() <= 38


def test_the_splits_are_the_same_every_time_and_an_item_is_a_image_with_its_label() -> None:
    first, second = digits(), digits()
    assert torch.equal(first.test.images, second.test.images)
    image, label = first.train[3]
    assert image.shape == first.form.input_size
    assert first.class_names[label] == str(label)


def test_training_pixels_have_mean_0_and_deviation_1() -> None:
    images = digits().train.images
    assert abs(images.mean()) < 1e-5
    assert abs(images.std() - 1) < 1e-5


def test_a_shift_moves_each_image_by_at_most_a_pixel_and_fills_with_background() -> None:
    images = torch.zeros(200, 2, 8, 8)
    images[:, :, 4, 4] = 1
    moved = shift_by_a_pixel(images, generator("test"))
    assert (moved.sum((2, 3)) == 1).all()
    assert torch.equal(moved[:, 0], moved[:, 1])
    places = {divmod(int(i), 8) for i in moved[:, 0].flatten(1).argmax(1)}
    assert places == {(r, c) for r in (3, 4, 5) for c in (3, 4, 5)}


def test_the_same_generator_gives_the_same_shift() -> None:
    images = torch.randn(20, 1, 8, 8)
    first = shift_by_a_pixel(images, generator("augment", 0, 7))
    assert torch.equal(first, shift_by_a_pixel(images, generator("augment", 0, 7)))
    assert not torch.equal(first, shift_by_a_pixel(images, generator("augment", 0, 8)))
