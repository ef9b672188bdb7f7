"""Where runs begin: what is kept of a trained model, what is new, and what is said."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from tiny import call, fit, random_params
from tiny import tiny as larger

import ddpm_jax
from ddpm_jax import convert
from ddpm_jax.data.contents import Contents
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import build, config, init_from, run
from ddpm_jax.interop.layout import leaves

NULL = "network.label_dropout=0.1"
KEY = jax.random.key(5)


def tiny(*changes):
    """One level, with attention: what is compiled here is small."""
    one_level = "network.channel_mults=1,", "network.attention_resolutions=8,"
    return larger(*one_level, *changes)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of 10 classes, without a null class."""
    folder = tmp_path_factory.mktemp("beginnings") / "run"
    run.write(folder, tiny(), random_params(built()))
    return folder


@pytest.fixture(scope="module")
def published(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("beginnings") / "diffusers"
    call(convert, "--workdir", source, "--out", folder)
    return folder


@functools.cache
def built(*changes):
    return build.build(tiny(*changes))


@functools.cache
def new(*changes):
    """The parameters of a run from nothing."""
    return jax.device_get(built(*changes).model.init(built(*changes).keys[0]))


def begin(path, *changes):
    return init_from.initial_params(built(*changes, f"init_from={path}"))


def made(tmp_path, *changes):
    """A run with parameters of its own, to begin from."""
    run.write(tmp_path / "made", tiny(*changes), random_params(built(*changes)))
    return tmp_path / "made"


def assert_same(a, b, without=()):
    assert {*a} - {*without} == {*b} - {*without}
    for name in {*a} - {*without}:
        jax.tree.map(np.testing.assert_array_equal, a[name], b[name])


def test_training_begins_from_a_model(source, published, tmp_path, capsys):
    """At a learning rate near 0 the weights stay; the source is needed only once."""
    params = ddpm_jax.load(source).params
    copy = shutil.copytree(published, tmp_path / "source")
    settings = tiny(
        f"init_from={copy}",
        NULL,
        "optimizer.learning_rate=1e-12",
        "train.num_steps=1",
    )
    workdir = tmp_path / "run"
    assert fit(settings, workdir) == 0
    said = f"training in {workdir}; beginning from {copy}; new: the null class"
    assert said in capsys.readouterr().out
    trained = ddpm_jax.load(workdir).params
    for name, module in params.items():
        for kind, leaf in leaves(module).items():
            found = leaves(trained[name])[kind][: len(leaf)]
            np.testing.assert_allclose(found, leaf, atol=1e-6)
    shutil.rmtree(copy)
    more = config.override(settings, ["train.num_steps=2"])
    assert fit(more, workdir) == 0


def test_other_classes(source, published):
    there = ddpm_jax.load(source).params
    classes = "class_embedding"
    for path, changes, note in (
        (
            published,
            ["network.num_classes=4", NULL],
            "new: class_embedding (4 classes; 10 there)",
        ),
        (
            source,
            ["network.num_classes=0"],
            "left out: class_embedding (10 classes there)",
        ),
    ):
        params, notes = begin(path, *changes)
        assert notes == [note]
        assert_same(params, there, without=[classes])
        assert_same(params, new(*changes), without={*there} - {classes})
    params, notes = begin(source, NULL)
    assert notes == ["new: the null class"]
    assert_same(params, there, without=[classes])
    rows, fresh = params[classes]["embedding"], new(NULL)[classes]["embedding"]
    np.testing.assert_array_equal(rows[:10], there[classes]["embedding"])
    np.testing.assert_array_equal(rows[10], fresh[10])


def test_classes_keep_what_they_have_under_their_names(tmp_path):
    """Not under their numbers: of eight classes of 10, two are new, the rest moved."""
    path = made(tmp_path)
    rows = lambda params: params["class_embedding"]["embedding"]
    there, given = rows(ddpm_jax.load(path).params), [NULL, "network.num_classes=8"]
    fresh = rows(new(*given))
    words = ["ant", "bat", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay"]
    run.same_data(path, Contents(20, words, ""))
    ours = ["owl", "cat", "ant", "dog", "elk", "fox", "gnu", "pig"]

    def begin(names, *changes):
        return init_from.initial_params(built(*changes, f"init_from={path}"), names)

    params, notes = begin(ours, *given)
    for row, was, name in zip(rows(params), fresh, ours, strict=False):
        old = there[words.index(name)] if name in words else was
        np.testing.assert_array_equal(row, old)
    np.testing.assert_array_equal(rows(params)[8], fresh[8])
    assert notes == [
        "classes keep what they have under their names",
        "new: class_embedding of owl, pig, the null class",
        "left out: class_embedding of bat, hen, ibis, jay",
    ]
    params, notes = begin([*map(str, range(10))])
    np.testing.assert_array_equal(rows(params), there)
    assert notes == ["classes keep what they have under their numbers"]
    assert begin(words)[1] == []


def test_the_null_class_keeps_its_meaning(tmp_path):
    """Rows are not told by their number: 10 classes and none are not 11 classes."""
    path = made(tmp_path, NULL)
    there = ddpm_jax.load(path).params["class_embedding"]["embedding"]
    rows = lambda params: params["class_embedding"]["embedding"]
    params, notes = begin(path, "network.num_classes=11")
    assert notes == ["new: class_embedding (11 classes; 10 there)"]
    assert rows(params).shape == there.shape
    np.testing.assert_array_equal(rows(params), rows(new("network.num_classes=11")))
    params, notes = begin(path, "network.num_classes=12", NULL)
    kept = "12 classes; 10 there; the null class is kept"
    assert notes == [f"new: class_embedding ({kept})"]
    np.testing.assert_array_equal(rows(params)[12], there[10])
    params, notes = begin(path)
    assert notes == ["left out: the null class"]
    np.testing.assert_array_equal(rows(params), there[:10])


def test_classes_are_added(tmp_path):
    path = made(tmp_path, "network.num_classes=0")
    params, notes = begin(path, NULL)
    assert notes == ["new: class_embedding (10 classes; 0 there)"]
    assert_same(params, ddpm_jax.load(path).params, without=["class_embedding"])
    assert params["class_embedding"]["embedding"].shape[0] == 11
    assert begin(path, "network.num_classes=0", NULL)[1] == []


def test_attention_is_added(tmp_path):
    path = made(tmp_path, "network.attention_resolutions=()")
    params, notes = begin(path)
    assert notes == [
        "new: attention at 8",
        "attention as it was trained is had with "
        "--config.network.attention_resolutions=()",
    ]
    there = ddpm_jax.load(path).params
    assert_same({name: params[name] for name in there}, there)


def test_a_learned_variance_is_added_and_left_out(source, tmp_path):
    simple = ("network.learned_variance=False", "loss.name=simple")
    simple += ("sampler.variance=fixed_small",)
    path = made(tmp_path, *simple)
    there, out = ddpm_jax.load(path).params, "conv_out"
    params, notes = begin(path)
    assert notes == ["new: the variance in conv_out"]
    assert_same(params, there, without=[out])
    for name, fresh in new()[out].items():
        np.testing.assert_array_equal(params[out][name][..., :1], there[out][name])
        np.testing.assert_array_equal(params[out][name][..., 1:], fresh[..., 1:])
    params, notes = begin(source, *simple)
    there = ddpm_jax.load(source).params
    assert notes == ["left out: the variance in conv_out"]
    np.testing.assert_array_equal(params[out]["bias"], there[out]["bias"][:1])


def test_another_size_of_images(tmp_path):
    settings = larger("network.num_classes=0")
    there = random_params(build.build(settings))
    run.write(tmp_path / "made", settings, there)

    def begin(*changes):
        ours = config.override(settings, (*changes, f"init_from={tmp_path / 'made'}"))
        return init_from.initial_params(build.build(ours))

    size = "image_shape was [8, 8, 1] there and is [16, 16, 1] here"
    params, notes = begin("image_shape=16,16,1", "network.attention_resolutions=8,")
    assert notes == [size]  # attention is at the same level
    assert_same(params, there)
    # Unless it is told, attention stays at its size, and so comes to another level.
    _, notes = begin("image_shape=16,16,1", "network.attention_resolutions=16,")
    assert notes == [
        size,
        "new: attention at 16",
        "left out: attention at 4",
        "attention as it was trained is had with "
        "--config.network.attention_resolutions=8,",
    ]


def test_what_cannot_be_begun_from(source, tmp_path):
    for changes, words in (
        (
            ["network.norm_eps=1e-5"],
            "norm_eps 1e-06 there and 1e-05 here: give --config.network.norm_eps=1e-06",
        ),
        (
            ["network.channels=16", "network.channel_mults=1,2"],
            "channel_mults [1] there and [1, 2] here, channels 8 there and 16 here: "
            "give --config.network.channel_mults=1, --config.network.channels=8",
        ),
        # These have the same shapes, but read them in another way.
        (["network.num_groups=2"], "num_groups 4 there and 2 here"),
        (["network.num_heads=2"], "num_heads 1 there and 2 here"),
        (["network.cos_first=True"], "give --config.network.cos_first=False"),
        (
            ["image_shape=8,8,3"],
            "is of images of 1 channels, and config.image_shape says 3: give "
            "--config.image_shape=8,8,1",
        ),
    ):
        with pytest.raises(ConfigError) as refused:
            begin(source, *changes)
        assert words in str(refused.value)
        assert str(refused.value).startswith(f"config.init_from: {source} is of ")
        assert "\n" not in str(refused.value)
    _, notes = begin(source, "schedule.num_steps=30", "loss.predicts=v")
    assert sorted(notes) == [
        "loss.predicts was eps there and is v here",
        "schedule.num_steps was 20 there and is 30 here",
    ]
    with pytest.raises(ConfigError, match="config.init_from: no file or .*nowhere"):
        fit(tiny(f"init_from={tmp_path}/nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="init_from must be the path"):
        tiny("init_from=3")
    run.write_config(tmp_path, tiny())
    with pytest.raises(ConfigError, match="a run is one once it has checkpoints"):
        begin(tmp_path)


def test_an_assumed_schedule_is_said(published, tmp_path):
    copy = shutil.copytree(published, tmp_path / "copy")
    shutil.rmtree(copy / "scheduler")
    _, notes = begin(copy)
    assert "no scheduler_config.json" in notes[0]
    assert "schedule.name was linear there and is cosine here" in notes
    theirs = json.loads((copy / "unet/config.json").read_text())
    theirs["sample_size"] = None  # then it is of this run's size
    (copy / "unet/config.json").write_text(json.dumps(theirs))
    assert begin(copy)[1] == notes
