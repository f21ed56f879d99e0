"""One module for each framework, named by the backend in a model's description.

Each is a `PredictorModule` and imports its framework. Only `workers.predictors.select` imports them.
"""
