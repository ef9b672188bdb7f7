"""Laws of reading tensorflow-datasets, and of preparing CIFAR, without TensorFlow."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import stores
import tensorflow_datasets
from PIL import Image
from tensorflow_datasets.image_classification import cifar

from ddpm_jax import places
from ddpm_jax.buckets import open_bucket
from ddpm_jax.data import records
from ddpm_jax.data.base import gather, in_memory
from ddpm_jax.data.batches import make_batch_fn
from ddpm_jax.data.contents import contents_of

# Where tensorflow-datasets itself looks.
PREPARED = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def prepare(data_dir, data_name, rows, features, test_rows=()):
    """Writes a data set in the format ArrayRecord; of one split if none are given.

    Args:
        data_dir: where.
        data_name: the name of the data set.
        rows: dicts; their images as PIL images, since arrays need TensorFlow.
        features: the tfds feature of each column.
        test_rows: those of a second split.
    """

    class Builder(
        tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True
    ):
        name = data_name
        VERSION = tensorflow_datasets.core.Version("3.0.2")
        url_infos = {}

        def _info(self):
            return tensorflow_datasets.core.DatasetInfo(
                builder=self,
                features=tensorflow_datasets.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            splits = {"train": rows, "test": test_rows}
            return {name: enumerate(each) for name, each in splits.items() if each}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Builder(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(
        download_config=tensorflow_datasets.download.DownloadConfig(
            try_download_gcs=False
        )
    )
    return builder


def image_feature(*shape, **options):
    return tensorflow_datasets.features.Image(shape=shape, **options)


def class_feature(count):
    return tensorflow_datasets.features.ClassLabel(num_classes=count)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Makes every test independent of the network: there is none."""

    def fail(*args, **kwargs):
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setattr(requests.Session, "request", fail)


def test_a_prepared_data_set_is_read_as_it_was_written(tmp_path):
    images = noise(20, 32, 32, 3)
    rows = [
        {"image": Image.fromarray(image), "label": i % 10, "id": f"train_{i:05d}"}
        for i, image in enumerate(images)
    ]
    features = {
        "image": image_feature(32, 32, 3),
        "label": class_feature(10),
        "id": tensorflow_datasets.features.Text(),
    }
    prepare(tmp_path, "cifar10", rows, features)
    source = records.tfds("cifar10", data_dir=tmp_path)
    assert len(source) == 20
    assert source.image_shape == (32, 32, 3) and source.num_classes == 10
    read, labels = gather(source, np.array([3, 19, 0, 3]))
    np.testing.assert_array_equal(read, images[[3, 19, 0, 3]], strict=True)
    np.testing.assert_array_equal(labels, np.int32([3, 9, 0, 3]), strict=True)
    np.testing.assert_array_equal(source[7][0], images[7], strict=True)
    assert source[7][1] == 7 and isinstance(source[7][1], int)
    # In memory or not, the batches are the same; a part is a source of its own.
    one = make_batch_fn(source, 8, flip=True)(5)
    other = make_batch_fn(in_memory(source), 8, flip=True)(5)
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], strict=True)
    assert len(records.tfds("cifar10", "train[:25%]", tmp_path)) == 5
    fitted = records.tfds("cifar10", data_dir=str(tmp_path), image_size=(8, 16))
    assert fitted.image_shape == fitted[0][0].shape == (8, 16, 3)
    for split in ["validation", "train[:", "train[9:3]", "train[:0]"]:
        with pytest.raises(
            ValueError, match="its splits are train, and parts"
        ) as error:
            records.tfds("cifar10", split, tmp_path)
        assert "\n" not in str(error.value)


