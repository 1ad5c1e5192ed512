from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from radtower.evaluation.retrieval.precisions import average_precision_at_random


@pytest.mark.parametrize(("num_right", "num_there"), [(1, 5), (2, 6), (5, 5), (1, 1)])
def test_a_random_order_is_the_mean_of_all_orders(num_right, num_there):
    labels = np.arange(num_there) < num_right
    values = [average_precision_score(labels, np.array(order)) for order in permutations(range(num_there))]
    assert average_precision_at_random(num_right, num_there) == pytest.approx(np.mean(values))


def test_it_is_above_the_share_where_few_are_right():
    # (1 / 2) (0.1 H + 0.1 / 19 (20 - H)) with H = 1 + 1/2 + ... + 1/20 = 3.59774
    assert average_precision_at_random(2, 20) == pytest.approx(0.22305, abs=1e-5)
