from vimoe.study.grid import StudyRun
from vimoe.study.queue import Outcome, Queue
from vimoe.training.recipe import Recipe


def planned(setting: str, needs: str | None = None, seed: int = 0) -> StudyRun:
    return StudyRun(setting, "", Recipe(seed=seed), ("main",), needs)


START, TUNED, OTHER = planned("start"), planned("a", "seed0/start"), planned("b", "seed0/start")
NEXT = planned("start", seed=1)


def test_a_run_waits_for_what_it_needs_and_others_go_before() -> None:
    queue = Queue.of([START, TUNED, NEXT])
    assert queue.take() is START
    assert queue.take() is NEXT
    assert queue.take() is None
    assert queue.note(Outcome(START, "")) == [Outcome(START, "")]
    assert queue.take() is TUNED
    assert queue.waiting == []


def test_what_needs_a_run_that_was_done_before_may_begin_at_once() -> None:
    assert Queue.of([TUNED]).take() is TUNED


def test_a_failure_ends_what_needs_what_needed_it() -> None:
    after = planned("a-planned", "seed0/a")
    queue = Queue.of([START, TUNED, after])
    assert queue.take() is START
    told = queue.note(Outcome(START, "broken"))
    assert [each.run for each in told] == [START, TUNED, after]
    assert told[-1].failure == "not begun, since seed0/start failed"
    assert queue.waiting == []


def test_a_failure_ends_those_that_needed_it_and_no_others() -> None:
    queue = Queue.of([START, TUNED, OTHER, NEXT])
    assert queue.take() is START
    told = queue.note(Outcome(START, "broken"))
    assert [(each.run, each.failure) for each in told] == [
        (START, "broken"),
        (TUNED, "not begun, since seed0/start failed"),
        (OTHER, "not begun, since seed0/start failed"),
    ]
    assert queue.take() is NEXT
    assert queue.take() is None
