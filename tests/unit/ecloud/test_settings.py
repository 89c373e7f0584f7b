"""Settings: the example holds every one with its default; what is wrong is named, all of it, with what to do."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from ecloud.config.settings import ROOT, PoolSettings, Settings, SettingsWrong, default_pools, load_settings

EXAMPLE = ROOT / "settings.example.py"


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings file of the test's own, named by the environment; nothing of the person who runs the tests."""
    path = tmp_path / "settings.py"
    monkeypatch.setenv("ECLOUD_SETTINGS", str(path))
    monkeypatch.delenv("ECLOUD_HOME", raising=False)
    path.write_text("")
    return path


def problems(file: Path, text: str) -> list[str]:
    """What is wrong with a settings file of that text, without the file's name."""
    file.write_text(text)
    with pytest.raises(SettingsWrong) as found:
        load_settings()
    return [problem.removeprefix(f"{file}: ").removeprefix(str(file)) for problem in found.value.texts]


# --- the example ----------------------------------------------------------------------------------


def example() -> dict[str, Any]:
    return {name: value for name, value in runpy.run_path(str(EXAMPLE)).items() if name.isupper()}


def test_the_example_holds_every_setting_and_no_other() -> None:
    assert sorted(example()) == sorted(name.upper() for name in Settings.__struct_fields__)


def test_the_example_equals_the_defaults(settings_file: Path) -> None:
    settings_file.write_text(EXAMPLE.read_text())
    assert load_settings() == Settings()


def test_each_setting_of_the_example_has_the_type_of_its_default() -> None:
    for name, value in example().items():
        assert type(value) is type(getattr(Settings(), name.lower())), name


def test_the_example_explains_each_part_of_a_pool() -> None:
    text = EXAMPLE.read_text()
    assert [name for name in PoolSettings.__struct_fields__ if f'"{name}"' not in text] == []


def test_no_settings_at_all_are_the_defaults(settings_file: Path) -> None:
    assert load_settings() == Settings()


# --- where a value comes from ---------------------------------------------------------------------


