import json

import pytest

from omnivinci_jax.config_json import read_config, write_config
from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.settings import TrainConfig, from_mapping, load_config, to_mapping
from tests.tiny import CONFIG, tiny_config, tiny_settings


def test_settings_round_trip_through_json():
    assert from_mapping(TrainConfig, json.loads(json.dumps(to_mapping(tiny_settings())))) == tiny_settings()


def test_model_configuration_round_trips_through_its_file(tmp_path):
    config = tiny_config(temporal_group_seconds=None, pool_sizes=((2, 1, 1), (4, 1, 1)))
    write_config(config, tmp_path / "config.json")
    assert read_config(tmp_path / "config.json") == config


def test_command_line_overrides():
    settings = load_config(
        [
            "--config",
            str(CONFIG),
            "--config.data.capacity.rows=3",
            "--config.optimizer.learning_rate=1",
            "--config.model.pool_sizes=((2,1,1),)",
            "--config.data.cache_media=false",
        ]
    )
    assert settings.data.capacity.rows == 3 and settings.optimizer.learning_rate == 1.0
    assert settings.model.pool_sizes == ((2, 1, 1),) and settings.data.cache_media is False


@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.data.worker=1", "config.data.worker: no such key; did you mean workers?"),
        ("--config.steps=many", "invalid literal for int"),
        ("--config.dtype=float8", "config.dtype is 'float8'; supported: 'float32', 'bfloat16'"),
        ("--config.model.audio_compression=min", "audio_compression is 'min'; supported: 'none', 'conv'"),
        (
            "--config.model.video_time.scheme=fourier",
            "config.model.video_time.scheme is 'fourier'; supported: 'none'",
        ),
        ("--config.model.s2_scales=(14,28)", "s2_scales is (14, 28): the first must be"),
        ("--steps=3", "Unknown command line flag 'steps'"),
        ("extra", "unexpected argument 'extra'"),
    ],
)
def test_invalid_values_give_one_line(override, message):
    with pytest.raises(ConfigError) as error:
        load_config([f"--config={CONFIG}", override])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "message"), [("", "give the model to start from"), (":nowhere", "nowhere: no such directory")]
)
def test_errors_of_a_configuration_file_give_one_line(argument, message):
    with pytest.raises(UserError) as error:
        load_config([f"--config={CONFIG.parent / 'finetune.py'}{argument}"])
    assert message in str(error.value) and "Traceback" not in str(error.value)


def test_missing_configuration_file():
    with pytest.raises(ConfigError, match=r"No such file or directory: 'configs/none\.py'"):
        load_config(["--config=configs/none.py"])
