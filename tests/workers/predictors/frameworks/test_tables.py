"""scikit-learn, XGBoost and LightGBM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from shared.errors import ConfigError, InvalidRequest
from shared.repository.spec import DynamicBatching, ModelSpec, TensorSpec
from workers.predictors.interface import Arrays, Execution
from workers.predictors.select import module_for

if TYPE_CHECKING:
    import lightgbm
    import xgboost

pytestmark = pytest.mark.slow  # the packages take seconds to import

X, Y = load_iris(return_X_y=True)
ROWS = X[::10].astype("f4")
TWO = Y < 2  # the rows of two classes


class Foreign(BaseEstimator):  # type: ignore[misc]
    """An estimator that is not scikit-learn's."""

    def predict(self, rows: Any) -> Any:
        return rows


def sklearn(estimator: Any, repository: Path) -> Path:
    import skops.io

    folder = repository / "1"
    folder.mkdir()
    skops.io.dump(estimator, folder / "model.skops")
    return folder


def forest(names: bool = False) -> RandomForestClassifier:
    classes = np.array(["setosa", "versicolor", "virginica"], dtype=object)[Y] if names else Y
    return RandomForestClassifier(5, max_depth=3, random_state=0).fit(X, classes)


def xgboost_model(
    repository: Path, name: str = "model.json", rows: Any = slice(None), **params: Any
) -> xgboost.Booster:
    import xgboost

    (repository / "1").mkdir()
    given = {"objective": "multi:softprob", "num_class": 3, "max_depth": 2, "nthread": 1, **params}
    booster = xgboost.train(given, xgboost.DMatrix(X[rows], Y[rows]), num_boost_round=3)
    booster.save_model(repository / "1" / name)
    return booster


def lightgbm_model(repository: Path, rows: Any = slice(None), **params: Any) -> lightgbm.Booster:
    import lightgbm

    (repository / "1").mkdir()
    given = {
        "objective": "multiclass",
        "num_class": 3,
        "num_leaves": 4,
        "num_threads": 1,
        "verbosity": -1,
        **params,
    }
    booster = lightgbm.train(given, lightgbm.Dataset(X[rows], Y[rows]), num_boost_round=3)
    booster.save_model(repository / "1" / "model.txt")
    return booster


def predict(spec: ModelSpec, folder: Path, inputs: Arrays | None = None, outputs: tuple[str, ...] = ()) -> Arrays:
    module = module_for(spec)
    completed = module.complete(spec, folder)
    predictor = module.load(completed, folder, threads=1)
    assert predictor.memory_bytes >= sum(each.stat().st_size for each in folder.iterdir())
    return predictor.predict(Execution(inputs=inputs or {completed.inputs[0].name: ROWS}, outputs=outputs))


def test_forest_describes_itself(tmp_path: Path) -> None:
    folder = sklearn(forest(), tmp_path)
    spec = ModelSpec(name="iris", backend="sklearn")
    completed = module_for(spec).complete(spec, folder)
    assert completed == ModelSpec(
        name="iris",
        backend="sklearn",
        max_batch_size=1024,
        dynamic_batching=DynamicBatching(),
        inputs=(TensorSpec(name="input__0", datatype="FP32", dims=(4,)),),
        outputs=(
            TensorSpec(name="predict", datatype="INT64", dims=(1,)),
            TensorSpec(name="predict_proba", datatype="FP64", dims=(3,)),
        ),
    )


def test_forest_predicts_as_scikit_learn(tmp_path: Path) -> None:
    folder = sklearn(forest(), tmp_path)
    spec = ModelSpec(name="iris", backend="sklearn")
    found = predict(spec, folder)
    assert np.array_equal(found["predict"], forest().predict(ROWS)[:, np.newaxis])
    assert np.array_equal(found["predict_proba"], forest().predict_proba(ROWS))
    assert list(predict(spec, folder, outputs=("predict_proba",))) == ["predict_proba"]


