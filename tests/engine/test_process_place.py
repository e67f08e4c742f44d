import argparse

import pytest

from soft_teacher.engine.launching import choose_device, refuse_contradiction
from soft_teacher.engine.process_place import (
    ProcessPlace,
    count_cpus,
    find_place,
    first_host,
    port_of_job,
    tasks_per_node,
)

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
# What a batch script of two nodes with four tasks each has: it is no task of srun.
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "41",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_TASKS_PER_NODE": "4(x2)",
}
SRUN = {
    **BATCH_SCRIPT,
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
# The shell of salloc: it has no PROCID, unless the cluster starts it by an srun of one task.
SALLOC = {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "4(x2)"}
ONE_TASK = {
    **SALLOC,
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_ID": "4294967290",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}


def test_torchrun_tells_where_a_process_stands():
    assert find_place(TORCHRUN) == ProcessPlace("torchrun", 5, 8, 1, 4, "10.0.0.1", 29500)


def test_a_task_of_srun_stands_where_its_step_says():
    place = find_place(SRUN)
    assert place == ProcessPlace("srun", 6, 8, 2, 4, "gpu07", port_of_job(41))
    assert place.num_machines == 2


def test_the_address_can_be_given_to_srun():
    place = find_place({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert (place.master_addr, place.master_port) == ("10.0.0.1", 29500)


def test_tasks_on_one_machine_need_no_name_of_it():
    one = {"SLURM_STEP_NODELIST": "gpu07", "SLURM_STEP_NUM_TASKS": "4"}
    place = find_place({**SRUN, **one, "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_PROCID": "2"})
    assert place.master_addr == "127.0.0.1"


def test_torchrun_goes_before_the_srun_that_started_it():
    assert find_place({**SRUN, **TORCHRUN}).starter == "torchrun"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        BATCH_SCRIPT,
        SALLOC,
        ONE_TASK,
        # A cluster of containers tells each of them about the others, and nothing of processes.
        {x: TORCHRUN[x] for x in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")},
    ],
    ids=["plain", "batch script", "salloc", "one task", "containers"],
)
def test_what_nothing_else_has_started_as_one_of_several_is_a_plain_start(environ):
    assert find_place(environ) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4,3"}, "4, 3 tasks on the machines gpu"),
        ({**SRUN, "SLURM_LOCALID": "3"}, "--distribution=block"),
        ({**TORCHRUN, "WORLD_SIZE": "7"}, "Start as many on each"),
        ({**TORCHRUN, "RANK": "9"}, "order that cannot be used"),
        ({**TORCHRUN, "RANK": "first"}, "RANK is 'first'"),
        ({"LOCAL_RANK": "0", "RANK": "0"}, "not WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "many"}, "SLURM_STEP_TASKS_PER_NODE is 'many'"),
    ],
)
def test_an_environment_that_cannot_be_is_an_error_that_says_why(environ, message):
    with pytest.raises(ValueError, match=message):
        find_place(environ)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,other2", "node1"),
        ("gpu[007-012,3],cpu1", "gpu007"),
        ("rack[2,4]n[01-08].site", "rack2n01.site"),
    ],
)
def test_the_first_host_of_a_list_is_found(nodes, first):
    assert first_host(nodes) == first


def test_tasks_are_counted_for_each_node():
    assert tasks_per_node("4") == [4]
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]


def test_neighboring_jobs_and_steps_have_other_ports_below_those_given_to_anybody():
    ports = {port_of_job(job, step) for job in range(10**6, 10**6 + 100) for step in range(3)}
    assert len(ports) == 300
    assert all(1024 < x < 32768 for x in ports)


def test_a_job_counts_its_own_cpus():
    assert count_cpus({"SLURM_CPUS_ON_NODE": "3"}) == 3
    assert count_cpus({}) >= 1


def args(num_gpus: int = 1, num_machines: int = 1) -> argparse.Namespace:
    return argparse.Namespace(num_gpus=num_gpus, num_machines=num_machines)


def test_the_numbers_of_gpus_and_machines_may_be_left_out_or_right():
    place = find_place(SRUN)
    for fine in (args(), args(4), args(4, 2)):
        refuse_contradiction(fine, place)
    with pytest.raises(ValueError, match=r"--num-gpus is 8, but srun has .* 4 on each of 2"):
        refuse_contradiction(args(8), place)
    with pytest.raises(ValueError, match="--num-machines is 3"):
        refuse_contradiction(args(4, 3), place)


def test_a_process_takes_the_gpu_of_its_number_or_the_only_one_that_slurm_shows_it():
    srun, torchrun = find_place(SRUN), find_place(TORCHRUN)
    assert choose_device(srun, 4) == 2
    assert choose_device(srun, 1) == 0
    assert choose_device(torchrun, 8) == 1
    for num_visible in (1, 3):
        with pytest.raises(ValueError, match="torchrun started 4 processes on a machine"):
            choose_device(torchrun, num_visible)
