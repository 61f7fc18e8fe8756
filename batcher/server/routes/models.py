"""`GET /v1/models`, `GET /v1/models/{id}` and `GET /health`: what is served, and whether it is there now."""

import time
from typing import Any

from fastapi import APIRouter, Response

from batcher.live import LiveEngine
from batcher.server.guard.errors import ApiError
from batcher.types import ErrorCode

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "No such model"}}
_AWAY: dict[int | str, dict[str, Any]] = {503: {"description": "The models are being loaded"}}


def models_router(engine: LiveEngine | None) -> APIRouter:
    """The routes. `engine` None: the server serves no model itself."""
    router = APIRouter(tags=["models"])
    began_at = int(time.time())

    def model_object(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": began_at, "owned_by": "batcher"}

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The models that are served, by name."""
        return {"object": "list", "data": [model_object(name) for name in (engine.models if engine else ())]}

    # A path and not a name: who asks for `org/model` gets an answer about models, not about routes.
    @router.get("/v1/models/{model:path}", responses=_NOT_FOUND)
    async def retrieve_model(model: str) -> dict[str, Any]:
        """One model."""
        if engine is None or model not in engine.models:
            raise ApiError(
                404,
                f"the model {model[:128]!r} is not served; GET /v1/models lists those that are",
                param="model",
                code=ErrorCode.MODEL_NOT_FOUND,
            )
        return model_object(model)

    return router


def health_router(engine: LiveEngine | None) -> APIRouter:
    """The route that load balancers ask."""
    router = APIRouter(tags=["operation"])

    @router.get("/health", responses=_AWAY)
    async def health(response: Response) -> dict[str, str]:
        """Whether completions are possible now: 200, or 503 while the models are loaded."""
        if engine is None or engine.is_ready:
            return {"status": "ok"}
        response.status_code = 503
        return {"status": "loading"}

    return router
