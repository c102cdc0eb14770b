"""What a cgroup path says of a process, and what a user cannot make it say."""

import pytest

from edgewise.host.callers import container_of, unit_of

ID = "ab" * 32


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/nginx.service", "nginx.service"),
        ("/system.slice/nginx.service/worker", "nginx.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("/init.scope", "init.scope"),
        ("/edgewise-12ab/till", ""),
        ("/", ""),
        ("", ""),
    ],
)
def test_the_unit_is_the_first_part_that_is_no_slice(cgroup: str, unit: str) -> None:
    assert unit_of(cgroup) == unit


def test_a_user_cannot_call_a_process_of_theirs_a_unit_of_the_system() -> None:
    forged = "/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service"
    assert unit_of(forged) == "user@1000.service"


@pytest.mark.parametrize(
    "cgroup",
    [
        f"/system.slice/docker-{ID}.scope",
        f"/docker/{ID}",
        f"/machine.slice/libpod-{ID}.scope/container",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-pod12.slice/cri-containerd-{ID}.scope",
        f"/kubepods/besteffort/pod12/{ID}",
        f"/system.slice/docker-{ID}.scope/docker/{'cd' * 32}",
    ],
)
def test_the_container_is_the_outermost_one(cgroup: str) -> None:
    assert container_of(cgroup) == ID


def test_a_user_cannot_choose_the_id_of_a_container_of_the_system() -> None:
    forged = f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"
    assert container_of(forged) == ""


def test_a_process_outside_is_in_no_container() -> None:
    assert container_of("/system.slice/nginx.service") == ""
