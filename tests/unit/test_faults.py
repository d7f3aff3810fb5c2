"""Places at which tests halt a process: nothing unless asked for, and then one rank, at one visit."""

import inspect
import threading

from ringmoe import faults


def test_off_a_place_is_a_function_without_a_body():
    assert faults.point is faults._go_on
    assert inspect.getsource(faults._go_on).count("\n") == 2


def test_one_rank_halts_at_one_visit_until_its_file_is_gone(tmp_path, monkeypatch):
    file = tmp_path / "halted"
    halt = faults._Halt(f"1,2,{file},a place, with a comma")
    come = threading.Thread(target=halt, args=("a place, with a comma",))
    halt("a place, with a comma")  # not this rank
    monkeypatch.setenv("RANK", "1")
    halt("another place")
    halt("a place, with a comma")  # the first visit
    come.start()
    while not file.exists() or not file.read_text():
        assert come.is_alive()
    file.unlink()
    come.join(10)
    assert not come.is_alive()