def test_a_name_outside_the_catalogue_with_images_of_any_size(tmp_path):
    shapes = [(20, 30), (30, 20), (9, 9)]
    rows = [{"image": Image.fromarray(noise(*shape))} for shape in shapes]
    prepare(tmp_path, "my_faces", rows, {"image": image_feature(None, None, 1)})
    with pytest.raises(ValueError, match="differ in size: give image_size"):
        records.tfds("my_faces", data_dir=tmp_path)
    source = records.tfds("my_faces", data_dir=tmp_path, image_size=12)
    assert source.image_shape == (12, 12, 1) and source.num_classes == 0
    images, labels = gather(source, np.arange(3))
    assert images.shape == (3, 12, 12, 1)
    np.testing.assert_array_equal(labels, np.zeros(3, np.int32), strict=True)


def test_columns_of_other_names_are_named_and_chosen(tmp_path):
    pixels = noise(4, 8, 8, 3)
    features = {
        "hr": image_feature(8, 8, 3),
        "fine": class_feature(4),
        "coarse": class_feature(2),
    }
    rows = [
        {"hr": Image.fromarray(image), "fine": i, "coarse": i // 2}
        for i, image in enumerate(pixels)
    ]
    prepare(tmp_path, "two_labels", rows, features)
    given = {"data_dir": tmp_path}
    with pytest.raises(ValueError, match="no column 'image' .* give image_key='hr'"):
        records.tfds("two_labels", **given)
    given["image_key"] = "hr"
    with pytest.raises(ValueError, match="label_key='coarse' or 'fine' or None"):
        records.tfds("two_labels", **given)
    found = []
    for key, count in (("fine", 4), ("coarse", 2), (None, 0)):
        source = records.tfds("two_labels", **given, label_key=key)
        assert source.num_classes == count == len(contents_of(source).classes)
        images, labels = gather(source, np.arange(4))
        np.testing.assert_array_equal(images, pixels)
        found.append(labels.tolist())
    assert found == [[0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_colours_with_opacity_lie_on_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4, :, 3] = 255
    rows = [{"image": Image.fromarray(pixels)}]
    prepare(tmp_path, "with_alpha", rows, {"image": image_feature(8, 8, 4)})
    source = records.tfds("with_alpha", data_dir=tmp_path)
    assert source.image_shape == (8, 8, 3)
    assert source[0][0][:4].max() == 0 and source[0][0][4:].min() == 255


def test_data_sets_without_8_bit_images_are_refused(tmp_path):
    prepare(tmp_path, "my_numbers", [{"label": 1}], {"label": class_feature(3)})
    with pytest.raises(ValueError, match="no column 'image' of images"):
        records.tfds("my_numbers", data_dir=tmp_path)
    deep = image_feature(4, 4, 1, dtype=np.uint16)
    rows = [{"image": Image.fromarray(noise(4, 4).astype(np.uint16))}]
    prepare(tmp_path, "my_scans", rows, {"image": deep})
    with pytest.raises(ValueError, match="are uint16, not uint8"):
        records.tfds("my_scans", data_dir=tmp_path)


def test_a_data_set_in_another_format_is_refused(tmp_path):
    rows = [{"image": Image.fromarray(noise(4, 4, 3))}]
    builder = prepare(tmp_path, "my_faces", rows, {"image": image_feature(4, 4, 3)})
    info = Path(builder.data_dir, "dataset_info.json")
    info.write_text(
        json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"})
    )
    with pytest.raises(
        FileNotFoundError, match="not in the format array_record"
    ) as error:
        records.tfds("my_faces", data_dir=tmp_path)
    assert "file_format='array_record'" in str(error.value)


def test_a_missing_data_set_comes_with_its_command(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        records.tfds("mnist", data_dir=tmp_path)
    message = str(error.value)
    assert "\n" not in message and message.startswith("mnist is not prepared in")
    assert f"tfds.builder('mnist', data_dir='{tmp_path}'" in message
    assert "file_format='array_record').download_and_prepare()" in message
    with pytest.raises(FileNotFoundError, match="allow download=True, or prepare"):
        records.tfds("cifar10", data_dir=tmp_path, download=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cifr10", "did you mean cifar10"), ("xqzw", "see tfds' catalogue"), ("a b", "")],
)
def test_an_unknown_name_is_one_short_line(tmp_path, name, hint):
    with pytest.raises(ValueError, match=f"{name!r}.*{hint}") as error:
        records.tfds(name, data_dir=tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_without_a_network_a_missing_cifar_is_told_at_once(tmp_path, name):
    start = time.monotonic()
    with pytest.raises(ConnectionError) as error:
        records.tfds(name, data_dir=tmp_path)
    assert time.monotonic() - start < 10
    message = str(error.value)
    assert "\n" not in message and message.startswith(f"{name} is not in {tmp_path}")
    assert "give data_dir= of a prepared copy" in message and "digits" in message


@pytest.mark.parametrize(("status", "why"), [(200, "wrong checksum"), (503, "503")])
def test_a_broken_download_is_refused(tmp_path, monkeypatch, status, why):
    def answer(session, method, url, **kwargs):
        response = requests.Response()
        response.url = url
        response.status_code = 200 if method.upper() == "HEAD" else status
        response.raw = io.BytesIO(b"other bytes")
        return response

    monkeypatch.setattr(requests.Session, "request", answer)
    with pytest.raises(
        ConnectionError, match="cifar10 is not in .* be fetched"
    ) as error:
        records.tfds("cifar10", data_dir=tmp_path)
    assert why in str(error.value.__cause__)
    assert not list(tmp_path.glob("cifar10/*"))


FILES = {
    "cifar10": (
        "cifar-10-batches-bin",
        [f"data_batch_{i}.bin" for i in range(1, 6)],
        "test_batch.bin",
        {"batches.meta.txt": 10},
    ),
    "cifar100": (
        "cifar-100-binary",
        ["train.bin"],
        "test.bin",
        {"coarse_label_names.txt": 20, "fine_label_names.txt": 100},
    ),
}


def test_of_a_data_set_in_a_bucket_the_split_is_brought(tmp_path, monkeypatch):
    rows = [{"image": Image.fromarray(image)} for image in noise(10, 8, 8, 3)]
    features = {"image": image_feature(8, 8, 3)}
    prepare(tmp_path / "there", "small", rows[:6], features, test_rows=rows[6:])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with stores.serving("s3") as url:
        for name, value in {**stores.ACCOUNT, stores.VARIABLES["s3"]: url}.items():
            monkeypatch.setenv(name, value)
        places._client.cache_clear()
        address = f"s3://{stores.BUCKET}/data"
        bucket, prefix = open_bucket(address)
        for path in (tmp_path / "there").rglob("*"):
            if path.is_file():
                within = path.relative_to(tmp_path / "there").as_posix()
                bucket.upload(path, f"{prefix}/{within}")
        origins = set()
        for split, length, shards in (
            ("train", 6, ["train"]),
            ("test[:50%]", 2, ["test", "train"]),
            ("train", 6, ["test", "train"]),
        ):
            there = records.tfds("small", split, data_dir=tmp_path / "there")
            here = records.tfds("small", split, data_dir=address)
            assert here.fingerprint() == there.fingerprint() and len(here) == length
            np.testing.assert_array_equal(here[1][0], there[1][0])
            found = (tmp_path / "cache").rglob("*.array_record-*")
            names = [path.name.split(".")[0] for path in sorted(found)]
            assert names == [f"small-{shard}" for shard in shards]
            origins.add((split, here.origin()))
        assert len(origins) == 2, "what is kept of one split serves after another came"
        with pytest.raises(ValueError, match="no images in split 'other'"):
            records.tfds("small", "other", data_dir=address)
        with pytest.raises(FileNotFoundError, match="there is nothing at"):
            records.tfds("other", data_dir=address)
    places._client.cache_clear()


@pytest.fixture(params=FILES)
def released(request, tmp_path, monkeypatch):
    """Lays out a small CIFAR as its archive does, in place of the download.

    Returns:
        The name, the training images and their (fine) labels.
    """
    folder, train_files, test_file, label_files = FILES[request.param]
    root = tmp_path / "extracted" / folder
    root.mkdir(parents=True)
    for file, count in label_files.items():
        (root / file).write_text("".join(f"class {i}\n" for i in range(count)))
    rng = np.random.default_rng(0)
    images, labels = [], []
    for file in [*train_files, test_file]:
        planes = rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
        classes = [rng.integers(0, n, (6, 1), np.uint8) for n in label_files.values()]
        rows = np.concatenate([*classes, planes.reshape(6, -1)], axis=1)
        rows.tofile(root / file)
        images.append(planes.transpose(0, 2, 3, 1))
        labels.append(classes[-1][:, 0])

    monkeypatch.setattr(
        tensorflow_datasets.download.DownloadManager,
        "download_and_extract",
        lambda manager, url: root.parent,
    )
    answer = requests.Response()
    answer.status_code = 200
    monkeypatch.setattr(requests.Session, "request", lambda *args, **kwargs: answer)
    return request.param, np.concatenate(images[:-1]), np.concatenate(labels[:-1])


def contents(folder):
    """Reads all files of a data set, but for the module of the code that wrote it."""
    files = {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*.*")
        if path.is_file()
    }
    info = Path("3.0.2", "dataset_info.json")
    files[info] = {**json.loads(files[info]), "moduleName": None}
    return files


def test_cifar_is_prepared_as_the_stock_builder_would(released, tmp_path, monkeypatch):
    name, images, labels = released
    source = records.tfds(name, data_dir=tmp_path / "ours")
    assert source.image_shape == (32, 32, 3)
    assert source.num_classes == int(name.removeprefix("cifar"))
    assert len(records.tfds(name, "test", tmp_path / "ours")) == 6
    read, read_labels = gather(source, np.arange(len(source)))

    order = [int(record["id"].decode().split("_")[1]) for record in source.records]
    assert sorted(order) == list(range(len(images))) != order
    np.testing.assert_array_equal(read, images[order], strict=True)
    np.testing.assert_array_equal(read_labels, labels[order])

    def load_data(path, count):  # the one function of the stock builder with TensorFlow
        for row in np.fromfile(path, np.uint8).reshape(-1, count + 3072):
            planes = row[count:].reshape(3, 32, 32)
            yield row[:count], Image.fromarray(planes.transpose(1, 2, 0))

    monkeypatch.setattr(cifar, "_load_data", load_data)
    stock = tensorflow_datasets.builder(
        name, data_dir=tmp_path / "stock", file_format="array_record"
    )
    stock.download_and_prepare(
        download_config=tensorflow_datasets.download.DownloadConfig(
            try_download_gcs=False
        )
    )
    assert contents(tmp_path / "ours" / name) == contents(tmp_path / "stock" / name)


def test_a_prepared_cifar_needs_no_network(released, tmp_path, no_network, monkeypatch):
    name, images, _ = released
    records.tfds(name, data_dir=tmp_path / "ours")
    monkeypatch.setattr(requests.Session, "request", None)
    assert len(records.tfds(name, data_dir=tmp_path / "ours")) == len(images)


def test_an_interrupted_preparation_leaves_no_data_set(released, tmp_path, monkeypatch):
    name, images, _ = released
    monkeypatch.setattr(Image, "fromarray", lambda pixels: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        records.tfds(name, data_dir=tmp_path / "ours")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        records.tfds(name, data_dir=tmp_path / "ours", download=False)


@pytest.mark.skipif(
    not (PREPARED / "cifar10").exists(), reason=f"no CIFAR-10 prepared in {PREPARED}"
)
def test_a_real_cifar10_without_tensorflow():
    code = (
        "import sys; from ddpm_jax.data import records;"
        f"source = records.tfds('cifar10', data_dir={str(PREPARED)!r}, download=False);"
        "image, label = source[123];"
        "print(len(source), source.num_classes, image.shape, 0 <= label < 10);"
        "assert not {'tensorflow', 'jax'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[0] == "50000 10 (32, 32, 3) True"
