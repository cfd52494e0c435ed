"""What a server's database takes, held against MLflow's own tables and checks; none of it needs a server."""

import random
from typing import Any

import pytest
from mlflow.store.model_registry.dbmodels import models as registry_tables
from mlflow.store.tracking.dbmodels import models as tables
from mlflow.utils import validation

from leanresnet.tracking import limits

WIDTHS = [
    (tables.SqlRun.name, limits.NAME),
    (tables.SqlRun.user_id, limits.NAME),
    (tables.SqlLoggedModel.name, limits.NAME),
    (tables.SqlTag.key, limits.NAME),
    (tables.SqlTag.value, limits.TAG),
    (tables.SqlParam.key, limits.NAME),
    (tables.SqlParam.value, limits.PARAM),
    (tables.SqlMetric.key, limits.NAME),
    (tables.SqlLatestMetric.key, limits.NAME),
    (tables.SqlDataset.name, limits.DATASET_NAME),
    (tables.SqlDataset.digest, limits.DATASET_DIGEST),
    (registry_tables.SqlModelVersion.description, limits.DESCRIPTION),
]
CHECKS = [
    (validation.MAX_ENTITY_KEY_LENGTH, limits.NAME),
    (validation.MAX_PARAM_VAL_LENGTH, limits.PARAM),
    (validation.MAX_TAG_VAL_LENGTH, limits.TAG),
    (validation.MAX_DATASET_NAME_SIZE, limits.DATASET_NAME),
    (validation.MAX_DATASET_DIGEST_SIZE, limits.DATASET_DIGEST),
]


@pytest.mark.parametrize(("column", "limit"), WIDTHS, ids=lambda each: getattr(each, "key", ""))
def test_no_column_of_mlflow_is_narrower(column: Any, limit: int) -> None:
    assert column.type.length >= limit


def test_no_check_of_mlflow_is_stricter() -> None:
    assert all(theirs >= ours for theirs, ours in CHECKS)


def test_text_that_fits_is_kept_and_other_text_is_cut_with_a_mark() -> None:
    assert limits.truncated("a" * 10, 10) == "a" * 10
    assert limits.truncated("a" * 11, 10) == "aaaa [cut]"
    assert limits.truncated(1.5, 10) == "1.5"


def test_what_a_database_cannot_store_is_replaced() -> None:
    assert limits.truncated("a\0b\udcffc", 10) == "a\ufffdb\ufffdc"


def test_a_name_that_mlflow_takes_stays_as_it_is() -> None:
    for name in ("test/accuracy_of/cat", "optimizer.lr", "mlflow.note.content", "Zwölf: a-b c"):
        assert limits.name(name) == name


def test_names_that_differ_in_a_refused_character_stay_apart() -> None:
    assert [limits.name(name) for name in ("a|b", "a$b", "a\nb")] == ["a_7c_b", "a_24_b", "a_a_b"]


def test_mlflow_takes_every_name() -> None:
    draw = random.Random(1)
    names = ["", "/", "..", "../../x", "a/./b", "a//b", "a/..", "x" * 249 + "/y", "..a", "\n", "a\n", "\ud800", "//."]
    names += ["".join(draw.choices("./.a|\n ", k=draw.randint(1, 12))) for _ in range(2000)]
    for name in names:
        validation._validate_metric(limits.name(name), 1.0, 0, 0)


def test_mlflow_takes_every_name_of_a_model() -> None:
    assert limits.model_name("student") == "student"
    for name in ("a/b", "a:b", "a.b", "100%", 'a"b', "it's", "\0", "x" * 300):
        validation._validate_logged_model_name(limits.model_name(name))
