"""Catalog of all gRPC services."""

from __future__ import annotations

from producer_api.rpc.external_scaler import ExternalScaler
from producer_api.rpc.handler import Service
from producer_api.rpc.inference import Inference
from producer_api.rpc.kserve.service import KServe
from producer_api.rpc.prediction import Prediction
from producer_api.services import Context


def services(context: Context) -> tuple[Service, ...]:
    made = (Inference(context), Prediction(context), KServe(context), ExternalScaler(context))
    return tuple(each.service() for each in made)
