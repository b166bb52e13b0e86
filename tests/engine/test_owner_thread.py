from __future__ import annotations

import gc
import threading
import weakref

import pytest

from engine.owner_thread import OwnerThread


def test_jobs_run_in_order_on_one_thread() -> None:
    owner = OwnerThread("owner")
    done: list[tuple[int, str]] = []
    futures = [
        owner.submit(lambda number: done.append((number, threading.current_thread().name)), number)
        for number in range(20)
    ]
    assert not owner.is_current()
    assert owner.submit(owner.is_current).result(10)
    owner.end()
    assert done == [(number, "owner") for number in range(20)]
    assert all(future.done() for future in futures)
    assert "owner" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(RuntimeError, match="was ended"):  # and not a future that nobody will ever fulfil
        owner.submit(int)


def test_an_error_belongs_to_its_job_alone() -> None:
    owner = OwnerThread("owner")

    def fail() -> None:
        raise KeyboardInterrupt

    failed = owner.submit(fail)
    assert owner.submit(int, "7", base=8).result(10) == 7
    with pytest.raises(KeyboardInterrupt):
        failed.result(10)
    owner.end()


def test_it_keeps_nothing_of_a_job_that_is_done() -> None:
    class Thing:
        pass

    owner, thing = OwnerThread("owner"), Thing()
    gone = weakref.ref(thing)
    owner.submit(id, thing).result(10)
    owner.submit(int).result(10)
    del thing
    gc.collect()
    assert gone() is None
    owner.end()


def test_it_may_be_ended_from_itself() -> None:
    owner = OwnerThread("owner")
    owner.submit(owner.end).result(10)
    owner._thread.join(10)
    assert not owner._thread.is_alive()