def test_the_environment_goes_before_the_file_and_the_command_line_before_both(
    settings_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_file.write_text('HOME = "/from/the/file"\nHEARTBEAT_S = 7\n')
    assert load_settings().home == "/from/the/file"
    monkeypatch.setenv("ECLOUD_HOME", "/from/the/environment")
    assert load_settings().home == "/from/the/environment"
    assert load_settings({"home": "/from/the/command/line"}).home == "/from/the/command/line"
    assert load_settings({"home": None}).home == "/from/the/environment"
    assert load_settings().heartbeat_s == 7.0


def test_a_file_that_is_named_and_missing_is_said(settings_file: Path) -> None:
    settings_file.unlink()
    says = f"ECLOUD_SETTINGS names {settings_file}, which does not exist: write it"
    with pytest.raises(SettingsWrong, match=re.escape(says)):
        load_settings()


def test_a_directory_in_the_place_of_the_file_is_said(settings_file: Path) -> None:
    settings_file.unlink()
    settings_file.mkdir()
    with pytest.raises(SettingsWrong, match=re.escape(str(settings_file))):
        load_settings()


def test_a_file_may_compute_and_import(settings_file: Path) -> None:
    settings_file.write_text(
        "import pathlib\nfrom pathlib import Path\n_SECRET = 1\nbase = 2\n"
        "HOME = Path('/somewhere')\nLEASE_S = base * 30\ndef helper(): return 3\n"
    )
    settings = load_settings()
    assert (settings.home, settings.lease_s) == ("/somewhere", 60.0)


def test_whole_numbers_are_seconds_too(settings_file: Path) -> None:
    settings_file.write_text("HEARTBEAT_S = 2\nKEEP_RUNS_DAYS = 3\n")
    settings = load_settings()
    assert (settings.heartbeat_s, settings.keep_runs_days) == (2.0, 3.0)
    assert isinstance(settings.heartbeat_s, float)


# --- what is wrong --------------------------------------------------------------------------------


def test_an_unknown_name_is_reported_with_the_nearest(settings_file: Path) -> None:
    assert problems(settings_file, "HEARTBEATS = 1\nDATABASE = 'x'\nFROBNICATE = 3\n") == [
        "DATABASE is no setting; did you mean DATABASE_URL?",
        "FROBNICATE is no setting; see settings.example.py",
        "HEARTBEATS is no setting; did you mean HEARTBEAT_S?",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("HEARTBEAT_S = 'often'", "HEARTBEAT_S = 'often': Expected `float`, got `str`"),
        ("HEARTBEAT_S = True", "HEARTBEAT_S = True: Expected `float`, got `bool`"),
        ("HEARTBEAT_S = None", "HEARTBEAT_S = None: Expected `float`, got `null`"),
        ("HEARTBEAT_S = float('nan')", "HEARTBEAT_S = nan: a finite number"),
        ("HEARTBEAT_S = float('inf')", "HEARTBEAT_S = inf: a finite number"),
        ("HEARTBEAT_S = 0", "HEARTBEAT_S = 0.0: at least 0.05"),
        ("BROKER_PORT = 1883.5", "BROKER_PORT = 1883.5: Expected `int`, got `float`"),
        ("BROKER_PORT = '1883'", "BROKER_PORT = '1883': Expected `int`, got `str`"),
        ("BROKER_PORT = 0", "BROKER_PORT = 0: at least 1"),
        ("BROKER_PORT = 70000", "BROKER_PORT = 70000: at most 65535"),
        ("BROKER_TLS = 1", "BROKER_TLS = 1: Expected `bool`, got `int`"),
        ("HOME = 3", "HOME = 3: Expected `str`, got `int`"),
        ("ON_OLD_RUNS = 'burn'", "ON_OLD_RUNS = 'burn': one of archive, drop"),
        ("LOG_LEVEL = 'LOUD'", "LOG_LEVEL = 'LOUD': one of DEBUG, INFO, WARNING, ERROR"),
        ("LEASE_S = 5", "LEASE_S must be at least twice HEARTBEAT_S"),
        ("POOLS = [{'name': 'a'}, {'name': 'a'}]", "POOLS: two pools are named a"),
        ("POOLS = [{'name': 'a', 'cpu': 1}]", "POOLS = [{'name': 'a', 'cpu': 1}]: Object contains unknown field `cpu`"),
        ("POOLS = [{'cpus': 1}]", "POOLS = [{'cpus': 1}]: Object missing required field `name`"),
        ("POOLS = 3", "POOLS = 3: "),
        ("POOLS = [3]", "POOLS = [3]: Expected `object`, got `int`"),
        ("POOLS = [{'name': 'a', 'minimum': 2, 'maximum': 1}]", "POOLS: a: minimum 2 is more than maximum 1"),
        (
            "POOLS = [{'name': 'a', 'maximum': -1}]",
            "POOLS: a: maximum = -1: a finite number",
        ),
        ("POOLS = [{'name': 'a', 'cpus': -1}]", "POOLS: a: cpus = -1.0: a finite number, at least 0"),
        ("POOLS = [{'name': '', 'cpus': 1}]", "POOLS: a pool's name has 1 to 64 characters, not 0"),
        ("POOLS = [{'name': 'a', 'cloud': 'moon'}]", "POOLS: a: cloud = 'moon': one of local"),
    ],
)
def test_a_wrong_value_is_reported_with_what_would_be_right(line: str, problem: str, settings_file: Path) -> None:
    found = problems(settings_file, line)
    assert found[0].startswith(problem)


def test_all_problems_are_reported_at_once(settings_file: Path) -> None:
    assert len(problems(settings_file, "LEASE = 1\nHEARTBEAT_S = 'x'\nBROKER_PORT = 0\nON_OLD_RUNS = 'burn'\n")) == 4


def test_a_file_that_raises_is_reported_with_its_line(settings_file: Path) -> None:
    assert problems(settings_file, "HEARTBEAT_S = 1\n\nLEASE_S = 1 / 0\n") == [
        ", line 3: ZeroDivisionError: division by zero"
    ]
    assert problems(settings_file, "import no_such_module_at_all\n") == [
        ", line 1: ModuleNotFoundError: No module named 'no_such_module_at_all'"
    ]
    found = problems(settings_file, "HEARTBEAT_S = 1\nLEASE_S = = 2\n")
    assert found[0].startswith(", line 2: SyntaxError: invalid syntax")
    assert problems(settings_file, "import sys\nsys.exit(3)\n") == [", line 2: SystemExit: 3"]


def test_a_password_in_a_wrong_setting_is_not_told(settings_file: Path) -> None:
    found = problems(settings_file, "DATABASE_URL = b'mysql://u:hush@h/d'\nBROKER_PASSWORD = ['hush']\n")
    assert len(found) == 2
    assert "hush" not in " ".join(found)


