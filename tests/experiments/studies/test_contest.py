from experiments.studies import contest


def test_the_learning_rate_is_that_of_the_best_run_at_the_point() -> None:
    point = {"contender": "a", "batch_size": 64}
    tries = [
        {**point, "learning_rate": 0.1, "top1": 0.5},
        {**point, "learning_rate": 0.2, "top1": 0.6},
        {**point, "learning_rate": 0.4, "top1": None},
        {"contender": "b", "batch_size": 64, "learning_rate": 0.8, "top1": 0.9},
    ]
    assert contest.chosen(tries, point) == 0.2
    assert contest.chosen(tries[2:3], point) == 0.4


def test_learning_rates_go_on_where_the_best_is_the_last() -> None:
    point = {"contender": "a", "batch_size": 64}

    def after(*top1: float | None) -> float | None:
        rates = (0.05, 0.2, 0.8)[: len(top1)]
        tries = [
            {**point, "learning_rate": rate, "top1": value}
            for rate, value in zip(rates, top1, strict=True)
        ]
        return contest.beyond(tries, point)

    assert after(0.3, 0.4, 0.5) == 3.2
    assert after(0.5, 0.4, 0.3) == 0.0125
    assert after(None, None) == 0.0125
    assert after(0.3, 0.5, 0.4) is None
    assert after(0.3) is None


def test_what_diverged_counts_as_nothing() -> None:
    rows = [
        {"contender": "a", "batch_size": 64, "top1": 0.5},
        {"contender": "a", "batch_size": 64, "top1": None},
        {"contender": "b", "batch_size": 64, "top1": 0.9},
        {"contender": "a", "batch_size": 256, "top1": 0.4},
    ]
    assert contest.Results([], rows, {}).top1("a") == {64: [0.5, 0.0], 256: [0.4]}
