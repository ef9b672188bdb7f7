"""torch-fidelity itself scores the same photographs: each feature and every score.

It needs PyTorch and torch-fidelity: pip install .[test,oracle]
"""

import importlib

import jax
import numpy as np
import pytest
from test_inception import random_tensor

from ddpm_jax.metrics import frechet, kernel, precision_recall
from ddpm_jax.metrics.features import inception, resize

torch = pytest.importorskip("torch")
fidelity = pytest.importorskip("torch_fidelity")
datasets = pytest.importorskip("sklearn.datasets")
extractors = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")

SIZE, NUM, BATCH = 32, 64, 32
SUBSETS, SUBSET_SIZE = 20, 40
LAYERS = {"2048": "pool_3", "logits_unbiased": "logits_unbiased"}


def patches(photograph, seed):
    """Squares of a photograph that do not overlap, uint8 [NUM, SIZE, SIZE, 3]."""
    rows, columns = (length // SIZE for length in photograph.shape[:2])
    grid = photograph[: rows * SIZE, : columns * SIZE]
    grid = grid.reshape(rows, SIZE, columns, SIZE, 3).swapaxes(1, 2)
    squares = grid.reshape(-1, SIZE, SIZE, 3)
    return np.random.default_rng(seed).permutation(squares)[:NUM]


def draw_tensors():
    """Random weights, of test_inception.py but for classes that are further apart."""
    random = np.random.default_rng(4)
    tensors = {
        name: random_tensor(name, random.standard_normal(shape))
        for name, shape in inception.tensor_shapes().items()
    }
    tensors["fc.weight"] *= 10
    return tensors


class Pictures(torch.utils.data.Dataset):
    def __init__(self, images):
        self._images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        return self._images[index]


class Recorder(extractors.FeatureExtractorInceptionV3):
    """Theirs, which keeps what it computes."""

    batches = []

    def forward(self, x):
        features = super().forward(x)
        self.batches.append(self.convert_features_tuple_to_dict(features))
        return features


@pytest.fixture(scope="module")
def theirs_and_ours(tmp_path_factory):
    """Their scores, their features of all images and ours; photographs one by one."""
    tensors = draw_tensors()
    weights = tmp_path_factory.mktemp("fidelity") / "weights.pth"
    counters = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(0)
        for name in tensors
        if name.endswith("running_var")
    }
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    torch.save(state | counters, weights)
    photographs = datasets.load_sample_images().images
    sets = [patches(photo, i) for i, photo in enumerate(photographs)]

    fidelity.register_feature_extractor("recorder", Recorder)
    scored = fidelity.calculate_metrics(
        input1=Pictures(sets[0]),
        input2=Pictures(sets[1]),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="recorder",
        feature_extractor_weights_path=str(weights),
        kid_subsets=SUBSETS,
        kid_subset_size=SUBSET_SIZE,
        batch_size=BATCH,
        save_cpu_ram=True,  # without other processes
        cuda=False,
        cache=False,
        verbose=False,
    )
    theirs = {
        layer: np.concatenate([batch[layer].numpy() for batch in Recorder.batches])
        for layer in LAYERS
    }
    params, apply = inception.make_inception(tensors)
    apply = jax.jit(apply)
    batches = np.split(np.concatenate(sets), 2 * NUM // BATCH)
    features = [jax.device_get(apply(params, resize.tf(batch))) for batch in batches]
    ours = {
        layer: np.concatenate([getattr(each, field) for each in features])
        for layer, field in LAYERS.items()
    }
    return scored, theirs, ours


def test_features(theirs_and_ours):
    _, theirs, ours = theirs_and_ours
    for layer, features in theirs.items():
        assert ours[layer].shape == features.shape
        difference = np.max(np.abs(ours[layer] - features)) / np.max(np.abs(features))
        print(f"{layer}: largest difference {difference:.1e} of the largest")
        assert difference < 2e-6


def test_scores(theirs_and_ours):
    scored, _, ours = theirs_and_ours
    generated, real = np.split(ours["2048"], 2)
    gaussians = [
        frechet.gaussian(frechet.update(frechet.empty(2048), features))
        for features in (generated, real)
    ]
    logits = np.split(ours["logits_unbiased"], 2)[0]
    is_mean, is_std = kernel.inception_score(logits)
    kid = kernel.kernel_distance(generated, real, SUBSETS, SUBSET_SIZE)
    precision, recall = precision_recall.precision_recall(generated, real)
    compared = {
        "inception_score_mean": (is_mean, 1e-6),
        "inception_score_std": (is_std, 1e-5),
        "frechet_inception_distance": (frechet.frechet_distance(*gaussians), 1e-5),
        "kernel_inception_distance_mean": (kid[0], 5e-5),
        "kernel_inception_distance_std": (kid[1], 5e-5),
        "precision": (precision, 1e-6),
        "recall": (recall, 1e-6),
    }
    for name, (value, tolerance) in compared.items():
        difference = abs(value / scored[name] - 1)
        print(f"{name}: {value:.8g} and {scored[name]:.8g}, {difference:.1e} apart")
        assert difference < tolerance, name
