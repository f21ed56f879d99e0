"""The OpenAPI document of an application."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from producer_api.http.endpoint import Endpoint

PATH = "/openapi.json"


async def openapi(request: Request) -> Response:
    return JSONResponse(request.app.openapi())


ENDPOINTS = (Endpoint("GET", PATH, openapi, group=None),)