def test_outputs_have_the_declared_names_and_types(tmp_path: Path) -> None:
    outputs = (
        TensorSpec(name="label", datatype="BYTES", dims=(1,), reshape=()),
        TensorSpec(name="probabilities", datatype="FP32", dims=(3,)),
    )
    spec = ModelSpec(name="iris", backend="sklearn", max_batch_size=64, outputs=outputs)
    found = predict(spec, sklearn(forest(names=True), tmp_path))
    assert found["label"].tolist() == [each.encode() for each in forest(names=True).predict(ROWS)]
    assert found["probabilities"].dtype == np.float32


def test_columns_may_be_several_inputs(tmp_path: Path) -> None:
    estimator = make_pipeline(StandardScaler(), LinearRegression()).fit(X, Y)
    inputs = tuple(TensorSpec(name=name, datatype="FP32", dims=(size,)) for name, size in (("b", 3), ("a", 1)))
    spec = ModelSpec(name="line", backend="sklearn", max_batch_size=64, inputs=inputs)
    found = predict(spec, sklearn(estimator, tmp_path), {"a": ROWS[:, 3:], "b": ROWS[:, :3]})
    assert np.array_equal(found["predict"], estimator.predict(ROWS)[:, np.newaxis])


def test_transformer_of_texts_must_be_described(tmp_path: Path) -> None:
    colours = np.array([["red"], ["blue"]], dtype=object)
    folder = sklearn(OneHotEncoder().fit(colours), tmp_path)
    with pytest.raises(ConfigError, match="model colours must declare its inputs and outputs"):
        predict(ModelSpec(name="colours", backend="sklearn"), folder)
    inputs = (TensorSpec(name="colour", datatype="BYTES", dims=(1,)),)
    outputs = (TensorSpec(name="transform", datatype="FP32", dims=(2,)),)
    spec = ModelSpec(name="colours", backend="sklearn", max_batch_size=8, inputs=inputs, outputs=outputs)
    found = predict(spec, folder, {"colour": np.array([[b"red"]], dtype=object)})
    assert found["transform"].tolist() == [[0, 1]]
    with pytest.raises(InvalidRequest, match="the model refuses its inputs: Found unknown categories"):
        predict(spec, folder, {"colour": np.array([[b"green"]], dtype=object)})


def test_types_of_others_are_refused_by_name(tmp_path: Path) -> None:
    folder = sklearn(Foreign(), tmp_path)
    with pytest.raises(ConfigError, match=rf"it has types that are not trusted: {Foreign.__module__}\.Foreign;"):
        predict(ModelSpec(name="foreign", backend="sklearn"), folder)


def test_types_are_trusted_by_name(tmp_path: Path) -> None:
    neighbors = KNeighborsClassifier(3).fit(X, Y)
    types = "sklearn.neighbors._kd_tree.KDTree, sklearn.metrics._dist_metrics.EuclideanDistance64"
    spec = ModelSpec(name="iris", backend="sklearn", parameters={"trusted_types": types})
    found = predict(spec, sklearn(neighbors, tmp_path))
    assert np.array_equal(found["predict_proba"], neighbors.predict_proba(ROWS))


def test_trees_with_wrong_nodes_are_refused(tmp_path: Path) -> None:
    estimator = forest()
    tree = estimator.estimators_[1].tree_
    state = tree.__getstate__()
    state["nodes"]["left_child"][0] = 1 << 40  # where nothing is
    tree.__setstate__(state)
    with pytest.raises(ConfigError, match="a tree in it has nodes that do not exist"):
        predict(ModelSpec(name="iris", backend="sklearn"), sklearn(estimator, tmp_path))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("score", "the outputs of model iris must be of predict, .*, got score"),
        ("transform", "its RandomForestClassifier has no transform, for the output transform"),
    ],
)
def test_outputs_that_the_estimator_lacks_are_refused(tmp_path: Path, output: str, message: str) -> None:
    outputs = (TensorSpec(name=output, datatype="FP32", dims=(1,)),)
    spec = ModelSpec(name="iris", backend="sklearn", max_batch_size=8, outputs=outputs)
    with pytest.raises(ConfigError, match=message):
        predict(spec, sklearn(forest(), tmp_path))


