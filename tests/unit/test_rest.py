"""When a board gives back what requests took."""

from shoal.agent.rest import REST_S, Rest


def test_memory_is_given_back_once_in_each_rest() -> None:
    now_s = 100.0
    rest = Rest(lambda: now_s)
    assert not rest.due(), "nothing has run"
    rest.ran()
    now_s += REST_S - 1
    assert not rest.due()
    rest.ran()
    now_s += REST_S - 1
    assert not rest.due(), "the last run counts"
    now_s += 1
    assert rest.due()
    assert not rest.due(), "there is no more to give"
    rest.ran()
    now_s += REST_S
    assert rest.due(), "this is another rest"
