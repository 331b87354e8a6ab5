"""Batches: the same for any number of processes, threads and workers, and from any step on."""

import dataclasses
import logging
import pickle

import numpy as np
import pytest

from train.data import (
    AugmentConfig,
    DataError,
    TrainBatches,
    class_frequencies,
    class_weights,
    eval_batches,
    plan_evaluation,
    positive_weights,
)

CONFIG = AugmentConfig(crop=(12, 16), rotation=5.0, hue=0.1)


@dataclasses.dataclass(frozen=True)
class Noise:
    """A source of random pictures; those in `bad` cannot be read."""

    sizes: tuple[tuple[int, int] | None, ...] = ((20, 24),) * 11
    bad: tuple[int, ...] = ()

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        if index in self.bad:
            raise DataError(f"{self.name(index)} cannot be read: it is broken")
        rng = np.random.default_rng(index)
        image = rng.integers(0, 255, (*self.sizes[index], 3), np.uint8)
        return {"image": image, "label": image[..., 0] % 3}

    def label(self, index):
        return self[index]["label"]

    def name(self, index):
        return f"noise {index}"

    def size(self, index):
        if self.sizes[index] is None:
            raise DataError(f"{self.name(index)} cannot be read: it has no size")
        return self.sizes[index]


def take(count, source=Noise(), start=0, **options):
    options = {"batch_size": 4, "seed": 1, "threads": 2} | options
    with TrainBatches(source, CONFIG, **options) as batches:
        iterator = batches.iterate(start)
        return [next(iterator) for _ in range(count)]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


# ---------------------------------------------------------------------------- training


def test_a_batch_has_pictures_labels_and_what_they_are():
    (batch,) = take(1, height_multiple=5)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "image": ((4, 15, 16, 3), np.uint8),
        "label": ((4, 15, 16), np.uint8),
        "index": ((4,), np.int32),
    }


@pytest.mark.parametrize("processes", [2, 4])
def test_all_processes_together_have_the_batch_of_one(processes):
    whole = take(7)
    parts = [take(7, process_index=p, process_count=processes) for p in range(processes)]
    together = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(together, whole)


def test_each_epoch_has_every_example_once_in_a_new_order_and_augmented_anew():
    batches = take(22)  # 88 = 8 epochs of 11
    order = np.concatenate([batch["index"] for batch in batches]).reshape(8, 11)
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(11), (8, 1)))
    assert len({tuple(epoch) for epoch in order.tolist()}) == 8
    images = np.concatenate([batch["image"] for batch in batches])
    zeros = images[order.ravel() == 0]
    assert len({image.tobytes() for image in zeros}) == 8


def test_a_resumed_run_gets_the_batches_it_would_have_had():
    assert_same(take(9)[5:], take(4, start=5))
    assert_same(
        take(9, process_index=1, process_count=2)[5:],
        take(4, start=5, process_index=1, process_count=2),
    )


def test_the_seed_decides_the_order_and_the_draws():
    assert_same(take(2), take(2, threads=1))
    assert not np.array_equal(take(1)[0]["image"], take(1, seed=2)[0]["image"])


def test_worker_processes_give_the_batches_of_threads():
    source = Noise(bad=(2,))
    options = {"count": 3, "source": source, "unreadable": "skip"}
    assert_same(take(**options), take(workers=2, **options))


def test_a_batch_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="4 by 3"):
        TrainBatches(Noise(), CONFIG, batch_size=4, seed=0, process_count=3)


def test_an_unreadable_example_stops_with_its_name():
    with pytest.raises(DataError, match="noise 4 cannot be read"):
        take(3, Noise(bad=(4,)))


def test_unreadable_examples_are_replaced_counted_and_named_once(caplog):
    source = Noise(bad=(4, 5))
    options = {"batch_size": 11, "seed": 1, "threads": 2, "unreadable": "skip"}
    with TrainBatches(source, CONFIG, **options) as batches, caplog.at_level(logging.WARNING):
        iterator = batches.iterate()
        for _ in range(3):  # three epochs
            counts = np.bincount(next(iterator)["index"], minlength=11)
            np.testing.assert_array_equal(counts, [1, 1, 1, 1, 0, 0, 3, 1, 1, 1, 1])
    assert batches.skipped == {"noise 4": 3, "noise 5": 3}
    assert sorted(record.message for record in caplog.records) == [
        f"noise {i} cannot be read: it is broken; another example takes its place" for i in (4, 5)
    ]


def test_nothing_readable_is_an_error_rather_than_a_search_without_end():
    with pytest.raises(DataError, match="none of the 11 examples"):
        take(1, Noise(bad=tuple(range(11))), unreadable="skip")