# --- pools ----------------------------------------------------------------------------------------


def test_pools_as_dicts_and_as_values_are_the_same(settings_file: Path) -> None:
    settings_file.write_text(
        "from ecloud.config.settings import PoolSettings\n"
        "POOLS = [{'name': 'a', 'cpus': 2, 'labels': ['x']}, PoolSettings('b', maximum=3)]\n"
    )
    assert load_settings().all_pools == (PoolSettings("a", cpus=2.0, labels=("x",)), PoolSettings("b", maximum=3))


def test_without_pools_there_is_a_worker_per_core_and_one_of_all_cores() -> None:
    one, whole = default_pools(8)
    assert (one.maximum, one.cpus) == (8, 1.0)
    assert (whole.maximum, whole.cpus, whole.spillover) == (1, 8.0, True)
    assert [pool.name for pool in default_pools(1)] == ["local"]


# --- an OpenNebula --------------------------------------------------------------------------------

OPENNEBULA = """
POOLS = ({"name": "big", "cloud": "opennebula", "template": "worker", "cpus": 4, "memory_mb": 7500, "maximum": 20},)
OPENNEBULA_URL = "https://cloud.example.org:2633/RPC2"
OPENNEBULA_USER = "ecloud"
OPENNEBULA_PASSWORD = "not to be shown"
"""


def test_a_pool_of_an_opennebula(settings_file: Path) -> None:
    settings_file.write_text(OPENNEBULA)
    settings = load_settings()
    assert settings.pools[0].template == "worker"
    assert settings.opennebula_user == "ecloud"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (OPENNEBULA.replace('"worker"', '" "'), "POOLS: big: template: the name or id of an OpenNebula template"),
        (
            OPENNEBULA.replace("7500", "0"),
            "POOLS: big: cpus and memory_mb: the CPUs and memory of a VM of its template",
        ),
        (OPENNEBULA + 'OPENNEBULA_USER = ""\n', "OPENNEBULA_USER is needed by the pools of an OpenNebula"),
        (OPENNEBULA + 'OPENNEBULA_PASSWORD = ""\n', "OPENNEBULA_PASSWORD is needed by the pools of an OpenNebula"),
        (OPENNEBULA + 'OPENNEBULA_URL = ""\n', "OPENNEBULA_URL is needed by the pools of an OpenNebula"),
        (OPENNEBULA + 'OPENNEBULA_URL = "cloud:2633"\n', "OPENNEBULA_URL = 'cloud:2633': an address that begins with"),
        (OPENNEBULA + 'OPENNEBULA_USER = "a:b"\n', "OPENNEBULA_USER: a name without a colon"),
        (OPENNEBULA.replace('"cpus"', '"code": "rsync", "cpus"'), "POOLS: big: code = 'rsync': one of image, ssh"),
        (OPENNEBULA.replace('"cpus"', '"ssh_user": "a b", "cpus"'), "POOLS: big: ssh_user = 'a b': the name of a user"),
        (OPENNEBULA.replace('"cpus"', '"ssh_port": 0, "cpus"'), "POOLS: big: ssh_port = 0: a port, 22 in most images"),
        ('POOLS = ({"name": "here", "code": "ssh"},)', "POOLS: here: code = 'ssh': for pools of cloud opennebula only"),
        (
            'POOLS = ({"name": "far", "cloud": "slurm", "cpus": 1, "memory_mb": 1, "run_as": "x"},)',
            "POOLS: far: run_as = 'x': only for pools of cloud local",
        ),
        ('POOLS = ({"name": "here", "template": "worker"},)', "POOLS: here: template = 'worker': for pools of cloud"),
    ],
)
def test_a_wrong_pool_of_an_opennebula_is_named(settings_file: Path, text: str, problem: str) -> None:
    (found,) = problems(settings_file, text)
    assert found.startswith(problem)
    assert "not to be shown" not in found


def test_templates_of_machines_need_a_cloud_and_a_place(settings_file: Path) -> None:
    settings_file.write_text(
        'DATASTORE_TEMPLATE = "files"\nDATASTORE_AT = "ecloud@host:/srv"\nBOSS_TEMPLATE = "boss"\n'
    )
    with pytest.raises(SettingsWrong) as wrong:
        load_settings()
    told = "\n".join(wrong.value.texts)
    assert "DATASTORE_AT = 'ecloud@host:/srv': where on the machine of DATASTORE_TEMPLATE files are" in told
    assert "OPENNEBULA_URL is needed" in told
