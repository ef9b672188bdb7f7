"""Laws of what is kept: images at their first use, and which files are whole."""

import errno
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import folders, kept, manifest
from ddpm_jax.data.base import Origin, gather
from ddpm_jax.data.batches import make_batch_fn
from ddpm_jax.data.kept import keep

GIGA = 1e-9


class Records:
    """Image i is full of i; counts what is decoded."""

    image_shape = (5, 4, 3)
    num_classes = 7

    def __init__(self, place, count=100, content="c"):
        self.place, self.count, self.content = place, count, content
        self.decoded = []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.decoded.append(index)
        return np.full(self.image_shape, index % 256, np.uint8), index % 7

    def origin(self):
        return Origin(self.place, "all of [them]", self.content)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def in_file(source, said=None, **options):
    say = said.append if said is not None else lambda text: None
    return keep(source, 0.0, say=say, **options)


def file_of(place):
    (path,) = place.with_name("images.decoded").iterdir()
    return path


def assert_same(source, other, indices):
    for a, b in zip(gather(source, indices), gather(other, indices), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("where", ["memory", "file"])
def test_an_image_is_decoded_once_and_stays_as_it_is(place, where):
    source = Records(place)
    made = keep(source, 1.0) if where == "memory" else in_file(source)
    assert (made.image_shape, made.num_classes, len(made)) == (
        (5, 4, 3),
        7,
        100,
    )
    assert not source.decoded, "nothing before it is used"
    for indices in ([3, 99, 3], [0, 3, 50], [99], range(100), range(100)):
        assert_same(made, Records(place), np.array(indices))
    images, _ = gather(made, np.array([3]))
    images[:] = 0  # fresh arrays
    image, label = made[3]
    assert image.min() == 3 and label == 3 and isinstance(label, int)
    assert sorted(set(source.decoded)) == list(range(100))
    assert len(source.decoded) == 101, "only 3, twice in one batch"
    batches = [make_batch_fn(x, 16, flip=True)(9) for x in (made, Records(place))]
    for key in batches[0]:
        np.testing.assert_array_equal(batches[0][key], batches[1][key], strict=True)


def test_threads_may_share_it(place):
    for made in (keep(Records(place), 1.0), in_file(Records(place))):
        failed = []

        def use(seed, made=made, failed=failed):
            order = np.random.default_rng(seed).permutation(100)
            try:
                assert_same(made, Records(place), order)
            except AssertionError as error:
                failed.append(error)

        threads = [threading.Thread(target=use, args=(seed,)) for seed in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not failed


def test_what_fits_into_memory_writes_no_file(place):
    num_bytes = 100 * 5 * 4 * 3
    keep(Records(place), num_bytes * GIGA)[0]
    assert not place.with_name("images.decoded").exists()
    said = []
    keep(Records(place), (num_bytes - 1) * GIGA, say=said.append)[0]
    assert str(file_of(place)) in said[0] and "may be deleted" in said[0]


def test_a_file_serves_the_next_start_and_other_processes(place):
    first, second = Records(place), Records(place)
    in_file(first).gather(np.arange(60))
    with_file = in_file(second)
    assert_same(with_file, Records(place), np.arange(60))
    assert not second.decoded
    # What one writes while another has it open is seen by that one.
    in_file(Records(place)).gather(np.arange(60, 80))
    assert_same(with_file, Records(place), np.arange(100))
    assert second.decoded == list(range(80, 100))
    assert [path.suffix for path in file_of(place).parent.iterdir()] == [".npy"]


def test_other_content_is_never_served(place):
    in_file(Records(place)).gather(np.arange(100))
    old, said = file_of(place), []
    made = in_file(Records(place, content="other"), said)
    assert str(old) in said[0] and "removed" in said[0]
    assert old != file_of(place)
    assert not made._store.read(np.arange(100))[2].any()


@pytest.mark.parametrize("byte", [0, 30, -9, -1])
def test_a_damaged_image_is_decoded_again_and_told_once(place, byte):
    """Any byte: of the pixels, of the label, of the seal."""
    in_file(Records(place)).gather(np.arange(100))
    path, size = file_of(place), 5 * 4 * 3 + 4 + 8
    content = bytearray(path.read_bytes())
    for index in (7, 8):
        start = len(content) - (100 - index) * size
        content[start + byte % size] ^= 4
    path.write_bytes(content)
    source, said = Records(place), []
    made = in_file(source, said)
    assert_same(made, Records(place), np.arange(100))
    assert source.decoded == [7, 8]
    assert [text for text in said if "is damaged" in text] == said[1:] != []
    assert len(said) == 2
    assert_same(made, Records(place), np.arange(100))
    assert source.decoded == [7, 8], "it was mended"


def test_images_at_each_others_place_are_not_trusted(place):
    in_file(Records(place)).gather(np.arange(100))
    rows = np.load(file_of(place), mmap_mode="r+")
    rows[[3, 4]] = rows[[4, 3]]
    del rows
    source = Records(place)
    assert_same(in_file(source), Records(place), np.arange(100))
    assert source.decoded == [3, 4]


@pytest.mark.parametrize("size", [0, 50, 3000])
def test_a_file_that_was_cut_off_is_made_again(place, size):
    in_file(Records(place)).gather(np.arange(100))
    os.truncate(file_of(place), size)
    said = []
    assert_same(in_file(Records(place), said), Records(place), np.arange(100))
    assert "is damaged or of images that have changed: removed" in said[0]


def test_a_full_disk_is_told_once_and_images_still_come(place, monkeypatch):
    source, said, tried = Records(place), [], []
    made = in_file(source, said)

    def full(*args):
        tried.append(args)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(2):
        assert_same(made, Records(place), np.arange(50))
    assert len(source.decoded) == 100 and len(tried) == 1
    assert [text for text in said if "No space left" in text] == said[1:]
    assert len(said) == 2


def test_a_file_that_has_no_room_is_not_begun(place, monkeypatch):
    size = 100 * (5 * 4 * 3 + 4 + 8)
    free = type("usage", (), {"free": 2 * size - 1})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    source, said = Records(place), []
    assert in_file(source, said) is source
    assert len(said) == 1 and "decoded for each batch" in said[0]
    assert "data.cache" in said[0] and "data.max_memory_gb" in said[0]
    assert not place.with_name("images.decoded").exists(), "nothing is left behind"
    # Where a folder is given, all of its room may be taken, and no less will do.
    here = place.with_name("here")
    assert in_file(source, said, cache=str(here)) is not source
    free.free = size - 1
    with pytest.raises(OSError, match="would take .* are free"):
        in_file(source, cache=str(place.with_name("there")))
    free.free = 0
    assert in_file(source, cache=False) is source


def test_beside_a_folder_that_may_not_be_written_to(place, monkeypatch):
    place.with_name("images.decoded").write_text("in the way")
    said = []
    assert_same(in_file(Records(place), said), Records(place), np.arange(9))
    assert os.environ["XDG_CACHE_HOME"] in said[0]


def test_the_size_must_make_sense(place):
    with pytest.raises(ValueError, match="max_memory_gb is -1: give 0 or more"):
        keep(Records(place), -1)


# Folders


@pytest.fixture
def pictures(place):
    draw = np.random.default_rng(0)
    for i in range(12):
        pixels = draw.integers(0, 256, (64, 48, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{i:02}.jpg", quality=95)
    return place


def checked(path, monkeypatch, **options):
    """Opens a folder; returns it with the names of the files that were read."""
    read, fault = [], folders._fault
    with monkeypatch.context() as context:
        context.setattr(
            folders, "_fault", lambda path: (read.append(path.name), fault(path))[1]
        )
        return folders.folder(path, 16, **options), sorted(read)


def test_a_start_reads_only_what_changed(pictures, monkeypatch):
    first, read = checked(pictures, monkeypatch)
    assert len(read) == 12
    again, read = checked(pictures, monkeypatch)
    assert not read and again.origin() == first.origin()
    shutil.copy(pictures / "03.jpg", pictures / "12.jpg")
    os.utime(pictures / "05.jpg", ns=(0, 0))
    changed, read = checked(pictures, monkeypatch)
    assert read == ["05.jpg", "12.jpg"]
    assert changed.origin() != first.origin()


def test_a_corrupt_image_is_remembered_too_until_it_is_mended(pictures, monkeypatch):
    whole = (pictures / "02.jpg").read_bytes()
    (pictures / "02.jpg").write_bytes(whole[:300])
    for num_read in (12, 0):
        with pytest.warns(UserWarning, match="left out 1 .* 02.jpg"):
            source, read = checked(pictures, monkeypatch, on_error="skip")
        assert len(source) == 11 and len(read) == num_read
    (pictures / "02.jpg").write_bytes(whole)
    source, read = checked(pictures, monkeypatch)
    assert len(source) == 12 and read == ["02.jpg"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_machine_that_fails_makes_no_image_corrupt(
    pictures, monkeypatch, error, on_error
):
    """Neither now nor at the next start, which reads what is not known."""
    opened, errors = Image.open, [error]

    def fail(path, *args):
        if Path(path).name == "05.jpg" and errors:  # once
            raise errors.pop()
        return opened(path, *args)

    with monkeypatch.context() as context:
        context.setattr(Image, "open", fail)
        with pytest.raises(type(error)) as raised:
            folders.folder(pictures, 16, on_error=on_error)
    if isinstance(error, OSError):
        assert raised.value.filename == str(pictures / "05.jpg")
    source, read = checked(pictures, monkeypatch)
    assert len(source) == 12 and "05.jpg" in read


def test_a_fault_within_an_image_is_its_own(pictures, monkeypatch):
    """A damaged file may send its reader to before its beginning."""

    def astray(path):
        with open(path, "rb", buffering=0) as file:
            file.seek(-1)

    monkeypatch.setattr(Image, "open", astray)
    with pytest.raises(ValueError, match=r"cannot read .*00.jpg \(.*Invalid argument"):
        folders.folder(pictures, 16)


def test_an_interrupted_check_goes_on(pictures, monkeypatch):
    def interrupt(name):
        if name == "06.jpg":
            raise KeyboardInterrupt

    names = [path.name for path in sorted(pictures.iterdir())]
    stamps = [(1, 1)] * 12
    with pytest.raises(KeyboardInterrupt):
        manifest.check(pictures, names, stamps, interrupt)
    read = []
    manifest.check(pictures, names, stamps, read.append)
    assert "06.jpg" in read and "00.jpg" not in read


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pillow": "0"}', '{"files": 3}'])
def test_a_damaged_manifest_is_made_again(pictures, monkeypatch, content):
    checked(pictures, monkeypatch)
    kept_in = Path(os.environ["XDG_CACHE_HOME"], "ddpm_jax", "folders")
    for path in kept_in.glob("*/manifest.json"):
        path.write_text(content)
    assert len(checked(pictures, monkeypatch)[1]) == 12
    assert not checked(pictures, monkeypatch)[1]


def test_where_nothing_can_be_remembered_all_is_read(pictures, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot keep in .* XDG_CACHE_HOME"):
        assert len(checked(pictures, monkeypatch)[1]) == 12


def test_draft_changes_pixels_a_little_and_its_name(pictures):
    for size, most in ((8, 6), (30, 0), (32, 0)):  # 48 wide: not twice of 30
        plain = folders.folder(pictures, size)
        draft = folders.folder(pictures, size, draft=True)
        assert plain.origin().name != draft.origin().name
        images = [gather(x, np.arange(12))[0].astype(int) for x in (plain, draft)]
        apart = np.abs(images[0] - images[1])
        assert apart.mean() <= most and (apart.max() > 0) == (most > 0)


def test_draft_knows_images_that_lie_on_their_side(place):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 256, 3), np.uint8)
    exif = Image.Exif()
    exif[folders.ORIENTATION] = 6
    Image.fromarray(pixels).save(place / "0.jpg", exif=exif)
    # 64 wide when turned: twice 32 leaves nothing to decode smaller.
    images = [
        folders.folder(place, (16, 32), draft=draft)[0][0] for draft in (False, True)
    ]
    np.testing.assert_array_equal(*images)


def test_a_folder_and_its_file_give_the_same_batches(pictures):
    source = folders.folder(pictures, 16)
    made = kept.keep(folders.folder(pictures, 16), 0.0, say=lambda text: None)
    for step in (0, 1, 5):
        batches = [make_batch_fn(x, 8, flip=True)(step) for x in (source, made)]
        for key in batches[0]:
            np.testing.assert_array_equal(batches[0][key], batches[1][key])
