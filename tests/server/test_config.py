"""Settings: flag beats variable beats file beats default; wrong ones are named."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from server.config import SETTINGS, Address, ConfigError, ServeConfig, Target, add_arguments, parse_address, read_config
from server.decoding.waiting import Order


def config_of(*argv: str, environ: dict[str, str] | None = None) -> ServeConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_config(vars(parser.parse_args(argv)), environ=environ or {})


def test_defaults() -> None:
    config = config_of()
    assert config == ServeConfig()
    assert (str(config.listen), str(config.metrics)) == ("127.0.0.1:50051", "127.0.0.1:9464")
    assert (config.lame_duck_s, config.grace_s, config.max_contents) == (2.5, 30.0, 1024)
    assert (config.workers, config.admission) == (0, Order.FAIR)


def test_flag_beats_variable_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "dragoman.toml"
    file.write_text('threads = 1\nmax-queue = 11\nlame_duck = 0.5\nreflection = true\nlisten = "0.0.0.0:1"\n')
    environ = {"DRAGOMAN_CONFIG": str(file), "DRAGOMAN_THREADS": "2", "DRAGOMAN_MAX_QUEUE": "22"}
    config = config_of("--threads", "3", environ=environ)
    assert (config.threads, config.max_queue, config.lame_duck_s) == (3, 22, 0.5)
    assert config.reflection
    assert config.listen == Address("0.0.0.0", 1)
    assert config_of("--config", str(file)).max_queue == 11
    assert not config_of(environ={**environ, "DRAGOMAN_REFLECTION": "false"}).reflection


def test_workers_and_admission_by_flag_variable_and_file(tmp_path: Path) -> None:
    file = tmp_path / "dragoman.toml"
    file.write_text('workers = 2\nadmission = "longest-first"\n')
    environ = {"DRAGOMAN_WORKERS": "3", "DRAGOMAN_ADMISSION": "fair"}
    from_file = config_of("--config", str(file))
    assert (from_file.workers, from_file.admission) == (2, Order.LONGEST_FIRST)
    from_variables = config_of("--config", str(file), environ=environ)
    assert (from_variables.workers, from_variables.admission) == (3, Order.FAIR)
    from_flags = config_of("--config", str(file), "--workers", "1024", "--admission", "longest-first", environ=environ)
    assert (from_flags.workers, from_flags.admission) == (1024, Order.LONGEST_FIRST)
    assert config_of("--workers", "0").workers == 0, "as many as threads"


def test_a_shortlist_is_asked_for_by_flag_variable_or_file(tmp_path: Path) -> None:
    file = tmp_path / "dragoman.toml"
    file.write_text("shortlist = true\n")
    assert not config_of().shortlist
    assert config_of("--shortlist").shortlist
    assert config_of("--config", str(file)).shortlist
    assert not config_of("--config", str(file), environ={"DRAGOMAN_SHORTLIST": "no"}).shortlist


def test_target_and_engine_cache_by_flag_variable_and_file(tmp_path: Path) -> None:
    file = tmp_path / "dragoman.toml"
    file.write_text('target = "cuda"\nengine-cache = "/var/engines"\n')
    assert (config_of().target, config_of().engine_cache) == (Target.AUTO, None)
    from_file = config_of("--config", str(file))
    assert (from_file.target, from_file.engine_cache) == (Target.CUDA, Path("/var/engines"))
    environ = {"DRAGOMAN_TARGET": "tensorrt", "DRAGOMAN_ENGINE_CACHE": "/tmp/engines"}
    from_variables = config_of("--config", str(file), environ=environ)
    assert (from_variables.target, from_variables.engine_cache) == (Target.TENSORRT, Path("/tmp/engines"))
    assert config_of("--target", "cpu", environ=environ).target is Target.CPU


@pytest.mark.parametrize(
    ("target", "rows", "workers"), [(Target.CPU, 96, 3), (Target.CUDA, 128, 1), (Target.TENSORRT, 128, 1)]
)
def test_rows_and_workers_by_target(target: Target, rows: int, workers: int) -> None:
    config = ServeConfig(threads=3)
    assert (config.rows_on(target), config.workers_on(target)) == (rows, workers)
    given = ServeConfig(threads=3, max_rows=40, workers=2)
    assert (given.rows_on(target), given.workers_on(target)) == (40, 2)


def test_a_shortlist_is_for_the_cpu() -> None:
    with pytest.raises(ConfigError, match="--shortlist: got it with --target tensorrt, wanted it with --target cpu"):
        config_of("--shortlist", "--target", "tensorrt")
    assert config_of("--shortlist", "--target", "auto").shortlist


def test_variables_that_kubernetes_sets_are_left_alone() -> None:
    assert (
        config_of(environ={"DRAGOMAN_PORT": "tcp://10.0.0.1:50051", "DRAGOMAN_SERVICE_HOST": "10.0.0.1"})
        == ServeConfig()
    )


@pytest.mark.parametrize(
    ("flags", "environ", "said"),
    [
        (["--threads", "two"], {}, "--threads: got 'two', wanted a whole number from 0"),
        (["--threads", "-1"], {}, "--threads: got '-1'"),
        (["--max-queue", "0"], {}, "wanted a whole number from 1"),
        (["--max-queue", "²"], {}, "--max-queue"),
        (["--grace", "nan"], {}, "--grace: got 'nan', wanted seconds"),
        (["--grace", "-1"], {}, "--grace"),
        (["--listen", "localhost"], {}, "--listen: got 'localhost', wanted HOST:PORT"),
        (["--listen", "h:70000"], {}, "wanted a port from 0 to 65535"),
        (["--listen", "::1:5"], {}, "--listen"),
        (["--listen", "höst:5"], {}, "--listen: got 'höst:5', wanted HOST:PORT"),
        (["--metrics", "\udcff:5"], {}, "--metrics"),
        (["--models", ""], {}, "--models"),
        (["--workers", "-1"], {}, "--workers: got '-1', wanted a whole number from 0 to 1024"),
        (["--workers", "1025"], {}, "--workers: got '1025', wanted a whole number from 0 to 1024"),
        (["--workers", "all"], {}, "--workers: got 'all'"),
        (["--workers", ""], {}, "--workers: got ''"),
        (["--target", "gpu"], {}, "--target: got 'gpu', wanted one of auto, tensorrt, cuda, cpu"),
        ([], {"DRAGOMAN_TARGET": "TensorRT"}, "DRAGOMAN_TARGET: got 'TensorRT', wanted one of auto"),
        (["--engine-cache", ""], {}, "--engine-cache: got '', wanted a path"),
        (["--admission", "shortest"], {}, "--admission: got 'shortest', wanted fair or longest-first"),
        (["--admission", "longest_first"], {}, "--admission: got 'longest_first', wanted fair or longest-first"),
        (["--admission", ""], {}, "--admission: got ''"),
        ([], {"DRAGOMAN_WORKERS": "1.5"}, "DRAGOMAN_WORKERS: got '1.5', wanted a whole number"),
        ([], {"DRAGOMAN_ADMISSION": "FAIR"}, "DRAGOMAN_ADMISSION: got 'FAIR', wanted fair or longest-first"),
        ([], {"DRAGOMAN_REFLECTION": "maybe"}, "DRAGOMAN_REFLECTION: got 'maybe', wanted true or false"),
        ([], {"DRAGOMAN_CONFIG": "/no/such.toml"}, "/no/such.toml: No such file"),
    ],
)
def test_wrong_settings_are_named(flags: list[str], environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config_of(*flags, environ=environ)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("thread = 1", "got key 'thread', wanted one of"),
        ("threads = [1]", "threads: got list"),
        ("threads = 1.5", "threads: got '1.5'"),
        ("threads", "no TOML"),
        ("workers = true", "workers: got 'True', wanted a whole number from 0"),
        ("workers = 2000", "workers: got '2000', wanted a whole number from 0 to 1024"),
        ("admission = 1", "admission: got '1', wanted fair or longest-first"),
        ('admission = ["fair"]', "admission: got list"),
        ("max-queue = 1\nmax_queue = 2", "got max-queue twice"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        config_of("--config", str(file))
    assert str(file) in str(raised.value)
    assert said in str(raised.value)


def test_addresses() -> None:
    assert parse_address("[::1]:50051") == Address("::1", 50051)
    assert str(Address("::1", 50051)) == "[::1]:50051"
    assert parse_address("localhost:0") == Address("localhost", 0)


def test_every_setting_has_a_flag_and_a_field() -> None:
    assert {setting.field for setting in SETTINGS} == set(ServeConfig.__dataclass_fields__)
