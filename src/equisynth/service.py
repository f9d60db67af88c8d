"""The registered model as a function of images, and under ``mlflow models serve``: docs/how-to/serve.md.

MLflow's server answers wrong requests with all that was sent, with a stack trace, or with 500 and nothing; and has no
place for other answers. `answer_requests` therefore takes over its handler of requests, in the server's process only.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

SERVER = "mlflow.pyfunc.scoring_server"
APPLICATION = f"{SERVER}.app"
"""The module that is imported in a server's process only; it loads the model."""
LARGEST = 2**25
"""Values in one image: 320 x 320 x 320, and some."""
LARGEST_BODY = 2**30
"""Bytes of one request: 32 for each value of the largest image."""
FloatArray = npt.NDArray[np.float32]


class Translator(PythonModel):  # type: ignore[misc]
    """Translates one whole prepared image."""

    _skip_type_hint_validation = True  # arrays are checked by the signature; MLflow would warn at every import

    def load_context(self, context: Any) -> None:
        """Loads weights and description from the artifacts."""
        from equisynth.model import load_model

        self.model = load_model(Path(context.artifacts["weights"]).parent)
        if APPLICATION in sys.modules:
            answer_requests(sys.modules[SERVER], self)

    def predict(self, context: Any, model_input, params: dict[str, Any] | None = None):  # type: ignore[no-untyped-def]
        """Synthesises the other modality. (MLflow would take annotations of input and output for a schema of its own.)

        Args:
            model_input: prepared image, (*S) or (*S, C) float32 in the input's unit (not divided by its std).

        Returns:
            (*S) or (*S, C') float32 in the label's unit.

        Raises:
            MlflowException: another number of axes or channels, no or too many values, or values that are not finite.
        """
        from equisynth.inference import translate_volume

        data = self.model.description.settings.data
        with np.errstate(over="ignore"):  # beyond float32 is infinity, which is refused
            values = np.asarray(model_input, dtype=np.float32)
        _check_shape(values.shape, data.n_dims, data.input.channels)
        if not np.isfinite(values).all():
            raise wrong("the image holds NaN, infinity or a number beyond float32; replace them by the background")
        return translate_volume(self.model.predict, values, None, self.model.description)


def answer_requests(server: ModuleType, translator: Translator) -> None:
    """Makes MLflow's server answer every wrong request by 400 and one line, and a failure by 500 and one line.

    Args:
        server: MLflow's module, whose ``invocations`` handles a request's body.
    """
    log = logging.getLogger(__name__)

    def invocations(data: bytes, content_type: str | None, *_: Any) -> Any:
        try:
            values = translator.predict(None, read_request(data, content_type))
            status, answer = 200, json.dumps({"predictions": values.tolist()})
        except MlflowException as error:
            status, answer = error.get_http_status_code(), error.serialize_as_json()
        except Exception as error:
            log.exception("the model failed")
            failure = MlflowException(f"the model failed ({type(error).__name__}); the server's log says where")
            status, answer = failure.get_http_status_code(), failure.serialize_as_json()
        return server.InvocationsResponse(answer, status, "application/json")

    server.invocations = invocations  # type: ignore[attr-defined]


def read_request(body: bytes, content_type: str | None) -> npt.NDArray[Any]:
    """The image of a request ``{"inputs": nested lists of numbers}``.

    Raises:
        MlflowException: it is none; what is wrong, in one line.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise wrong(f"Content-Type is {kind[:80]!r}, expected 'application/json'")
    if len(body) > LARGEST_BODY:
        raise wrong(f"the body holds {len(body)} bytes, expected at most {LARGEST_BODY}; see `equisynth predict`")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise wrong(f"the body is not valid JSON ({_reason(error)})") from None
    if not isinstance(content, dict) or list(content) != ["inputs"]:
        found = f"the keys {list(content)!r:.200}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise wrong(f'the body holds {found}, expected {{"inputs": IMAGE}} and nothing else')
    try:
        values = np.asarray(content["inputs"])
    except ValueError:
        raise wrong("inputs: rows of different lengths, or lists nested too deep; expected nested lists") from None
    if values.dtype.kind not in "iuf" and values.size:
        raise wrong("inputs: text, null, true or an object found where numbers were expected")
    return values


def wrong(message: str) -> MlflowException:
    """HTTP status 400."""
    return MlflowException.invalid_parameter_value(message)


def _reason(error: Exception) -> str:
    """Why JSON cannot be read."""
    if isinstance(error, json.JSONDecodeError):
        return str(error)
    if isinstance(error, RecursionError):
        return "lists nested too deep"
    return "not UTF-8" if isinstance(error, UnicodeError) else "a number of too many digits"


def _check_shape(shape: tuple[int, ...], n_dims: int, channels: int) -> None:
    expected = f"{n_dims} axes" + (f" and {channels} channels at the end" if channels > 1 else "")
    if len(shape) != n_dims + (channels > 1) or (channels > 1 and shape[-1] != channels):
        raise wrong(f"the image has shape {shape}, expected {expected}")
    size = int(np.prod(shape, dtype=np.int64))
    if not 0 < size <= LARGEST:
        raise wrong(f"the image has shape {shape}, that is {size} values; expected 1 to {LARGEST}")
