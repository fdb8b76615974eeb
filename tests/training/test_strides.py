from nfnets_jax.training.strides import Strides


def test_strides_end_where_the_host_is_due() -> None:
    strides = Strides(3, 30, 10, lambda step: step in (4, 12, 25))
    divided = []
    for first, last in strides:
        divided.append((first, last))
        if len(divided) == 2:
            assert not strides.is_timed
            strides.settle(seconds=0.0)
    # Four steps, as long as none was timed; then at most ten.
    assert divided == [(4, 4), (5, 8), (9, 12), (13, 22), (23, 25), (26, 30)]
    assert strides.is_timed


def test_slow_steps_make_short_strides() -> None:
    strides = Strides(0, 9, 256, lambda step: False)
    strides.settle(seconds=0.11)
    assert list(strides) == [(1, 2), (3, 4), (5, 6), (7, 8), (9, 9)]
    strides.settle(seconds=60.0)
    assert list(strides) == [(step, step) for step in range(1, 10)]


def test_a_host_that_reads_batches_takes_one_at_a_time() -> None:
    strides = Strides(0, 3, 1, lambda step: False)
    assert strides.is_timed
    assert list(strides) == [(1, 1), (2, 2), (3, 3)]
