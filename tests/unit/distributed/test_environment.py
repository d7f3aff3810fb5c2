"""The place of a process as each launcher says it; half a truth is refused."""

import pytest

from ringmoe.distributed.environment import Place, find_place, first_host, num_threads, take_local_rank
from ringmoe.errors import ConfigError

VARIABLES = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NODELIST": "gpu[07-09],big1",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
}


def test_nothing_said_is_one_process():
    assert find_place({}) == Place()
    assert Place().size == 1


def test_torchrun_and_deepspeed_say_how_many_ranks_are_here():
    expected = {"rank": 3, "local_rank": 1, "size": 4, "address": "node1", "port": 29500}
    torchrun = {**VARIABLES, "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}
    assert find_place(torchrun) == Place(launcher="torchrun", local_size=2, **expected)
    deepspeed = {**VARIABLES, "CROSS_SIZE": "2", "LOCAL_SIZE": "2"}
    assert find_place(deepspeed) == Place(launcher="deepspeed", local_size=2, **expected)
    assert find_place(VARIABLES) == Place(launcher="variables", local_size=4, **expected)


def test_explicit_variables_win_over_slurm():
    assert find_place({**SLURM, **VARIABLES}).launcher == "variables"


@pytest.mark.parametrize("missing", VARIABLES)
def test_half_a_set_of_variables_is_refused(missing):
    environ = {name: value for name, value in VARIABLES.items() if name != missing}
    with pytest.raises(ConfigError, match=rf"set but not {missing}"):
        find_place(environ)


@pytest.mark.parametrize(("name", "value"), [("RANK", "4"), ("LOCAL_RANK", "4"), ("RANK", "x"), ("WORLD_SIZE", "-1")])
def test_numbers_that_cannot_be_are_refused(name, value):
    with pytest.raises(ConfigError, match=r"contradict|expected a number"):
        find_place({**VARIABLES, name: value})


def test_variables_are_what_libraries_read():
    assert find_place(VARIABLES).variables() == VARIABLES
    assert Place().variables() == {"LOCAL_RANK": "0"}, "a process that it starts is alone as well"


def test_a_slurm_task_finds_rank_host_and_port_without_asking_slurm():
    place = find_place(SLURM)
    assert (place.launcher, place.rank, place.local_rank, place.size, place.local_size) == ("slurm", 5, 1, 7, 2)
    assert place.address == "gpu07"
    assert 10000 <= place.port < 30000
    assert find_place({**SLURM, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}).port == place.port
    assert find_place({**SLURM, "SLURM_STEP_ID": "1"}).port != place.port
    assert find_place({**SLURM, "SLURM_STEP_NODELIST": "big1"}).address == "big1"
    assert find_place({**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "99"}).port == 99


def test_the_batch_script_itself_is_no_task():
    batch = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "7", "SLURM_PROCID": "0"}
    with pytest.raises(ConfigError, match="srun"):
        find_place(batch)
    assert find_place({**batch, "SLURM_NTASKS": "1"}) == Place()


@pytest.mark.parametrize(
    ("name", "value"), [("SLURM_STEP_TASKS_PER_NODE", "two"), ("SLURM_NODEID", "4"), ("SLURM_JOB_NODELIST", "")]
)
def test_what_slurm_does_not_say_is_named(name, value):
    with pytest.raises(ConfigError, match=name):
        find_place({**SLURM, name: value})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node[003-006,010],gpu1", "node003"),
        ("n[2,5-7]-ib,x", "n2-ib"),
        ("rack[1-2]n[04-06]", "rack1n04"),
        ("a,b[1-2]", "a"),
    ],
)
def test_first_host_of_a_compressed_list(nodes, host):
    assert first_host(nodes) == host


def test_the_local_rank_option_is_taken_out_and_must_agree():
    environ = {"LOCAL_RANK": "1"}
    assert take_local_rank(["--local_rank=1", "--preset", "tiny"], environ) == ["--preset", "tiny"]
    assert take_local_rank(["--preset", "tiny", "--local-rank", "1"], environ) == ["--preset", "tiny"]
    with pytest.raises(ConfigError, match="LOCAL_RANK=1"):
        take_local_rank(["--local_rank=0"], environ)
    empty = {}
    assert take_local_rank(["x"], empty) == ["x"]
    assert empty == {}
    take_local_rank(["--local_rank=2"], empty)
    assert empty == {"LOCAL_RANK": "2"}


def test_ranks_of_a_machine_share_its_cores():
    place = Place(launcher="torchrun", size=8, local_size=4)
    assert num_threads(place, {}, cores=18) == 4
    assert num_threads(place, {}, cores=2) == 1
    assert num_threads(place, {"OMP_NUM_THREADS": "3"}, cores=18) is None
    bound = Place(launcher="slurm", size=8, local_size=4)
    assert num_threads(bound, {"SLURM_CPUS_PER_TASK": "6"}, cores=6) == 6
