"""CIFAR prepared for tensorflow-datasets without TensorFlow.

Its archives are plain bytes, so they are decoded with NumPy and written through the
stock builder's other half, which makes the very data set that TensorFlow would.
"""

import sys

import numpy as np
from PIL import Image

# Only a quick look whether the server answers: the download has its own patience.
_SECONDS_TO_ANSWER = 5


def prepare_cifar(stock):
    """Downloads CIFAR and prepares it as the stock builder would, without TensorFlow.

    tfds checks the archive by the hash it knows for the URL, and moves the finished
    data set into place at once.

    Args:
        stock: the builder of cifar10 or cifar100 of tfds.

    Returns:
        The builder of the prepared data set.

    Raises:
        ConnectionError: if the archive cannot be fetched, saying what to do.
    """
    import requests
    import tensorflow_datasets
    from tensorflow_datasets.core.download import download_manager, util

    class Cifar(type(stock), skip_registration=True):
        """The stock builder, but for its decoding of the binary files."""

        name = stock.name

        def _generate_examples(self, split_prefix, filepaths):
            keys = self._cifar_info.label_keys
            files = [np.fromfile(path, np.uint8) for path in filepaths]
            # A row is the labels, one byte each, then the planes R, G, B of 32x32.
            rows = np.concatenate(files).reshape(-1, len(keys) + 3 * 32 * 32)
            for index, row in enumerate(rows):
                pixels = row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
                yield (
                    index,
                    {
                        **dict(zip(keys, row.tolist(), strict=False)),
                        "id": f"{split_prefix}{index:05d}",
                        # PIL images are encoded by PIL, arrays by TensorFlow.
                        "image": Image.fromarray(pixels),
                    },
                )

    builder = Cifar(data_dir=stock.data_dir_root, file_format="array_record")
    if not sys.stderr.isatty():
        tensorflow_datasets.disable_progress_bar()
    # Else tfds asks the network whether Google's bucket has a copy.
    config = tensorflow_datasets.download.DownloadConfig(try_download_gcs=False)
    url = builder._cifar_info.url
    try:
        requests.head(url, timeout=_SECONDS_TO_ANSWER).raise_for_status()
        builder.download_and_prepare(download_config=config)
    except (
        requests.RequestException,
        util.DownloadError,
        download_manager.NonMatchingChecksumError,
    ) as error:
        raise ConnectionError(
            f"{stock.name} is not in {stock.data_dir_root} and cannot be fetched from "
            f"{url}: give data_dir= of a prepared copy, or use another source such as "
            "digits"
        ) from error
    return builder
