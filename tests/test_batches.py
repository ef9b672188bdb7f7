"""Laws of the order of the data, and of computing it ahead."""

import itertools
import threading
import time

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.batches import Feed, make_batch_fn, prefetch
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import dataset


class Numbered:
    """N images 3x4x2 that tell their number by the sum of the first two pixels.

    The two differ, so that a mirrored image is told from an upright one.
    """

    image_shape = (3, 4, 2)
    num_classes = 10

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = np.zeros(self.image_shape, np.uint8)
        image[:, 0] = index
        image[:, 1:] = 200 + np.arange(3)[:, None]
        return image, index % 10


def numbers(batch):
    """Reads the numbers of the images, and which are mirrored."""
    mirrored = batch["image"][:, 0, 0, 0] >= 200
    upright = batch["image"].copy()
    upright[mirrored] = upright[mirrored, :, ::-1]
    expected = np.stack([Numbered(200)[i][0] for i in upright[:, 0, 0, 0]])
    np.testing.assert_array_equal(upright, expected)
    np.testing.assert_array_equal(batch["label"], upright[:, 0, 0, 0] % 10)
    return upright[:, 0, 0, 0].astype(int), mirrored


def stream(batch_fn, steps):
    batches = [batch_fn(step) for step in range(steps)]
    return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], strict=True, err_msg=key)


def test_a_batch_has_its_shapes_and_types():
    batch = make_batch_fn(Numbered(50), 8, flip=True)(3)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((8, 3, 4, 2), "uint8"),
        "label": ((8,), "int32"),
        "id": ((8,), "uint32"),
    }
    np.testing.assert_array_equal(batch["id"], np.arange(24, 32))