# ---------------------------------------------------------------------------- evaluation

MIXED = Noise(sizes=((20, 30), (21, 30), (20, 30), (40, 10), (24, 32), (17, 25), (24, 32)))


def canvases(sizes):
    """All that are not of (40, 10) share one."""
    return {(24, 32): frozenset(sizes) - {(40, 10)}}


PLAN = plan_evaluation(MIXED, batch_size=2, canvases=canvases)


def test_images_are_grouped_by_their_size_or_by_the_canvas_that_sizes_share():
    assert [(step.size, step.indices, step.on_canvas) for step in PLAN] == [
        ((24, 32), (0, 1), True),
        ((24, 32), (2, 4), True),
        ((24, 32), (5, 6), True),
        ((40, 10), (3, -1), False),
    ]
    alone = plan_evaluation(MIXED, batch_size=2)
    assert [step.indices for step in alone] == [(0, 2), (1, -1), (3, -1), (4, 6), (5, -1)]
    assert not any(step.on_canvas for step in alone)


def test_every_image_is_whole_once_and_the_rest_is_ignored():
    seen = []
    for batch in eval_batches(MIXED, PLAN, threads=2):
        for image, label, index, (rows, columns) in zip(
            *(batch[k] for k in ("image", "label", "index", "size")), strict=True
        ):
            if index < 0:
                assert (rows, columns) == (0, 0)
            else:
                np.testing.assert_array_equal(image[:rows, :columns], MIXED[index]["image"])
                np.testing.assert_array_equal(label[:rows, :columns], MIXED[index]["label"])
                seen.append(int(index))
            assert (label[rows:] == 255).all()
            assert (label[:, columns:] == 255).all()
            assert not image[rows:].any()
    assert sorted(seen) == list(range(7))


def test_all_processes_evaluate_in_the_same_steps():
    plan = plan_evaluation(MIXED, batch_size=4)
    whole = list(eval_batches(MIXED, plan, threads=2))
    parts = [
        list(eval_batches(MIXED, plan, threads=2, process_index=p, process_count=2))
        for p in range(2)
    ]
    for batch, *both in zip(whole, *parts, strict=True):
        assert_same([batch], [{k: np.concatenate([part[k] for part in both]) for k in batch}])


def test_an_unreadable_image_stops_evaluation_or_leaves_its_row_empty(caplog):
    source = dataclasses.replace(MIXED, bad=(1,))
    with pytest.raises(DataError, match="noise 1 cannot be read"):
        list(eval_batches(source, PLAN, threads=2))
    batches = list(eval_batches(source, PLAN, threads=2, unreadable="skip"))
    indices = np.concatenate([batch["index"] for batch in batches])
    assert sorted(indices[indices >= 0]) == [0, 2, 3, 4, 5, 6]
    assert "noise 1 cannot be read: it is broken; it is left out" in caplog.text


def test_an_image_without_a_size_stops_the_plan_or_is_left_out_of_it(caplog):
    source = Noise(sizes=((20, 30), None, (20, 30)))
    with pytest.raises(DataError, match="noise 1 cannot be read"):
        plan_evaluation(source, batch_size=2)
    (step,) = plan_evaluation(source, batch_size=2, unreadable="skip")
    assert step.indices == (0, 2)
    assert "noise 1 cannot be read: it has no size; it is left out" in caplog.text


# ---------------------------------------------------------------------------- classes


def test_class_frequencies_count_pixels_and_refuse_other_labels():
    source = Noise()
    labels = np.concatenate([source.label(i).ravel() for i in range(11)])
    np.testing.assert_array_equal(class_frequencies(source, 3), np.bincount(labels))
    with pytest.raises(DataError, match=r"0 to 1.*\n  noise 0: \[2\]"):
        class_frequencies(source, 2)


def test_class_weights_by_hand():
    frequencies = np.array([60, 30, 10, 0])
    np.testing.assert_allclose(class_weights(frequencies), [0.5, 1, 3, 0])
    np.testing.assert_allclose(
        class_weights(frequencies, "log"), [*(1 / np.log(1.02 + np.array([0.6, 0.3, 0.1]))), 0]
    )


def test_weights_of_labels_are_the_pixels_without_by_those_with_them():
    frequencies = np.array([[70, 30], [90, 10], [100, 0]])
    np.testing.assert_allclose(positive_weights(frequencies), [70 / 30, 9, 1])


def test_the_sources_of_tests_pickle():
    assert pickle.loads(pickle.dumps(MIXED)) == MIXED
