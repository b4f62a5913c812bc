"""What a client's class sums are of: its own rows and units, centred features, its own noise."""

import numpy as np
import pytest
import torch

from fedtree_dp import NoiseSource
from fedtree_secure.agreed.class_sums import COUNT_SHARE
from fedtree_secure.client.class_sums import release_sums
from fedtree_secure.model.heads import Centred
from fedtree_secure.model.rows import Table

WIDTH, CLASSES, RECORDS = 6, 3, 10
MEAN = torch.arange(WIDTH).float()


def rows(count=12, seed=0):
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(count, WIDTH))).float() + MEAN
    return features, Table(((1,),) * count, rng.integers(CLASSES, size=count))


def released(features, table, noise_multiplier=0.0, seed=bytes(32)):
    head = Centred(torch.nn.Linear(WIDTH, CLASSES), (MEAN, 3.0))
    return release_sums(
        features,
        table,
        head,
        records=RECORDS,
        noise_multiplier=noise_multiplier,
        noise=NoiseSource(seed),
    )


def test_sums_are_of_centred_features_in_the_form_of_a_head():
    features, table = rows()
    found = released(features, table)
    assert found.shape == (CLASSES * (WIDTH + 1),)
    centred = torch.nn.functional.normalize(features - MEAN).double().numpy()
    for label in range(CLASSES):
        own = centred[table.labels == label]
        expected = np.sqrt(1 - COUNT_SHARE**2) * own.sum(axis=0) / RECORDS
        np.testing.assert_allclose(found[WIDTH * label :][:WIDTH], expected, atol=1e-5)
        assert found[WIDTH * CLASSES + label] == pytest.approx(
            COUNT_SHARE * len(own) / RECORDS, abs=1e-5
        )


def test_a_whole_unit_moves_them_by_at_most_one():
    features, table = rows()
    features[:6] = features[0]
    units, kept = np.repeat([0, 1], 6), slice(6, None)
    labels = np.where(units == 0, 1, table.labels)
    whole = released(features, Table(table.tokens, labels, units))
    less = released(features[kept], Table(table.tokens[kept], labels[kept], units[kept]))
    assert 0.99 < RECORDS * np.linalg.norm(whole - less) <= 1
    by_rows = released(features, Table(table.tokens, labels))
    less_rows = released(features[kept], Table(table.tokens[kept], labels[kept]))
    assert RECORDS * np.linalg.norm(by_rows - less_rows) > 5


def test_noise_is_that_of_the_charge_and_of_the_seed():
    features, table = rows()
    without = released(features, table)
    draws = np.stack(
        [released(features, table, 2.0, bytes([i]) * 32) - without for i in range(200)]
    )
    assert RECORDS * draws.std() == pytest.approx(2.0, rel=0.05)
    again = released(features, table, 2.0)
    assert np.array_equal(again, released(features, table, 2.0))


def test_no_rows_are_noise_alone():
    features, table = rows(0)
    assert not released(features, table).any()
    assert released(features, table, 2.0).any()