@pytest.mark.parametrize("batch_size", [1, 7, 30, 90, 100])
def test_every_epoch_shows_every_image_once_in_a_new_order(batch_size):
    count, epochs = 30, 5
    batch_fn = make_batch_fn(Numbered(count), batch_size)
    shown, _ = numbers(stream(batch_fn, -(-count * epochs // batch_size)))
    orders = shown[: count * epochs].reshape(epochs, count)
    np.testing.assert_array_equal(
        np.sort(orders), np.tile(np.arange(count), (epochs, 1))
    )
    for a, b in itertools.combinations([np.arange(count), *orders], 2):
        assert (a == b).mean() < 0.4


def test_the_stream_does_not_depend_on_the_batch_size():
    source = Numbered(50)
    small = stream(make_batch_fn(source, 4, flip=True), 35)
    large = stream(make_batch_fn(source, 70, flip=True), 2)
    assert_equal(small, large)


def test_seeds_that_philox_would_take_for_others_are_refused():
    for seed in (2**63, 2**64 + 1, -(2**63) - 1):
        with pytest.raises(ValueError, match="the seed must have 64 bits"):
            make_batch_fn(Numbered(50), 16, seed=seed)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    def batch(seed, step, before=()):
        batch_fn = make_batch_fn(Numbered(50), 16, seed=seed, flip=True)
        for other in before:
            batch_fn(other)["image"][:] = 0
        return batch_fn(step)

    assert_equal(batch(3, 9), batch(3, 9, before=[0, 9, 100, 9]))
    assert_equal(batch(3, 9), batch(3, np.int32(9)))
    for seed, step in [(4, 9), (-3, 9), (3, 10)]:
        other = batch(seed, step)
        assert (other["image"] != batch(3, 9)["image"]).any()


@pytest.mark.parametrize("process_count", [2, 4, 12])
def test_shares_of_the_processes_make_the_global_batch(process_count):
    source = Numbered(40)
    whole = make_batch_fn(source, 24, seed=5, flip=True)
    shares = [
        make_batch_fn(source, 24, 5, True, index, process_count)
        for index in range(process_count)
    ]
    for step in [0, 1, 2, 17]:
        parts = [share(step) for share in shares]
        together = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        assert_equal(together, whole(step))


def test_half_of_the_examples_are_mirrored_each_by_its_own_coin():
    source, steps = Numbered(100), 40
    plain, none = numbers(stream(make_batch_fn(source, 100), steps))
    shown, mirrored = numbers(stream(make_batch_fn(source, 100, flip=True), steps))
    assert not none.any()
    np.testing.assert_array_equal(shown, plain)
    # 4000 coins: 5 standard deviations are 4 %; so for each place in the batch,
    # each image and each pair of neighbours, over fewer coins.
    assert abs(mirrored.mean() - 0.5) < 0.04
    assert abs((mirrored[1:] == mirrored[:-1]).mean() - 0.5) < 0.04
    by_place = mirrored.reshape(steps, 100).mean(0)
    by_image = np.bincount(shown, mirrored) / steps
    for rate in (by_place, by_image):
        assert 0.1 < rate.min() < rate.max() < 0.9
    other = numbers(stream(make_batch_fn(source, 100, 1, True), steps))[1]
    assert abs((mirrored == other).mean() - 0.5) < 0.04


def test_ids_wrap_at_32_bits():
    batch = make_batch_fn(Numbered(50), 4, flip=True)(2**30 - 1)
    np.testing.assert_array_equal(batch["id"], 2**32 - 4 + np.arange(4))
    np.testing.assert_array_equal(
        make_batch_fn(Numbered(50), 4)(2**30)["id"], np.arange(4)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 10, "process_count": 4}, "10 does not divide over 4 processes"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 4, "process_index": 1}, "process_index 1 is outside 0 .. 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_batch_fn(Numbered(50), **arguments)


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="holds no images"):
        make_batch_fn(Numbered(0), 4)


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("depth", [1, 5, 100])
def test_prefetch_keeps_the_order(num_workers, depth):
    def slow_at_first(step):
        time.sleep(0.003 * (12 - step) / 12)
        return step

    got = list(prefetch(slow_at_first, 3, 12, num_workers, depth))
    assert got == list(range(3, 12))
    assert not prefetch_threads()


def test_prefetch_gives_the_batches_themselves():
    batch_fn = make_batch_fn(Numbered(50), 16, flip=True)
    for step, batch in enumerate(prefetch(batch_fn, 4, 30), start=4):
        assert_equal(batch, batch_fn(step))
    assert step == 29


def test_prefetch_of_no_steps_is_empty():
    assert list(prefetch(lambda step: step, 5, 5)) == []


def test_prefetch_works_ahead_but_within_its_depth():
    started = []

    def record(step):
        started.append(step)
        return step

    batches = prefetch(record, 0, 1000, num_workers=2, depth=4)
    for step in range(10):
        assert next(batches) == step
        deadline = time.monotonic() + 5
        while len(started) < step + 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert sorted(started) == list(range(step + 5))  # this one and 4 ahead
    batches.close()


def test_prefetch_computes_batches_at_the_same_time():
    meeting = threading.Barrier(3, timeout=5)

    def meet(step):
        meeting.wait()  # breaks unless three threads are here together
        return step

    assert list(prefetch(meet, 0, 6, num_workers=3, depth=3)) == list(range(6))


def test_prefetch_raises_at_the_place_of_the_batch():
    def fail_at_5(step):
        if step == 5:
            raise OSError("record of step 5")
        return step

    batches = prefetch(fail_at_5, 0, 100, num_workers=3, depth=7)
    assert [next(batches) for _ in range(5)] == list(range(5))
    with pytest.raises(OSError, match="record of step 5"):
        next(batches)
    assert list(batches) == []
    assert not prefetch_threads()


def test_prefetch_ends_its_threads_when_the_consumer_stops():
    for stop in ("close", "break", "delete"):
        batches = prefetch(lambda step: step, 0, 10**9)
        next(batches)
        assert prefetch_threads()
        if stop == "close":
            batches.close()
        if stop == "break":
            for _ in batches:
                break
        del batches
        assert not prefetch_threads(), stop


@pytest.mark.parametrize("arguments", [{"num_workers": 0}, {"depth": 0}])
def test_prefetch_refuses_to_do_nothing(arguments):
    with pytest.raises(ValueError, match="both must be positive"):
        next(prefetch(lambda step: step, 0, 3, **arguments))


def test_ahead_gives_the_batches_and_ends_its_threads():
    feed = Feed(lambda step: step, 8, num_workers=2, depth=3)
    batches = feed.ahead(3, 9)
    assert list(batches) == list(range(3, 9))
    batches = feed.ahead(0, 10**9)
    next(batches)
    assert prefetch_threads()
    del batches
    assert not prefetch_threads()


def run(feed, steps, seconds, say=print):
    """Takes steps of so many seconds each; returns the pace."""
    batches = feed.ahead(0, 10**9, say)
    for _ in range(steps):
        next(batches)
        time.sleep(seconds)
    try:
        return batches.measured(), batches.measured()
    finally:
        batches.close()


def test_the_pace_of_the_input_and_the_wait_for_it():
    """Workers of 20 ms a batch against steps of 40 ms, and of none."""

    def slow(step):
        time.sleep(0.02)
        return step

    said = []
    ample, again = run(Feed(slow, 8, num_workers=2, depth=4), 6, 0.04, said.append)
    assert ample["input_wait"] < 0.1 and not said
    assert 400 < ample["input_images_per_sec"] <= 8 * 2 / 0.02
    assert again["input_images_per_sec"] > 0, "as it was, where nothing was computed"
    scarce, _ = run(Feed(slow, 8, num_workers=2, depth=1), 12, 0, said.append)
    assert scarce["input_wait"] > 0.8
    assert scarce["input_images_per_sec"] <= 8 / 0.02, "one batch ahead, one at work"


def test_waiting_is_told_once_and_not_of_a_first_pass():
    def slow(step):
        time.sleep(0.005)
        return step

    said = []
    feed = Feed(slow, 8, depth=1, first_pass=4, advice="raise something")
    batches = feed.ahead(0, 100, said.append)
    for step, _ in zip(range(9), batches, strict=False):
        batches.measured()
        assert len(said) == (step >= 4)
    (line,) = said
    assert line.startswith("training waits ") and line.endswith(": raise something")
    batches.close()


DATA = {"name": "digits", "batch_size": 16}


def feed_of(**data):
    return dataset.Dataset({**DATA, **data}, (8, 8, 1)).feed()


def test_batches_ahead_take_a_bounded_memory():
    feed = feed_of()
    assert feed.depth == 8 and 4 <= feed.num_workers <= 16
    assert feed_of(prefetch=50, num_workers=3)[2:4] == (3, 50)
    assert dataset._ahead(300_000_000)["depth"] == 3
    assert dataset._ahead(5_000_000_000)["depth"] == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"num_workers": 0}, "config.data: num_workers is 0: give 1 or more"),
        ({"prefetch": 0}, "config.data: prefetch is 0: give 1 or more"),
        ({"prefetch": 2.5}, "config.data.prefetch must be a whole number or None"),
        ({"max_memory_gb": "4"}, "config.data.max_memory_gb must be a number"),
        ({"max_memory_gb": -1.0}, "config.data: max_memory_gb is -1.0: give 0"),
        ({"cache": 3}, "config.data.cache must be True or False or text"),
        ({"max_memory": 1}, "did you mean 'max_memory_gb'"),
    ],
)
def test_settings_that_make_no_sense_are_named(data, message):
    with pytest.raises(ConfigError, match=message):
        feed_of(**data)


def test_what_cannot_be_kept_comes_with_what_would_help(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    for i in range(40):
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    data = {"name": "folder", "path": str(tmp_path), "num_workers": 5}
    kept = feed_of(**data)
    assert kept.first_pass == 3 and kept.advice == "raise data.num_workers, now 5"
    feed = feed_of(**data, cache=False, max_memory_gb=0.0)
    assert feed.first_pass == 0 and "or data.max_memory_gb to " in feed.advice
    assert_equal(feed.batch_fn(7), kept.batch_fn(7))
