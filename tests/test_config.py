"""Config files, overrides and differences."""

import pytest

from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import config


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "def get_config():\n"
        "    return dict(seed=0, image_shape=(8, 8, 1), data=dict(name='digits'))\n"
    )
    return str(path)


def test_a_config_is_plain_json(recipe):
    assert config.read_config(recipe) == {
        "seed": 0,
        "image_shape": [8, 8, 1],
        "data": {"name": "digits"},
    }


@pytest.mark.parametrize(
    "text, section, key, value",
    [
        ("optimizer.learning_rate=1e-4", "optimizer", "learning_rate", 1e-4),
        ("data.flip=True", "data", "flip", True),
        ("data.flip=false", "data", "flip", False),
        ("network.head_channels=none", "network", "head_channels", None),
        ("data.data_dir=../my=data", "data", "data_dir", "../my=data"),
        ("network.channel_mults=(1, 2)", "network", "channel_mults", [1, 2]),
        ("timesteps.times=[3,1]", "timesteps", "times", [3, 1]),
    ],
)
def test_overrides(recipe, text, section, key, value):
    assert config.read_config(recipe, [text])[section][key] == value


def test_a_section_can_be_given_anew(recipe):
    made = config.read_config(recipe, ["data={'name': 'folder'}", "data.path=x"])
    assert made["data"] == {"name": "folder", "path": "x"}


@pytest.mark.parametrize(
    "key",
    ["network.channel_mults", "network.attention_resolutions", "timesteps.times"],
)
def test_a_list_of_one_may_be_given_as_its_item(recipe, key):
    section, _, name = key.partition(".")
    for text in ("4", "4,", "[4]"):
        assert config.read_config(recipe, [f"{key}={text}"])[section][name] == [4]


def test_an_override_that_another_undoes_is_named():
    assert config.undone(["seed=1", "data.flip=True", "data.path=x"]) == []
    assert config.undone(["data={}", "data.flip=True"]) == []
    assert config.undone(["seed=1", "seed=2"]) == [("seed", "seed")]
    assert config.undone(["data.flip=True", "data={}"]) == [("data.flip", "data")]


def test_overrides_of_plain_values(recipe):
    made = config.read_config(recipe, ["seed=7", "image_shape=4,6,3"])
    assert made["seed"] == 7 and made["image_shape"] == [4, 6, 3]
    assert made["data"] == {"name": "digits"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("optimiser.learning_rate=1", "unknown config key 'optimiser.learning_rate'"),
        ("sed=1", "did you mean 'seed'"),
        ("data.flip", "--config.data.flip needs a value"),
        ("data=1", "config.data must be a dict, got 1"),
        ("image_shape=8", "image_shape must be .height, width, channels., got 8"),
        ("seed=x", "seed must be a whole number from 0, got 'x'"),
        ("seed=-1", "seed must be a whole number from 0, got -1"),
        ("seed=True", "seed must be a whole number from 0, got True"),
        ("image_shape=8,8,True", "image_shape must be .*, got .8, 8, True"),
        ("image_shape=8,0,1", "image_shape must be .*, got .8, 0, 1"),
        ("Data.name=1", "did you mean 'data.name'"),
    ],
)
def test_bad_overrides(recipe, text, message):
    with pytest.raises(ConfigError, match=message):
        config.read_config(recipe, [text])


def test_variants(tmp_path):
    path = tmp_path / "family.py"
    path.write_text(
        "def get_config(variant):\n"
        "    if variant != 'cat':\n"
        "        raise ValueError(f'no variant {variant!r}; there is: cat')\n"
        "    return dict(seed=3, image_shape=(8, 8, 1))\n"
    )
    assert config.read_config(f"{path}:cat")["seed"] == 3
    with pytest.raises(ConfigError, match="family of recipes: choose one"):
        config.read_config(str(path))
    with pytest.raises(ConfigError, match="no variant 'dog'; there is: cat"):
        config.read_config(f"{path}:dog")


def test_bad_files(tmp_path, recipe):
    with pytest.raises(ConfigError, match="no file"):
        config.read_config("nowhere.py")
    with pytest.raises(ConfigError, match="takes no variant"):
        config.read_config(f"{recipe}:cat")
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(ConfigError, match="does not define a function get_config"):
        config.read_config(str(empty))
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:")
    with pytest.raises(ConfigError, match="broken.py: invalid syntax .*line 1"):
        config.read_config(str(broken))
    typo = tmp_path / "typo.py"
    typo.write_text("def get_config():\n    return dict(optimiser={})\n")
    with pytest.raises(ConfigError, match="did you mean 'optimizer'"):
        config.read_config(str(typo))


@pytest.mark.parametrize(
    "body, said",
    [
        ("c = {}\n    return c['loss']", "line 3: KeyError: 'loss'"),
        ("\n    raise ValueError", "line 3: ValueError"),
        ("\n    raise ValueError('no such size')", "file.py: no such size"),
        ("import nothing_here", "line 2: ModuleNotFoundError: No module named"),
    ],
)
def test_a_file_that_fails_says_where_and_how(tmp_path, body, said):
    path = tmp_path / "file.py"
    path.write_text(f"def get_config():\n    {body}\n")
    with pytest.raises(ConfigError, match=f"file.py.*{said.removeprefix('file.py')}"):
        config.read_config(str(path))


def test_differences():
    old = {"seed": 0, "data": {"flip": True}, "train": {"keep": 3}}
    new = {"seed": 0, "data": {"flip": False, "split": "test"}, "train": {"keep": 3}}
    assert config.differences(old, new) == {
        "data.flip": (True, False),
        "data.split": (None, "test"),
    }
    assert config.differences(old, old) == {}