@pytest.mark.parametrize("name", ["model.json", "model.ubj"])
def test_xgboost_predicts_as_itself(tmp_path: Path, name: str) -> None:
    import xgboost

    booster = xgboost_model(tmp_path, name)
    found = predict(ModelSpec(name="iris", backend="xgboost"), tmp_path / "1")
    assert np.array_equal(found["output__0"], booster.predict(xgboost.DMatrix(ROWS)))


def test_lightgbm_predicts_as_itself(tmp_path: Path) -> None:
    booster = lightgbm_model(tmp_path)
    found = predict(ModelSpec(name="iris", backend="lightgbm"), tmp_path / "1")
    assert np.array_equal(found["output__0"], booster.predict(ROWS))


@pytest.mark.parametrize("backend", ["xgboost", "lightgbm"])
@pytest.mark.parametrize("classes", [2, 3])
def test_scores_have_the_form_that_parameters_ask_for(tmp_path: Path, backend: str, classes: int) -> None:
    make: Callable[..., Any] = xgboost_model if backend == "xgboost" else lightgbm_model
    name = "binary:logistic" if backend == "xgboost" else "binary"
    rows = X[TWO] if classes == 2 else X
    if classes == 2:
        make(tmp_path, rows=TWO, objective=name, num_class=1 if backend == "lightgbm" else 0)
    else:
        make(tmp_path)
    labels = Y[TWO] if classes == 2 else Y
    folder, inputs = tmp_path / "1", {"input__0": rows.astype("f4")}
    spec = ModelSpec(name="iris", backend=backend)
    best = predict(msgspec.structs.replace(spec, parameters={"output_class": "true"}), folder, inputs)
    assert (best["output__0"][:, 0] == labels).mean() > 0.9
    shares = predict(msgspec.structs.replace(spec, parameters={"predict_proba": "true"}), folder, inputs)
    assert shares["output__0"].shape == (len(rows), classes)
    assert np.array_equal(shares["output__0"].argmax(axis=1), best["output__0"][:, 0])


def test_files_of_trees_with_a_declared_shape(tmp_path: Path) -> None:
    import xgboost

    booster = xgboost_model(tmp_path, objective="reg:squarederror", num_class=0)
    table = TensorSpec(name="table", datatype="FP64", dims=(-1, 4))
    value = TensorSpec(name="value", datatype="FP64", dims=(-1,))
    spec = ModelSpec(name="iris", backend="xgboost", inputs=(table,), outputs=(value,))
    found = predict(spec, tmp_path / "1", {"table": ROWS.astype("f8")})["value"]
    assert found.dtype == np.float64
    assert np.array_equal(found.astype("f4"), booster.predict(xgboost.DMatrix(ROWS)))


@pytest.mark.parametrize(
    ("backend", "name"), [("sklearn", "model.skops"), ("xgboost", "model.json"), ("lightgbm", "model.txt")]
)
def test_damaged_files_are_named(tmp_path: Path, backend: str, name: str) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / name).write_bytes(b"{not a model")
    with pytest.raises(ConfigError, match=f"model iris: 1/{name} cannot be loaded: ."):
        module_for(ModelSpec(name="iris", backend=backend)).load(
            ModelSpec(name="iris", backend=backend), tmp_path / "1", threads=1
        )


def test_other_numbers_of_columns_are_refused(tmp_path: Path) -> None:
    lightgbm_model(tmp_path)
    inputs = (TensorSpec(name="x", datatype="FP32", dims=(3,)),)
    spec = ModelSpec(name="iris", backend="lightgbm", max_batch_size=8, inputs=inputs)
    with pytest.raises(ConfigError, match="the inputs of model iris must have 4 columns together, got 3"):
        module_for(spec).complete(spec, tmp_path / "1")
